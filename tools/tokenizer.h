// Text to tokens and back: one token per Unicode code point, or one per byte.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sinkhorn {

class Tokenizer {
 public:
  /// 256 tokens; takes any file.
  static Tokenizer bytes();
  /// The distinct code points of `text`, in order of their numbers. Throws DataError, beginning with
  /// `where`, if `text` is not UTF-8.
  static Tokenizer characters(std::string_view text, const std::string& where = "data");
  /// The code points of `text` in their own order: the first is token 0. Throws DataError, beginning with `where`, if
  /// `text` is not UTF-8 or one occurs twice.
  static Tokenizer symbols(std::string_view text, const std::string& where);
  /// Reads what `to_json` wrote. Throws DataError, beginning with `where`.
  static Tokenizer from_json(std::string_view json, const std::string& where);
  /// {"kind": "char", "characters": "\n !..."} or {"kind": "byte"}.
  std::string to_json() const;

  bool is_bytes() const { return bytes_; }
  std::int64_t size() const { return bytes_ ? 256 : std::int64_t(characters_.size()); }
  /// Throws DataError, beginning with `where`, naming the first character that has no token, or the first byte that is
  /// not UTF-8.
  std::vector<std::int32_t> encode(std::string_view text, const std::string& where) const;
  /// Goes over a text as `encode` does, with its errors, but keeps nothing: calls see(place, offset) for the place of
  /// every token and the offset of its first byte. Returns how many there are.
  std::int64_t walk(std::string_view text, const std::string& where,
                    const std::function<void(std::int64_t place, std::size_t offset)>& see) const;
  /// The bytes of one token; those of a character are complete, a single byte's may be part of one.
  std::string piece(std::int32_t token) const;
  /// Valid UTF-8 for any tokens; what is no character becomes U+FFFD. Throws Error for a token out of range.
  std::string decode(const std::vector<std::int32_t>& tokens) const;

  bool operator==(const Tokenizer& other) const { return bytes_ == other.bytes_ && characters_ == other.characters_; }

 private:
  /// Throws DataError, beginning with `where`, if the character has none.
  std::int32_t token_of(char32_t character, const std::string& where) const;

  bool bytes_ = true;
  std::u32string characters_;  // token -> code point
  std::unordered_map<char32_t, std::int32_t> tokens_;
  std::array<std::int32_t, 128> ascii_{};  // the tokens of most characters of most texts; -1: none
};

/// Throws DataError saying how the vocabulary of the data differs from that of a checkpoint; returns if they are equal.
void require_same_vocabulary(const Tokenizer& data, const Tokenizer& checkpoint, const std::string& checkpoint_name);

}  // namespace sinkhorn
