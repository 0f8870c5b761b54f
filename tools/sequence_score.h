// How near predicted sequences come to the right ones.
#pragma once
#include <cstdint>
#include <vector>

namespace sinkhorn {

/// The fewest insertions, deletions and replacements that turn one sequence into the other (Levenshtein 1966).
std::int64_t edit_distance(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b);

/// Means over sequences, each in [0, 1]. A sequence is right with the token `end` behind it.
class SequenceScore {
 public:
  /// `predicted` counts up to its first end; none is wrong. Token by token, what stands behind that end counts too, as
  /// it does where every token was predicted from the right ones before it.
  void add(const std::vector<std::int32_t>& predicted, const std::vector<std::int32_t>& right, std::int32_t end);

  std::int64_t sequences() const { return sequences_; }
  /// Sequences that are right from the first token to the end.
  double exact_match() const { return mean(exact_, sequences_); }
  /// Tokens, ends included, that stand where they should.
  double token_accuracy() const { return mean(right_tokens_, tokens_); }
  /// Edit distance without ends, divided by the longer length.
  double edit_distance() const { return mean(distance_, sequences_); }

 private:
  static double mean(double sum, std::int64_t count) { return count > 0 ? sum / double(count) : 0; }

  std::int64_t sequences_ = 0, tokens_ = 0;
  double exact_ = 0, right_tokens_ = 0, distance_ = 0;
};

}  // namespace sinkhorn
