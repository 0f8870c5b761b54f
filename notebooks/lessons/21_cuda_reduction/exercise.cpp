// Sums and softmax of rows, one block a row. Edit this file, then: sinkhorn lesson verify 21
//
// t.shared<float>(n) are n floats that all threads of the block see, if all ask for them in the same order. t.sync()
// waits for the whole block. t.shuffle_xor(value, mask) is the value of lane ^ mask; all lanes of a warp call it.
#include "notebooks/lessons/21_cuda_reduction/exercise.h"

#include <cmath>

namespace sinkhorn::lesson {

// y_r = sum_c x_rc. A tree in shared memory: each step adds the upper half of what is left to the lower half. It has a
// race, a barrier that some threads miss, and it is wrong for 3, 5, 6 or 7 warps. Mend it, or better: replace it by
// something that needs fewer barriers.
void RowSums::operator()(Thread& t) const {
  const Shared<float> sums = t.shared<float>(t.size());
  float sum = 0;
  for (std::int64_t c = t.index(); c < width; c += t.size()) sum += x[t.block() * width + c];
  sums[t.index()] = sum;
  for (int half = t.size() / 2; half > 0; half /= 2) {
    if (t.index() < half) {
      sums[t.index()] += sums[t.index() + half];
      t.sync();
    }
  }
  if (t.index() == 0) y[t.block()] = sums[0];
}

// Softmax of row t.block(). As it stands each thread divides by the sum over its own columns, as if there were no
// others; and exp overflows.
void SoftmaxRows::operator()(Thread& t) const {
  const std::int64_t first = t.block() * width;
  float sum = 0;
  for (std::int64_t c = t.index(); c < width; c += t.size()) sum += std::exp(x[first + c]);
  for (std::int64_t c = t.index(); c < width; c += t.size()) y[first + c] = std::exp(x[first + c]) / sum;
}

}  // namespace sinkhorn::lesson
