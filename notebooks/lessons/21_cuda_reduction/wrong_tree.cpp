// Wrong: a tree in shared memory: free of races, but it halves 96 threads to 48, 24, 12, 6, 3, 1, and waits eight
// times.
#include <algorithm>
#include <cmath>
#include <limits>

#include "notebooks/lessons/21_cuda_reduction/exercise.h"

namespace sinkhorn::lesson {
namespace {

struct Plus {
  float operator()(float a, float b) const { return a + b; }
};
struct Larger {
  float operator()(float a, float b) const { return std::max(a, b); }
};

// Combines x of all threads of the block; all get the result.
template <class Combine>
float over_block(const Thread& t, const Shared<float>& scratch, float x, Combine combine) {
  scratch[t.index()] = x;
  t.sync();
  for (int half = t.size() / 2; half > 0; half /= 2) {
    if (t.index() < half) scratch[t.index()] = combine(scratch[t.index()], scratch[t.index() + half]);
    t.sync();
  }
  x = scratch[0];
  t.sync();
  return x;
}

}  // namespace

void RowSums::operator()(Thread& t) const {
  const Shared<float> scratch = t.shared<float>(t.size());
  float sum = 0;
  for (std::int64_t c = t.index(); c < width; c += t.size()) sum += x[t.block() * width + c];
  sum = over_block(t, scratch, sum, Plus{});
  if (t.index() == 0) y[t.block()] = sum;
}

void SoftmaxRows::operator()(Thread& t) const {
  const Shared<float> scratch = t.shared<float>(t.size());
  const std::int64_t first = t.block() * width;
  float largest = -std::numeric_limits<float>::infinity(), sum = 0;
  for (std::int64_t c = t.index(); c < width; c += t.size()) largest = std::max(largest, x[first + c]);
  largest = over_block(t, scratch, largest, Larger{});
  for (std::int64_t c = t.index(); c < width; c += t.size()) sum += std::exp(x[first + c] - largest);
  sum = over_block(t, scratch, sum, Plus{});
  for (std::int64_t c = t.index(); c < width; c += t.size()) y[first + c] = std::exp(x[first + c] - largest) / sum;
}

}  // namespace sinkhorn::lesson
