// Wrong: when the maximum rises the sum is rescaled, but not the values weighted so far.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "notebooks/lessons/18_chunking/exercise.h"

namespace sinkhorn::lesson {
namespace {

constexpr double kNothing = -std::numeric_limits<double>::infinity();

double dot(const double* a, const double* b, std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// By what sums relative to the maximum `from` are multiplied to be relative to the larger `to`.
double rescaling(double from, double to) { return from == kNothing ? 0 : std::exp(from - to); }

}  // namespace

Partial attend(const Tensor& q, std::int64_t width, const NextChunk& next) {
  const std::int64_t queries = q.shape()[0], d = q.shape()[1];
  Partial result{Tensor::full({queries}, kNothing, DType::f64), Tensor::zeros({queries}, DType::f64),
                 Tensor::zeros({queries, width}, DType::f64)};
  while (const std::optional<Chunk> chunk = next()) {
    const std::int64_t count = chunk->keys.shape()[0];
    std::vector<double> scores(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < queries; ++i) {
      double &largest = result.largest.data<double>()[i], &sum = result.sum.data<double>()[i];
      double* const weighted = result.weighted.data<double>() + i * width;
      const bool* const allowed = chunk->allowed.data<bool>() + i * count;

      double now = largest;
      for (std::int64_t j = 0; j < count; ++j) {
        if (!allowed[j]) continue;
        scores[std::size_t(j)] =
            dot(q.data<double>() + i * d, chunk->keys.data<double>() + j * d, d) / std::sqrt(double(d));
        now = std::max(now, scores[std::size_t(j)]);
      }
      const double factor = rescaling(largest, now);
      sum *= factor;
      for (std::int64_t j = 0; j < count; ++j) {
        if (!allowed[j]) continue;
        const double exponential = std::exp(scores[std::size_t(j)] - now);
        sum += exponential;
        for (std::int64_t e = 0; e < width; ++e)
          weighted[e] += exponential * chunk->values.data<double>()[j * width + e];
      }
      largest = now;
    }
  }
  return result;
}

Partial merge(const Partial& a, const Partial& b) {
  const std::int64_t queries = a.weighted.shape()[0], width = a.weighted.shape()[1];
  Partial both{a.largest.like(), a.sum.like(), a.weighted.like()};
  for (std::int64_t i = 0; i < queries; ++i) {
    const double of_a = a.largest.data<double>()[i], of_b = b.largest.data<double>()[i], largest = std::max(of_a, of_b);
    const double from_a = rescaling(of_a, largest), from_b = rescaling(of_b, largest);
    both.largest.data<double>()[i] = largest;
    both.sum.data<double>()[i] = from_a * a.sum.data<double>()[i] + from_b * b.sum.data<double>()[i];
    for (std::int64_t e = i * width; e < (i + 1) * width; ++e)
      both.weighted.data<double>()[e] = from_a * a.weighted.data<double>()[e] + from_b * b.weighted.data<double>()[e];
  }
  return both;
}

Tensor output(const Partial& partial) {
  const std::int64_t queries = partial.weighted.shape()[0], width = partial.weighted.shape()[1];
  Tensor y = partial.weighted.like();
  for (std::int64_t i = 0; i < queries; ++i) {
    const double sum = partial.sum.data<double>()[i];
    for (std::int64_t e = i * width; e < (i + 1) * width; ++e)
      y.data<double>()[e] = sum > 0 ? partial.weighted.data<double>()[e] / sum : 0;
  }
  return y;
}

Tensor log_sum_exp(const Partial& partial) {
  Tensor y = partial.sum.like();
  for (std::int64_t i = 0; i < y.count(); ++i)
    y.data<double>()[i] = partial.largest.data<double>()[i] + std::log(partial.sum.data<double>()[i]);
  return y;
}

}  // namespace sinkhorn::lesson
