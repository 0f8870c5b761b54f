// Sinkhorn normalisation in log space. Edit this file, then: sinkhorn lesson verify 12
//
// Element (i, j) of a matrix (N, M) is z[i * M + j]: along a row j runs, along a column i.
#include "notebooks/lessons/12_sinkhorn/exercise.h"

#include <cmath>

namespace sinkhorn::lesson {

// Rows, then columns, again and again. It must be right for scores of 800 and of -800, too.
Tensor normalise(const Tensor& log_scores, std::int64_t iterations) {
  const std::int64_t rows = log_scores.shape()[0], columns = log_scores.shape()[1];
  Tensor y = log_scores.like();
  const auto z = log_scores.span<double>(), out = y.span<double>();
  (void)iterations;  // yours to use
  for (std::int64_t i = 0; i < rows; ++i) {
    double sum = 0;
    for (std::int64_t j = 0; j < columns; ++j) sum += std::exp(z[i * columns + j]);  // overflows
    for (std::int64_t j = 0; j < columns; ++j) out[i * columns + j] = std::exp(z[i * columns + j]) / sum;
  }
  return y;  // the rows once, the columns never
}

// Every one of the 2 * iterations subtractions sends its own gradient back, the last one first.
Tensor normalise_backward(const Tensor& log_scores, std::int64_t iterations, const Tensor& dy) {
  (void)iterations;  // yours to use
  (void)dy;
  return Tensor::zeros(log_scores.shape(), DType::f64);
}

}  // namespace sinkhorn::lesson
