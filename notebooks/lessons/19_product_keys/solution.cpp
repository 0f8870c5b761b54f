// Product keys: the best slots from the best of either half, a weighted read, and its gradient.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "notebooks/lessons/19_product_keys/exercise.h"

namespace sinkhorn::lesson {
namespace {

// The n best keys of a half, the best first; of equal ones the lowest.
std::vector<std::int64_t> best_of(std::span<const Score> scores, std::int64_t n) {
  std::vector<std::int64_t> keys(scores.size());
  std::iota(keys.begin(), keys.end(), 0);
  std::partial_sort(keys.begin(), keys.begin() + n, keys.end(), [&](std::int64_t a, std::int64_t b) {
    const Score &x = scores[std::size_t(a)], &y = scores[std::size_t(b)];
    return x != y ? x > y : a < b;
  });
  keys.resize(std::size_t(n));
  return keys;
}

std::vector<double> softmax(const Tensor& scores) {
  std::vector<double> shares = scores.to_vector();
  const double largest = *std::max_element(shares.begin(), shares.end());
  double sum = 0;
  for (double& share : shares) sum += share = std::exp(share - largest);
  for (double& share : shares) share /= sum;
  return shares;
}

}  // namespace

std::vector<std::int32_t> top_slots(std::span<const Score> first, std::span<const Score> second, std::int64_t n) {
  struct Candidate {
    Score sum;
    std::int32_t slot;
  };
  const auto keys = std::int64_t(first.size());
  std::vector<Candidate> candidates;
  candidates.reserve(std::size_t(n * n));
  const std::vector<std::int64_t> best_first = best_of(first, n), best_second = best_of(second, n);
  for (const std::int64_t i : best_first)
    for (const std::int64_t j : best_second)
      candidates.push_back({first[std::size_t(i)] + second[std::size_t(j)], std::int32_t(i * keys + j)});
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.sum != b.sum ? a.sum > b.sum : a.slot < b.slot; });
  std::vector<std::int32_t> slots;
  slots.reserve(std::size_t(n));
  for (std::int64_t k = 0; k < n; ++k) slots.push_back(candidates[std::size_t(k)].slot);
  return slots;
}

Tensor read(const Tensor& table, const std::vector<std::int32_t>& picks, const Tensor& sums) {
  const std::int64_t width = table.shape()[1];
  const std::vector<double> shares = softmax(sums);
  Tensor y = Tensor::zeros({width}, DType::f64);
  for (std::size_t k = 0; k < picks.size(); ++k)
    for (std::int64_t e = 0; e < width; ++e)
      y.data<double>()[e] += shares[k] * table.data<double>()[picks[k] * width + e];
  return y;
}

ReadGradients read_backward(const Tensor& table, const std::vector<std::int32_t>& picks, const Tensor& sums,
                            const Tensor& dy, std::int64_t keys) {
  const std::int64_t width = table.shape()[1];
  const std::vector<double> shares = softmax(sums);
  ReadGradients d{Tensor::zeros({2, keys}, DType::f64), Tensor::zeros(table.shape(), DType::f64)};
  std::vector<double> dshares(picks.size(), 0);
  double dot = 0;
  for (std::size_t k = 0; k < picks.size(); ++k) {
    for (std::int64_t e = 0; e < width; ++e) {
      const std::int64_t at = picks[k] * width + e;
      dshares[k] += dy.data<double>()[e] * table.data<double>()[at];
      d.table.data<double>()[at] += shares[k] * dy.data<double>()[e];
    }
    dot += shares[k] * dshares[k];
  }
  for (std::size_t k = 0; k < picks.size(); ++k) {
    const double dsum = shares[k] * (dshares[k] - dot);
    d.scores.data<double>()[picks[k] / keys] += dsum;
    d.scores.data<double>()[keys + picks[k] % keys] += dsum;
  }
  return d;
}

}  // namespace sinkhorn::lesson
