// Wrong: the gradient of a shared b is that of the last product alone: it starts anew for each instead of adding up.
#include "notebooks/lessons/05_matmul/exercise.h"

namespace sinkhorn::lesson {
namespace {

// The extents of one product, and how far apart the matrices of b are: 0 if it is one for all.
struct Extents {
  std::int64_t batch, m, k, n, b_step;
};
Extents extents_of(const Tensor& a, const Tensor& b) {
  const std::int64_t k = a.shape()[2], n = b.shape()[-1];
  return {a.shape()[0], a.shape()[1], k, n, b.shape().rank() == 2 ? 0 : k * n};
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b) {
  const auto [batch, m, k, n, b_step] = extents_of(a, b);
  Tensor y = Tensor::zeros({batch, m, n}, DType::f64);
  for (std::int64_t i = 0; i < batch; ++i) {
    const double *left = a.data<double>() + i * m * k, *right = b.data<double>() + i * b_step;
    double* const out = y.data<double>() + i * m * n;
    for (std::int64_t r = 0; r < m; ++r)
      for (std::int64_t c = 0; c < n; ++c)
        for (std::int64_t p = 0; p < k; ++p) out[r * n + c] += left[r * k + p] * right[p * n + c];
  }
  return y;
}

MatmulGradients matmul_backward(const Tensor& a, const Tensor& b, const Tensor& dy) {
  const auto [batch, m, k, n, b_step] = extents_of(a, b);
  const Tensor da = Tensor::zeros(a.shape(), DType::f64), db = Tensor::zeros(b.shape(), DType::f64);
  for (std::int64_t i = 0; i < batch; ++i) {
    const double *left = a.data<double>() + i * m * k, *right = b.data<double>() + i * b_step;
    const double* const flow = dy.data<double>() + i * m * n;
    double *const to_left = da.data<double>() + i * m * k, *const to_right = db.data<double>() + i * b_step;
    for (std::int64_t e = 0; e < k * n; ++e) to_right[e] = 0;
    for (std::int64_t r = 0; r < m; ++r) {
      for (std::int64_t c = 0; c < n; ++c) {
        for (std::int64_t p = 0; p < k; ++p) {
          to_left[r * k + p] += flow[r * n + c] * right[p * n + c];
          to_right[p * n + c] += left[r * k + p] * flow[r * n + c];
        }
      }
    }
  }
  return {da, db};
}

}  // namespace sinkhorn::lesson
