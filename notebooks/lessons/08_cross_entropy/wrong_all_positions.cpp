// Wrong: divides by the number of all positions, the ignored ones included.
#include <algorithm>
#include <cmath>

#include "notebooks/lessons/08_cross_entropy/exercise.h"

namespace sinkhorn::lesson {
namespace {

double log_sum_exp(std::span<const double> x) {
  const double largest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const double logit : x) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

}  // namespace

Loss cross_entropy(const Tensor& logits, const Tensor& targets, std::int32_t ignore) {
  const std::int64_t positions = logits.shape()[0], V = logits.shape()[1];
  double total = 0;
  std::int64_t count = 0;
  for (std::int64_t r = 0; r < positions; ++r) {
    const std::int32_t target = targets.span<std::int32_t>()[r];
    if (target == ignore) continue;
    if (target < 0 || target >= V) fail("cross_entropy: target ", target, " is outside ", V, " classes");
    const auto x = logits.span<double>().subspan(r * V, V);
    total += log_sum_exp(x) - x[target];
    ++count;
  }
  return {total / double(positions), count};
}

Tensor cross_entropy_backward(const Tensor& logits, const Tensor& targets, std::int32_t ignore, double dloss) {
  const std::int64_t positions = logits.shape()[0], V = logits.shape()[1];
  const std::int64_t count = cross_entropy(logits, targets, ignore).count;
  Tensor dlogits = Tensor::zeros(logits.shape(), DType::f64);
  for (std::int64_t r = 0; r < positions; ++r) {
    const std::int32_t target = targets.span<std::int32_t>()[r];
    if (target == ignore) continue;
    const auto x = logits.span<double>().subspan(r * V, V), dx = dlogits.span<double>().subspan(r * V, V);
    const double shift = log_sum_exp(x);
    for (std::int64_t v = 0; v < V; ++v) dx[v] = (std::exp(x[v] - shift) - (v == target)) * dloss / double(count);
  }
  return dlogits;
}

double bits_per_character(double loss, std::int64_t tokens, std::int64_t characters) {
  return loss / std::log(2.0) * double(tokens) / double(characters);
}

}  // namespace sinkhorn::lesson
