// Wrong: the gradient takes only the diagonal, as if y_i depended on x_i alone.
#include <algorithm>
#include <cmath>

#include "notebooks/lessons/06_softmax/exercise.h"

namespace sinkhorn::lesson {

Tensor softmax(const Tensor& x) {
  const std::int64_t rows = x.shape()[0], width = x.shape()[1];
  Tensor y = x.like();
  const auto in = x.span<double>(), out = y.span<double>();
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto row = in.subspan(r * width, width);
    const double largest = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (const double score : row) sum += std::exp(score - largest);
    for (std::int64_t i = 0; i < width; ++i) out[r * width + i] = std::exp(row[i] - largest) / sum;
  }
  return y;
}

Tensor softmax_backward(const Tensor& y, const Tensor& dy) {
  const std::int64_t rows = y.shape()[0], width = y.shape()[1];
  Tensor dx = y.like();
  const auto share = y.span<double>(), incoming = dy.span<double>(), out = dx.span<double>();
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = r * width; i < (r + 1) * width; ++i) out[i] = share[i] * (1 - share[i]) * incoming[i];
  }
  return dx;
}

Tensor log_sum_exp(const Tensor& x) {
  const std::int64_t rows = x.shape()[0], width = x.shape()[1];
  Tensor y({rows}, DType::f64);
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto row = x.span<double>().subspan(r * width, width);
    const double largest = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (const double score : row) sum += std::exp(score - largest);
    y.span<double>()[r] = largest + std::log(sum);
  }
  return y;
}

}  // namespace sinkhorn::lesson
