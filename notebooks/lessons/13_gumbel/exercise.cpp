// Gumbel noise and what it is good for. Edit this file, then: sinkhorn lesson verify 13
//
// bits.word(i) is word i of a stream: 32 random bits, from 0 to 4294967295. Element (r, j) of scores is
// scores[r * columns + j].
#include "notebooks/lessons/13_gumbel/exercise.h"

#include <cmath>

namespace sinkhorn::lesson {

// -log(-log U). U may be near 0 and near 1, but neither of them.
double gumbel(std::uint32_t word) {
  const double u = double(word) / 4294967296.0;  // word 0 makes it 0
  return -std::log(-std::log(u));
}

Tensor gumbel_noise(const RandomBits& bits, std::int64_t rows, std::int64_t columns) {
  Tensor noise({rows, columns}, DType::f64);
  noise.fill(gumbel(bits.word(0)));  // the same for all
  return noise;
}

// Who wins?
Tensor sample(const Tensor& scores, const Tensor& noise) {
  (void)noise;  // yours to use
  return Tensor::zeros({scores.shape()[0]}, DType::i32);
}

// The soft version of it.
Tensor relaxed(const Tensor& scores, const Tensor& noise, double temperature) {
  (void)noise;
  (void)temperature;
  return Tensor::full(scores.shape(), 1 / double(scores.shape()[1]), DType::f64);
}

RelaxedGradients relaxed_backward(const Tensor& scores, const Tensor& noise, double temperature, const Tensor& dy) {
  (void)noise;
  (void)temperature;
  (void)dy;
  return {Tensor::zeros(scores.shape(), DType::f64), 0};
}

}  // namespace sinkhorn::lesson
