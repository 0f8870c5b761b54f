// UTF-8 in both directions: strict code points for text that is read, repaired text for bytes that a model writes.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sinkhorn {

/// The code point at the front of `text` and its length; length 0 if the bytes there are not UTF-8 (overlong forms,
/// surrogates and values past U+10FFFF are not).
struct CodePoint {
  char32_t value = 0;
  int length = 0;
  bool cut_short = false;  // length is 0 only because `text` ends inside a character
};
CodePoint first_code_point(std::string_view text);

void append_utf8(std::string& text, char32_t code_point);
/// The offset of the first byte that is not UTF-8, if there is one.
std::optional<std::size_t> first_invalid_byte(std::string_view text);
/// "'é' (U+00E9)", or only the number for what does not print.
std::string describe_code_point(char32_t code_point);

/// Turns pieces of bytes into pieces of valid text as they come: a character cut in two waits for its rest, and bytes
/// that are no character become U+FFFD.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);
  /// What is left of a character that never ended.
  std::string finish();

 private:
  std::string waiting_;
};

}  // namespace sinkhorn
