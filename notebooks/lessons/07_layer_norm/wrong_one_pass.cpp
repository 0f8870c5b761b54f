// Wrong: the variance is mean(x^2) - mean^2: of numbers around 100,000 only rounding is left.
#include <cmath>

#include "notebooks/lessons/07_layer_norm/exercise.h"

namespace sinkhorn::lesson {

Normalised layer_norm(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps) {
  const std::int64_t rows = x.shape()[0], width = x.shape()[1];
  Tensor y = x.like(), mean({rows}, DType::f64), rstd({rows}, DType::f64);
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto row = x.span<double>().subspan(r * width, width);
    double m = 0;
    for (const double element : row) m += element / double(width);
    double variance = 0;
    for (const double element : row) variance += element * element / double(width);
    variance -= m * m;
    const double s = 1 / std::sqrt(variance + eps);
    for (std::int64_t i = 0; i < width; ++i)
      y.span<double>()[r * width + i] = (row[i] - m) * s * gamma.span<double>()[i] + beta.span<double>()[i];
    mean.span<double>()[r] = m;
    rstd.span<double>()[r] = s;
  }
  return {y, mean, rstd};
}

// With g = gamma dy: dx = rstd (g - mean(g) - z mean(g z)).
LayerNormGradients layer_norm_backward(const Tensor& x, const Tensor& gamma, const Tensor& mean, const Tensor& rstd,
                                       const Tensor& dy) {
  const std::int64_t rows = x.shape()[0], width = x.shape()[1];
  Tensor dx = x.like();
  Tensor dgamma = Tensor::zeros({width}, DType::f64), dbeta = Tensor::zeros({width}, DType::f64);
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto row = x.span<double>().subspan(r * width, width), flow = dy.span<double>().subspan(r * width, width);
    const double m = mean.span<double>()[r], s = rstd.span<double>()[r];
    const auto g = [&](std::int64_t i) { return gamma.span<double>()[i] * flow[i]; };
    const auto z = [&](std::int64_t i) { return (row[i] - m) * s; };
    double mean_g = 0, mean_gz = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      mean_g += g(i) / double(width);
      mean_gz += g(i) * z(i) / double(width);
    }
    for (std::int64_t i = 0; i < width; ++i) {
      dx.span<double>()[r * width + i] = s * (g(i) - mean_g - z(i) * mean_gz);
      dgamma.span<double>()[i] += flow[i] * z(i);
      dbeta.span<double>()[i] += flow[i];
    }
  }
  return {dx, dgamma, dbeta};
}

}  // namespace sinkhorn::lesson
