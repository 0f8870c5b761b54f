// A matrix product and its two backward products. Edit this file, then: sinkhorn lesson verify 5
//
// Element (i, r, c) of a tensor of shape (B, rows, columns) is x.span<double>()[(i * rows + r) * columns + c].
// b has rank 2 or 3: b.shape().rank(). Where it has rank 2, all B products use the same matrix.
#include "notebooks/lessons/05_matmul/exercise.h"

namespace sinkhorn::lesson {

Tensor matmul(const Tensor& a, const Tensor& b) {
  const std::int64_t batch = a.shape()[0], m = a.shape()[1], k = a.shape()[2], n = b.shape()[-1];
  Tensor y = Tensor::zeros({batch, m, n}, DType::f64);
  const auto left = a.span<double>(), right = b.span<double>(), out = y.span<double>();
  for (std::int64_t r = 0; r < m; ++r)
    for (std::int64_t c = 0; c < n; ++c)
      for (std::int64_t p = 0; p < k; ++p) out[r * n + c] += left[r * k + p] * right[p * n + c];
  return y;  // only the first of the products
}

// y = a b sums left[r, p] * right[p, c] over p. Who used left[r, p], with what, and for which elements of y?
MatmulGradients matmul_backward(const Tensor& a, const Tensor& b, const Tensor& dy) {
  (void)dy;
  return {Tensor::zeros(a.shape(), DType::f64), Tensor::zeros(b.shape(), DType::f64)};  // yours to write
}

}  // namespace sinkhorn::lesson
