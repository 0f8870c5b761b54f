// Reductions whose order follows from the shape alone: along a row in vector lanes, over rows in fixed chunks.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "autograd/cpu/vector_math.h"
#include "autograd/parallel.h"
#include "autograd/tensor.h"

namespace sinkhorn::cpu {

/// Sum of term(0) .. term(n-1). The pragma lets the compiler keep one partial sum per lane, which it may not do by
/// itself.
template <class R, class Term>
R row_sum(std::int64_t n, Term term) {
  R sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += R(term(i));
  return sum;
}

/// The largest of `least`, term(0) .. term(n-1); NaNs may be passed over.
template <class R, class Term>
R row_max(std::int64_t n, R least, Term term) {
#pragma omp simd reduction(max : least)
  for (std::int64_t i = 0; i < n; ++i) {
    const R x = term(i);
    least = x > least ? x : least;
  }
  return least;
}

/// What the exponentials of a row were taken against, and their sum: 0 if the row is empty or -inf throughout.
template <class R>
struct Exponentials {
  R shift, sum;
};

/// Turns a row y into exp((y - shift) / temperature), shift = max y, so that nothing overflows. -inf becomes 0.
template <class R>
Exponentials<R> exponentials(std::int64_t n, R* y, R temperature = 1) {
  const R largest = row_max(n, -std::numeric_limits<R>::infinity(), [=](std::int64_t i) { return y[i]; });
  const R shift = std::isinf(largest) && largest < 0 ? R(0) : largest;
  for (std::int64_t i = 0; i < n; ++i) y[i] = math::exp((y[i] - shift) / temperature);
  return {shift, row_sum<R>(n, [=](std::int64_t i) { return y[i]; })};
}

/// Sums `width` quantities over `rows` rows into `sums`; a row touches about `work` elements. body(begin, end, partial)
/// adds those of rows begin .. end-1 to `partial`, which starts at 0. Chunks of rows are fixed, and their partial sums
/// are added in order.
template <class R, class Body>
void sum_over_rows(std::int64_t rows, std::int64_t width, std::int64_t work, R* sums, Body body) {
  const std::int64_t grain = std::max<std::int64_t>(grain_for(work), 16);
  const std::int64_t chunks = (rows + grain - 1) / grain;
  const Tensor partials = Tensor::zeros({chunks, width}, dtype_of<R>);
  R* const partial = partials.data<R>();
  parallel_for(rows, grain,
               [&](std::int64_t begin, std::int64_t end) { body(begin, end, partial + begin / grain * width); });
  std::fill_n(sums, width, R(0));
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk)
    for (std::int64_t j = 0; j < width; ++j) sums[j] += partial[chunk * width + j];
}

}  // namespace sinkhorn::cpu
