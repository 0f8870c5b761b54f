// Wrong: the gradient of the temperature forgets that the noise was divided by it, too.
#include <algorithm>
#include <cmath>

#include "notebooks/lessons/13_gumbel/exercise.h"

namespace sinkhorn::lesson {

double gumbel(std::uint32_t word) {
  const double u = (double(word >> 9) + 0.5) / 8388608.0;
  return -std::log(-std::log(u));
}

Tensor gumbel_noise(const RandomBits& bits, std::int64_t rows, std::int64_t columns) {
  Tensor noise({rows, columns}, DType::f64);
  for (std::int64_t i = 0; i < noise.count(); ++i) noise.span<double>()[i] = gumbel(bits.word(std::uint64_t(i)));
  return noise;
}

Tensor sample(const Tensor& scores, const Tensor& noise) {
  const std::int64_t rows = scores.shape()[0], columns = scores.shape()[1];
  Tensor picks({rows}, DType::i32);
  for (std::int64_t r = 0; r < rows; ++r) {
    auto noisy = [&](std::int64_t j) {
      return scores.span<double>()[r * columns + j] + noise.span<double>()[r * columns + j];
    };
    std::int64_t best = 0;
    for (std::int64_t j = 1; j < columns; ++j)
      if (noisy(j) > noisy(best)) best = j;
    picks.span<std::int32_t>()[r] = std::int32_t(best);
  }
  return picks;
}

Tensor relaxed(const Tensor& scores, const Tensor& noise, double temperature) {
  const std::int64_t rows = scores.shape()[0], columns = scores.shape()[1];
  Tensor y = scores.like();
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto row = y.span<double>().subspan(r * columns, columns);
    for (std::int64_t j = 0; j < columns; ++j)
      row[j] = (scores.span<double>()[r * columns + j] + noise.span<double>()[r * columns + j]) / temperature;
    const double largest = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (double& element : row) sum += element = std::exp(element - largest);
    for (double& element : row) element /= sum;
  }
  return y;
}

// With z = scores + noise and y = softmax(z / t):  dscores = y (dy - <dy, y>) / t,  dt = -<dscores, z> / t
RelaxedGradients relaxed_backward(const Tensor& scores, const Tensor& noise, double temperature, const Tensor& dy) {
  const Tensor y = relaxed(scores, noise, temperature);
  const std::int64_t rows = scores.shape()[0], columns = scores.shape()[1];
  RelaxedGradients flow{scores.like(), 0};
  for (std::int64_t r = 0; r < rows; ++r) {
    double dot = 0;
    for (std::int64_t i = r * columns; i < (r + 1) * columns; ++i) dot += dy.span<double>()[i] * y.span<double>()[i];
    for (std::int64_t i = r * columns; i < (r + 1) * columns; ++i) {
      const double dscore = y.span<double>()[i] * (dy.span<double>()[i] - dot) / temperature;
      flow.dscores.span<double>()[i] = dscore;
      flow.dtemperature -= dscore * scores.span<double>()[i] / temperature;
    }
  }
  return flow;
}

}  // namespace sinkhorn::lesson
