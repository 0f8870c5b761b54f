// Wrong: weighs every pick against all logits of the row, and not against those that are left.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "notebooks/lessons/11_routing/exercise.h"

namespace sinkhorn::lesson {
namespace {

constexpr double kGone = -std::numeric_limits<double>::infinity();

// The lowest column with the largest logit; -1 if nothing is left.
std::int32_t first_largest(const std::vector<double>& left) {
  std::int32_t pick = -1;
  double largest = kGone;
  for (std::size_t j = 0; j < left.size(); ++j)
    if (left[j] > largest) {
      largest = left[j];
      pick = std::int32_t(j);
    }
  return pick;
}

// softmax(left / temperature); what is gone gets 0.
std::vector<double> shares_of(const std::vector<double>& left, double temperature) {
  const double largest = *std::max_element(left.begin(), left.end());
  std::vector<double> shares(left.size());
  double sum = 0;
  for (std::size_t j = 0; j < left.size(); ++j) sum += shares[j] = std::exp((left[j] - largest) / temperature);
  for (double& share : shares) share /= sum;
  return shares;
}

std::vector<double> row_of(const Tensor& x, std::int64_t r) {
  const std::int64_t width = x.shape()[1];
  return {x.data<double>() + r * width, x.data<double>() + (r + 1) * width};
}

}  // namespace

Chosen top_k(const Tensor& logits, std::int64_t n, double temperature) {
  const std::int64_t rows = logits.shape()[0];
  Chosen chosen{Tensor::zeros({rows, n}, DType::f64), Tensor({rows, n}, DType::i32)};
  for (std::int64_t r = 0; r < rows; ++r) {
    std::vector<double> left = row_of(logits, r);
    const std::vector<double> all = left;
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int32_t pick = first_largest(left);
      chosen.picks.span<std::int32_t>()[r * n + i] = pick;
      if (pick < 0) continue;
      chosen.weights.span<double>()[r * n + i] = shares_of(all, temperature)[std::size_t(pick)];
      left[std::size_t(pick)] = kGone;
    }
  }
  return chosen;
}

// d weight / d logit_j = p_pick ((j == pick) - p_j) / temperature, over what was left at that pick
Tensor top_k_backward(const Tensor& logits, const Tensor& picks, const Tensor& dweights, double temperature) {
  const std::int64_t rows = logits.shape()[0], columns = logits.shape()[1], n = picks.shape()[1];
  Tensor dlogits = Tensor::zeros(logits.shape(), DType::f64);
  for (std::int64_t r = 0; r < rows; ++r) {
    std::vector<double> left = row_of(logits, r);
    for (std::int64_t i = r * n; i < (r + 1) * n; ++i) {
      const std::int32_t pick = picks.span<std::int32_t>()[i];
      if (pick < 0) continue;
      const std::vector<double> p = shares_of(row_of(logits, r), temperature);
      const double flow = dweights.span<double>()[i] * p[std::size_t(pick)] / temperature;
      for (std::int64_t j = 0; j < columns; ++j)
        dlogits.span<double>()[r * columns + j] += flow * (double(j == pick) - p[std::size_t(j)]);
      left[std::size_t(pick)] = kGone;
    }
  }
  return dlogits;
}

Tensor gather(const Tensor& x, const Tensor& weights, const Tensor& picks) {
  const std::int64_t size = x.shape()[1] * x.shape()[2], rows = picks.shape()[0], n = picks.shape()[1];
  Tensor y = Tensor::zeros({rows, n * x.shape()[1], x.shape()[2]}, DType::f64);
  for (std::int64_t i = 0; i < rows * n; ++i) {
    const std::int32_t pick = picks.span<std::int32_t>()[i];
    if (pick < 0) continue;
    for (std::int64_t e = 0; e < size; ++e)
      y.span<double>()[i * size + e] = weights.span<double>()[i] * x.span<double>()[pick * size + e];
  }
  return y;
}

// dx[pick] += weight dy,  dweight = <dy, x[pick]>
GatherGradients gather_backward(const Tensor& x, const Tensor& weights, const Tensor& picks, const Tensor& dy) {
  const std::int64_t size = x.shape()[1] * x.shape()[2];
  GatherGradients flow{Tensor::zeros(x.shape(), DType::f64), Tensor::zeros(weights.shape(), DType::f64)};
  for (std::int64_t i = 0; i < picks.count(); ++i) {
    const std::int32_t pick = picks.span<std::int32_t>()[i];
    if (pick < 0) continue;
    for (std::int64_t e = 0; e < size; ++e) {
      const double incoming = dy.span<double>()[i * size + e];
      flow.dx.span<double>()[pick * size + e] += weights.span<double>()[i] * incoming;
      flow.dweights.span<double>()[i] += incoming * x.span<double>()[pick * size + e];
    }
  }
  return flow;
}

}  // namespace sinkhorn::lesson
