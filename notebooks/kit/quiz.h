// Questions with computed answers: other numbers for every seed, so that an answer is worked out and not remembered.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "autograd/rng.h"

namespace sinkhorn::lessons {

struct Question {
  std::string text;
  std::string because;  // shown with the answer
  // One of the two:
  double number = 0, tolerance = 0;  // right: |x - number| <= tolerance * max(1e-6, |number|)
  std::vector<std::string> choices;  // the right one is `right`
  std::size_t right = 0;

  /// A question for a number. 1 % off is right; a count (tolerance 0) must be exact.
  static Question about_number(std::string text, double answer, std::string because, double tolerance = 0.01) {
    return {std::move(text), std::move(because), answer, tolerance, {}, 0};
  }
  /// A question with choices, the right one first; the quiz shuffles them by its seed.
  static Question with_choices(std::string text, std::vector<std::string> right_first, std::string because) {
    return {std::move(text), std::move(because), 0, 0, std::move(right_first), 0};
  }

  /// Whether an answer is right: a number, or the number (1 ...) of a choice. Text that is neither is wrong.
  bool accepts(const std::string& answer) const;
  /// What the right answer is, as text.
  std::string answer() const;
  /// With its choices in an order drawn from `rng`.
  Question shuffled(Rng rng) const;
};
using Quiz = std::vector<Question>;

/// A number of U(low, high) with at most so many decimals. A question shows it as it is, and its answer is computed
/// from what it shows.
double rounded(Rng rng, double low, double high, int decimals);
/// A whole number low .. high.
std::int64_t whole(Rng rng, std::int64_t low, std::int64_t high);

}  // namespace sinkhorn::lessons
