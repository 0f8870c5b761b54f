// The iterations of one sorting matrix, each computed by the op that the model trains with.
#pragma once
#include <optional>
#include <vector>

#include "tools/sort_scores.h"

namespace sinkhorn {

/// How a head's scores become a sorting matrix.
struct SortSetting {
  double temperature = 0.75;
  bool noise = false;
  std::uint64_t seed = 1;  // of the noise
  std::uint32_t draw = 0;  // which noise of that seed
  bool causal = false;     // query bucket u sees key buckets 0 .. u alone
  bool operator==(const SortSetting&) const = default;
};

/// max |row sum - target| and max |column sum - 1|. A row's target is M / N, 1 for a square matrix; columns that do not
/// exist count in neither.
struct SortErrors {
  double rows = 0, columns = 0;
};
SortErrors errors_of(const Tensor& matrix, const Tensor& open = {});

/// (log scores + noise) / temperature, -inf where the causal mask closes: what the op `sinkhorn` is given (N, M).
Tensor sinkhorn_input(const SortHead& head, const SortSetting& setting);
/// Matrix `iteration` of a head that sorts by Gumbel-Sinkhorn. 0 is exp(input), all of it divided by the largest entry;
/// k is sinkhorn(input, open, k).
Tensor sorting_step(const SortHead& head, const Tensor& input, std::int64_t iteration);

/// The matrices of one setting, computed when they are asked for. The head must live as long.
class SortSteps {
 public:
  SortSteps(const SortHead& head, const SortSetting& setting, std::int64_t iterations);

  std::int64_t iterations() const { return std::int64_t(errors_.size()) - 1; }
  /// Of iteration 0 .. iterations(); keeps the last one asked for.
  const Tensor& matrix(std::int64_t iteration);
  SortErrors errors(std::int64_t iteration);
  /// Of all iterations so far; nothing where none was computed.
  const std::vector<std::optional<SortErrors>>& known_errors() const { return errors_; }
  /// Computes the errors of one iteration that lacks them; false if none does.
  bool compute_one();

 private:
  const SortHead& head_;
  Tensor input_, matrix_;
  std::int64_t held_ = -1;  // the iteration of matrix_
  std::vector<std::optional<SortErrors>> errors_;
};

/// What the differentiable top-k makes of a head's scores at a temperature: picks and weights (N, n), and the weights
/// as a matrix (N, nulls + M).
struct SortChoice {
  Tensor picks, weights, matrix;
};
SortChoice choose_buckets(const SortHead& head, double temperature);

}  // namespace sinkhorn
