// Cross-entropy, its gradient, and bits per character. Edit this file, then: sinkhorn lesson verify 8
//
// Logit v of position r is logits.span<double>()[r * V + v]; its target is targets.span<std::int32_t>()[r].
// fail("text", a, b) throws an Error.
#include "notebooks/lessons/08_cross_entropy/exercise.h"

#include <cmath>

namespace sinkhorn::lesson {

// Right for small logits and if every position counts. The checks use logits of 1000, too.
Loss cross_entropy(const Tensor& logits, const Tensor& targets, std::int32_t ignore) {
  const std::int64_t positions = logits.shape()[0], V = logits.shape()[1];
  (void)ignore;  // yours to use
  double total = 0;
  for (std::int64_t r = 0; r < positions; ++r) {
    const auto x = logits.span<double>().subspan(r * V, V);
    double sum = 0;
    for (const double logit : x) sum += std::exp(logit);
    const std::int32_t target = targets.span<std::int32_t>()[r];
    if (target < 0) continue;  // is that enough? And which targets are mistakes?
    total -= std::log(std::exp(x[target]) / sum);
  }
  return {total / double(positions), positions};
}

Tensor cross_entropy_backward(const Tensor& logits, const Tensor& targets, std::int32_t ignore, double dloss) {
  (void)targets;
  (void)ignore;
  (void)dloss;
  return Tensor::zeros(logits.shape(), DType::f64);  // yours to write
}

double bits_per_character(double loss, std::int64_t tokens, std::int64_t characters) {
  (void)tokens;
  (void)characters;
  return loss;  // nats per token
}

}  // namespace sinkhorn::lesson
