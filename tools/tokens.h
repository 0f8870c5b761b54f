// The tokens of a text by their places, read from its bytes when asked for: a text larger than memory has some, too.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tools/text_bytes.h"
#include "tools/tokenizer.h"

namespace sinkhorn {

/// Copies and slices share the text. Safe to read from several threads.
class Tokens {
 public:
  Tokens() = default;
  Tokens(std::vector<std::int32_t> tokens);
  /// Reads the text once from end to end. Throws DataError as Tokenizer::encode does.
  Tokens(const TextBytes& text, const Tokenizer& tokenizer, const std::string& where);

  std::int64_t size() const { return end_ - begin_; }
  /// Tokens begin .. end-1 of these.
  Tokens slice(std::int64_t begin, std::int64_t end) const;
  /// Writes tokens first .. first+count-1. Throws DataError if the text is a file that was changed.
  void copy(std::int64_t first, std::int64_t count, std::int32_t* to) const;
  std::vector<std::int32_t> to_vector() const;
  /// What they stand for in the text; empty if they are of none.
  std::string_view bytes() const;

 private:
  struct State;
  std::size_t offset_of(std::int64_t place) const;

  std::shared_ptr<const State> state_;
  std::int64_t begin_ = 0, end_ = 0;
};

}  // namespace sinkhorn
