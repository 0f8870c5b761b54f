// Layer normalisation and its gradient. Edit this file, then: sinkhorn lesson verify 7
//
// Element (r, i) of x is x.span<double>()[r * width + i].
#include "notebooks/lessons/07_layer_norm/exercise.h"

#include <cmath>

namespace sinkhorn::lesson {

// Some rows lie around 100,000, and differ by 1 or so.
Normalised layer_norm(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps) {
  const std::int64_t rows = x.shape()[0], width = x.shape()[1];
  Tensor y = x.like();
  Tensor mean = Tensor::zeros({rows}, DType::f64), rstd = Tensor::zeros({rows}, DType::f64);
  (void)eps;  // yours to use
  for (std::int64_t r = 0; r < rows; ++r) {
    const double m = mean.span<double>()[r], s = rstd.span<double>()[r];  // both are 0: compute them
    for (std::int64_t i = 0; i < width; ++i)
      y.span<double>()[r * width + i] =
          (x.span<double>()[r * width + i] - m) * s * gamma.span<double>()[i] + beta.span<double>()[i];
  }
  return {y, mean, rstd};
}

LayerNormGradients layer_norm_backward(const Tensor& x, const Tensor& gamma, const Tensor& mean, const Tensor& rstd,
                                       const Tensor& dy) {
  const std::int64_t rows = x.shape()[0], width = x.shape()[1];
  Tensor dx = x.like();
  Tensor dgamma = Tensor::zeros({width}, DType::f64), dbeta = Tensor::zeros({width}, DType::f64);
  (void)mean;  // yours to use
  // As if mean and rstd were constants. But they depend on every x of the row. And dgamma and dbeta are yours to write.
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < width; ++i)
      dx.span<double>()[r * width + i] =
          rstd.span<double>()[r] * gamma.span<double>()[i] * dy.span<double>()[r * width + i];
  return {dx, dgamma, dbeta};
}

}  // namespace sinkhorn::lesson
