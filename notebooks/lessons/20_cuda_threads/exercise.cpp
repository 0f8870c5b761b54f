// Two kernels for the emulated grid. Edit this file, then: sinkhorn lesson verify 20
//
// A kernel's body is what one thread does. t.block() is its block, t.index() its place among the t.size() threads of
// the block. Matrices lie row after row: element (r, c) of x (rows, width) is x[r * width + c].
#include "notebooks/lessons/20_cuda_threads/exercise.h"

namespace sinkhorn::lesson {

// y_i = a x_i + b. As it stands: one element a thread, wherever that is.
void ScaleAndAdd::operator()(Thread& t) const {
  const std::int64_t i = t.block() * t.size() + t.index();
  y[i] = a * x[i] + b;  // and if i is past the end, or there are more elements than threads?
}

// Row t.block() of y = row picks[t.block()] of x. As it stands each thread takes a stretch of columns of its own, and a
// pick of -1 reads what lies in front of x.
void GatherRows::operator()(Thread& t) const {
  const std::int64_t stretch = (width + t.size() - 1) / t.size();
  for (std::int64_t k = 0; k < stretch; ++k) {
    const std::int64_t c = t.index() * stretch + k;
    if (c < width) y[t.block() * width + c] = x[picks[t.block()] * width + c];
  }
}

}  // namespace sinkhorn::lesson
