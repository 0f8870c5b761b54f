// Wrong: goes back through the last iteration alone, as if the sums of the earlier ones were constants.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "notebooks/lessons/12_sinkhorn/exercise.h"

namespace sinkhorn::lesson {
namespace {

enum class Along { rows, columns };

// A line is a row or a column: element `at` of line `line` of an (N, M) matrix.
struct Lines {
  Lines(const Shape& shape, Along along)
      : count(along == Along::rows ? shape[0] : shape[1]),
        length(along == Along::rows ? shape[1] : shape[0]),
        line_step(along == Along::rows ? shape[1] : 1),
        element_step(along == Along::rows ? 1 : shape[1]) {}
  std::int64_t index(std::int64_t line, std::int64_t at) const { return line * line_step + at * element_step; }
  std::int64_t count, length, line_step, element_step;
};

// Z minus the log-sum-exp of each line.
Tensor normalised(const Tensor& z, Along along) {
  const Lines lines(z.shape(), along);
  Tensor result = z.clone();
  const auto out = result.span<double>();
  for (std::int64_t line = 0; line < lines.count; ++line) {
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (std::int64_t at = 0; at < lines.length; ++at) largest = std::max(largest, out[lines.index(line, at)]);
    for (std::int64_t at = 0; at < lines.length; ++at) sum += std::exp(out[lines.index(line, at)] - largest);
    for (std::int64_t at = 0; at < lines.length; ++at) out[lines.index(line, at)] -= largest + std::log(sum);
  }
  return result;
}

// dZ = dZ' - exp(Z') sum(dZ') in each line, where Z' is what normalised() made of Z.
void normalised_backward(const Tensor& after, Along along, const Tensor& flow) {
  const Lines lines(after.shape(), along);
  const auto d = flow.span<double>();
  for (std::int64_t line = 0; line < lines.count; ++line) {
    double sum = 0;
    for (std::int64_t at = 0; at < lines.length; ++at) sum += d[lines.index(line, at)];
    for (std::int64_t at = 0; at < lines.length; ++at)
      d[lines.index(line, at)] -= std::exp(after.span<double>()[lines.index(line, at)]) * sum;
  }
}

// Z after every step: rows, columns, rows, columns, ...
std::vector<Tensor> steps_of(const Tensor& log_scores, std::int64_t iterations) {
  std::vector<Tensor> steps;
  Tensor z = log_scores;
  for (std::int64_t i = 0; i < iterations; ++i)
    for (const Along along : {Along::rows, Along::columns}) {
      z = normalised(z, along);
      steps.push_back(z);
    }
  return steps;
}

Tensor exponential(const Tensor& z) {
  Tensor y = z.clone();
  for (double& element : y.span<double>()) element = std::exp(element);
  return y;
}

}  // namespace

Tensor normalise(const Tensor& log_scores, std::int64_t iterations) {
  return exponential(steps_of(log_scores, iterations).back());
}

Tensor normalise_backward(const Tensor& log_scores, std::int64_t iterations, const Tensor& dy) {
  const std::vector<Tensor> steps = steps_of(log_scores, iterations);
  Tensor flow = exponential(steps.back());  // y = exp(Z), so dZ = y dy
  for (std::int64_t i = 0; i < flow.count(); ++i) flow.span<double>()[i] *= dy.span<double>()[i];
  for (std::int64_t i = iterations - 1; i >= iterations - 1; --i) {
    normalised_backward(steps[std::size_t(2 * i + 1)], Along::columns, flow);
    normalised_backward(steps[std::size_t(2 * i)], Along::rows, flow);
  }
  return flow;
}

}  // namespace sinkhorn::lesson
