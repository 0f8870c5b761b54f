#include "tools/sort_steps.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "autograd/ops.h"

namespace sinkhorn {
namespace {

/// bool (N, M): true where column j <= row i.
Tensor past(std::int64_t rows, std::int64_t columns) {
  Tensor allowed(Shape{rows, columns}, DType::boolean);
  bool* out = allowed.data<bool>();
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j) *out++ = j <= i;
  return allowed;
}

}  // namespace

SortErrors errors_of(const Tensor& matrix, const Tensor& open) {
  const std::int64_t rows = matrix.shape()[0], columns = matrix.shape()[1];
  const std::vector<double> cells = matrix.to_vector();
  std::vector<double> row_sums(std::size_t(rows), 0), column_sums(std::size_t(columns), 0);
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j) {
      const double x = cells[std::size_t(i * columns + j)];
      row_sums[std::size_t(i)] += x;
      column_sums[std::size_t(j)] += x;
    }
  const auto exists = [&](std::int64_t j) { return !open || open.data<bool>()[j]; };
  SortErrors errors;
  double existing = 0;
  for (std::int64_t j = 0; j < columns; ++j) {
    if (!exists(j)) continue;
    ++existing;
    errors.columns = std::max(errors.columns, std::abs(column_sums[std::size_t(j)] - 1));
  }
  for (const double sum : row_sums) errors.rows = std::max(errors.rows, std::abs(sum - existing / double(rows)));
  return errors;
}

Tensor sinkhorn_input(const SortHead& head, const SortSetting& setting) {
  const Shape s = head.scores.shape();
  Var scores = head.scores;
  if (setting.noise)
    scores = add(scores, gumbel(Rng(setting.seed).split(1).split(setting.draw), s, scores.value.dtype()));
  scores = scale(scores, 1 / setting.temperature);
  if (setting.causal) scores = mask_fill(scores, past(s[0], s[1]), -std::numeric_limits<double>::infinity());
  return scores.value;
}

Tensor sorting_step(const SortHead& head, const Tensor& input, std::int64_t iteration) {
  const Shape s = input.shape();
  const Tensor open = head.open ? head.open : Tensor::full({s[1]}, 1, DType::boolean);
  if (iteration > 0) return sinkhorn(Var(input), open, iteration).value;
  Var closed = mask_fill(Var(input), open, -std::numeric_limits<double>::infinity());
  double largest = -std::numeric_limits<double>::infinity();
  for (const double x : closed.value.to_vector()) largest = std::max(largest, x);
  if (std::isinf(largest)) return Tensor::zeros(s, input.dtype());
  return exp(scale(closed, 1, -largest)).value;
}

SortSteps::SortSteps(const SortHead& head, const SortSetting& setting, std::int64_t iterations)
    : head_(head), input_(sinkhorn_input(head, setting)), errors_(std::size_t(iterations + 1)) {}

const Tensor& SortSteps::matrix(std::int64_t iteration) {
  if (held_ != iteration) {
    matrix_ = sorting_step(head_, input_, iteration);
    held_ = iteration;
  }
  auto& errors = errors_[std::size_t(iteration)];
  if (!errors) errors = errors_of(matrix_, head_.open);
  return matrix_;
}

SortErrors SortSteps::errors(std::int64_t iteration) {
  auto& errors = errors_[std::size_t(iteration)];
  if (!errors) errors = errors_of(sorting_step(head_, input_, iteration), head_.open);
  return *errors;
}

bool SortSteps::compute_one() {
  const auto missing = std::find(errors_.begin(), errors_.end(), std::nullopt);
  if (missing == errors_.end()) return false;
  errors(missing - errors_.begin());
  return true;
}

SortChoice choose_buckets(const SortHead& head, double temperature) {
  const std::int64_t n = head.picks.shape()[-1], columns = head.scores.shape()[1];
  const TopK chosen = top_k(Var(head.scores), n, temperature);
  const Shape s = chosen.picks.shape();  // (N, n)
  const std::int64_t rows = s[0];
  // The picks of a row are different columns, so their sum is what stands at each.
  const Var each = sorting_matrix(reshape(chosen.weights, {1, rows, n}), chosen.picks.reshape({1, rows, n}), columns);
  return {chosen.picks, chosen.weights.value, sum(reshape(each, {rows, n, columns}), 1).value.reshape({rows, columns})};
}

}  // namespace sinkhorn
