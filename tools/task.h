// Synthetic tasks with a known right answer for every question: what to learn when the model itself is in question.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "autograd/rng.h"
#include "tools/tokenizer.h"

namespace sinkhorn {

/// Uniform whole numbers, one after another, from a place of a counter-based stream.
class Draws {
 public:
  Draws(RandomBits bits, std::uint64_t first) : bits_(bits), next_(first) {}
  /// 0 .. end-1.
  std::int64_t below(std::int64_t end) { return std::int64_t(std::uint64_t(bits_.word(next_++)) * end >> 32); }

 private:
  RandomBits bits_;
  std::uint64_t next_;
};

/// A question and its only right answer, in tokens.
struct TaskExample {
  std::vector<std::int32_t> source, target;
};

/// The tokens 0 and 1 end an answer and part source from target; the symbols follow. The length of an example counts
/// source symbols, in recall pairs.
///
/// | name      | source                                       | target                    |
/// |-----------|----------------------------------------------|---------------------------|
/// | copy      | x1 .. xn                                     | x1 .. xn                  |
/// | duplicate | x1 .. xn                                     | x1 .. xn x1 .. xn         |
/// | reverse   | x1 .. xn                                     | xn .. x1                  |
/// | sort      | x1 .. xn                                     | the same, ascending       |
/// | add-one   | x1 .. xn                                     | x + 1, the last wraps to 0 |
/// | recall    | k1 v1 .. kn vn kj, distinct keys             | vj                        |
///
/// Symbols are uniform. Recall has `symbols` keys and as many values, which are other tokens.
class Task {
 public:
  static const std::vector<std::string>& names();
  /// Throws UsageError for an unknown name, or too few or too many symbols.
  Task(const std::string& name, std::int64_t symbols);

  static constexpr std::int32_t end = 0, separator = 1, first_symbol = 2;
  static constexpr std::int64_t most_symbols = 200;

  const std::string& name() const { return name_; }
  std::int64_t symbols() const { return symbols_; }
  std::int64_t num_tokens() const { return first_symbol + symbols_ * (kind_ == Kind::recall ? 2 : 1); }
  /// The longest example there is: recall's keys are distinct. 0: no limit.
  std::int64_t longest() const { return kind_ == Kind::recall ? symbols_ : 0; }
  std::int64_t source_length(std::int64_t length) const { return kind_ == Kind::recall ? 2 * length + 1 : length; }
  std::int64_t target_length(std::int64_t length) const;
  /// Tokens that a model reads: of `source SEPARATOR target END` all but the END; the longer of both parts where an
  /// encoder reads `source` and a decoder `SEPARATOR target`.
  std::int64_t input_length(std::int64_t length, bool encoder_decoder) const;

  TaskExample draw(Draws& draws, std::int64_t length) const;
  /// The target of a source. Throws DataError, beginning with `where`, if it is no source of this task.
  std::vector<std::int32_t> answer(const std::vector<std::int32_t>& source, const std::string& where) const;

  /// A character for each token: `.` ends, `/` separates, symbols are 0-9, A-Z, a-z, then letters with accents. Their
  /// order is that of the tokens.
  Tokenizer tokenizer() const;
  /// "0-9", "0-9, A-F".
  std::string alphabet() const;
  /// The source that a user typed, with or without the separator at its end. Throws DataError, beginning with `where`,
  /// naming the first character that is no symbol.
  std::vector<std::int32_t> parse_source(const std::string& text, const std::string& where) const;

 private:
  enum class Kind { copy, duplicate, reverse, sort, add_one, recall };
  std::string name_;
  Kind kind_;
  std::int64_t symbols_;
};

}  // namespace sinkhorn
