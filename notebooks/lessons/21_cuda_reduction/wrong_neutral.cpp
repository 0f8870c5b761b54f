// Wrong: the maximum starts at 0, which is larger than every score of some rows.
#include <algorithm>
#include <cmath>

#include "notebooks/lessons/21_cuda_reduction/exercise.h"

namespace sinkhorn::lesson {
namespace {

constexpr int kMaxWarps = cuda::kMaxThreads / cuda::kWarp;

struct Plus {
  float operator()(float a, float b) const { return a + b; }
};
struct Larger {
  float operator()(float a, float b) const { return std::max(a, b); }
};

// Combines x of all threads of the block; all get the result. A scratch is good for one call.
template <class Combine>
float over_block(const Thread& t, const Shared<float>& scratch, float x, Combine combine) {
  for (int mask = cuda::kWarp / 2; mask > 0; mask /= 2) x = combine(x, t.shuffle_xor(x, mask));
  if (t.lane() == 0) scratch[t.warp()] = x;
  t.sync();
  x = scratch[0];
  for (int warp = 1; warp < t.warps(); ++warp) x = combine(x, scratch[warp]);
  return x;
}

}  // namespace

void RowSums::operator()(Thread& t) const {
  const Shared<float> scratch = t.shared<float>(kMaxWarps);
  float sum = 0;
  for (std::int64_t c = t.index(); c < width; c += t.size()) sum += x[t.block() * width + c];
  sum = over_block(t, scratch, sum, Plus{});
  if (t.index() == 0) y[t.block()] = sum;
}

void SoftmaxRows::operator()(Thread& t) const {
  const Shared<float> maxima = t.shared<float>(kMaxWarps), sums = t.shared<float>(kMaxWarps);
  const std::int64_t first = t.block() * width;
  float largest = 0, sum = 0;
  for (std::int64_t c = t.index(); c < width; c += t.size()) largest = std::max(largest, x[first + c]);
  largest = over_block(t, maxima, largest, Larger{});
  for (std::int64_t c = t.index(); c < width; c += t.size()) sum += std::exp(x[first + c] - largest);
  sum = over_block(t, sums, sum, Plus{});
  for (std::int64_t c = t.index(); c < width; c += t.size()) y[first + c] = std::exp(x[first + c] - largest) / sum;
}

}  // namespace sinkhorn::lesson
