// Product keys for one query: finding the best slots of a memory, reading them, and the gradient. What the exercise is
// to write.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "autograd/tensor.h"

namespace sinkhorn::lesson {

/// How well a half of the query fits a key of that half; and the sum of two such scores. Scores can be compared and
/// added. Additions are counted.
class Score {
 public:
  Score() = default;
  explicit Score(double value) : value_(value) {}
  friend bool operator==(const Score& a, const Score& b) { return a.value_ == b.value_; }
  friend bool operator<(const Score& a, const Score& b) { return a.value_ < b.value_; }
  friend bool operator>(const Score& a, const Score& b) { return b < a; }
  friend bool operator<=(const Score& a, const Score& b) { return a.value_ <= b.value_; }
  friend bool operator>=(const Score& a, const Score& b) { return b <= a; }
  friend Score operator+(const Score& a, const Score& b) {
    ++additions;
    return Score(a.value_ + b.value_);
  }
  static inline std::int64_t additions = 0;

 private:
  double value_ = 0;
};

/// The slots of the n largest sums first[i] + second[j], largest first; of equal sums the lowest slot comes first. Both
/// lists have `keys` scores, n <= keys, and the pair (i, j) is slot i * keys + j. Forms at most n * n sums.
std::vector<std::int32_t> top_slots(std::span<const Score> first, std::span<const Score> second, std::int64_t n);

/// y (D) = sum over k of softmax(sums)[k] table[picks[k]]: a table (keys * keys, D), picks and sums (n), all f64.
Tensor read(const Tensor& table, const std::vector<std::int32_t>& picks, const Tensor& sums);

/// What read() sends back for a gradient dy (D).
struct ReadGradients {
  Tensor scores;  // (2, keys): of first and of second, where sums[k] = first[i] + second[j] for the pick i * keys + j
  Tensor table;   // (keys * keys, D)
};
ReadGradients read_backward(const Tensor& table, const std::vector<std::int32_t>& picks, const Tensor& sums,
                            const Tensor& dy, std::int64_t keys);

}  // namespace sinkhorn::lesson
