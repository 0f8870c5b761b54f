#include "tools/tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "autograd/error.h"
#include "tools/utf8.h"

namespace sinkhorn {
namespace {

[[noreturn]] void refuse_bytes(const std::string& where, std::size_t offset) {
  fail<DataError>(where, ": the byte at offset ", offset,
                  " is not UTF-8 text; use --vocabulary byte, which takes any file");
}

template <class See>
void for_each_code_point(std::string_view text, const std::string& where, See see) {
  for (std::size_t at = 0; at < text.size();) {
    if (const auto byte = static_cast<unsigned char>(text[at]); byte < 0x80) {
      see(char32_t(byte), at++);
      continue;
    }
    const CodePoint c = first_code_point(text.substr(at));
    if (c.length == 0) refuse_bytes(where, at);
    see(c.value, at);
    at += std::size_t(c.length);
  }
}

}  // namespace

Tokenizer Tokenizer::bytes() { return {}; }

Tokenizer Tokenizer::characters(std::string_view text, const std::string& where) {
  std::vector<bool> seen(0x110000);
  for_each_code_point(text, where, [&](char32_t c, std::size_t) { seen[c] = true; });
  std::string in_order;
  for (char32_t c = 0; c < seen.size(); ++c)
    if (seen[c]) append_utf8(in_order, c);
  return symbols(in_order, where);
}

Tokenizer Tokenizer::symbols(std::string_view text, const std::string& where) {
  Tokenizer tokenizer;
  tokenizer.bytes_ = false;
  tokenizer.ascii_.fill(-1);
  for_each_code_point(text, where, [&](char32_t c, std::size_t) {
    const auto [first, added] = tokenizer.tokens_.emplace(c, std::int32_t(tokenizer.characters_.size()));
    if (!added)
      fail<DataError>(where, ": the character ", describe_code_point(c), " stands at places ", first->second, " and ",
                      tokenizer.characters_.size(), " (counted from 0); every token needs a character of its own");
    tokenizer.characters_ += c;
    if (c < tokenizer.ascii_.size()) tokenizer.ascii_[c] = first->second;
  });
  return tokenizer;
}

std::string Tokenizer::to_json() const {
  if (bytes_) return R"({"kind": "byte"})";
  std::string text;
  for (const char32_t c : characters_) append_utf8(text, c);
  return R"({"kind": "char", "characters": )" + nlohmann::json(text).dump() + "}";
}

Tokenizer Tokenizer::from_json(std::string_view json, const std::string& where) {
  const auto object = nlohmann::json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  const auto text = [&](const char* name) {
    const bool there = object.is_object() && object.contains(name) && object[name].is_string();
    return there ? object[name].get<std::string>() : std::string();
  };
  if (text("kind") == "byte") return bytes();
  if (text("kind") != "char" || text("characters").empty())
    fail<DataError>(where, ": the vocabulary is not one of ours");
  return symbols(text("characters"), where);
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, const std::string& where) const {
  std::vector<std::int32_t> ids;
  ids.reserve(text.size());
  if (bytes_) {
    for (const char byte : text) ids.push_back(static_cast<unsigned char>(byte));
    return ids;
  }
  for_each_code_point(text, where, [&](char32_t c, std::size_t) { ids.push_back(token_of(c, where)); });
  return ids;
}

std::int64_t Tokenizer::walk(std::string_view text, const std::string& where,
                             const std::function<void(std::int64_t place, std::size_t offset)>& see) const {
  std::int64_t place = 0;
  if (bytes_) {
    for (; place < std::int64_t(text.size()); ++place) see(place, std::size_t(place));
    return place;
  }
  for_each_code_point(text, where, [&](char32_t c, std::size_t offset) {
    token_of(c, where);
    see(place++, offset);
  });
  return place;
}

std::int32_t Tokenizer::token_of(char32_t character, const std::string& where) const {
  if (character < ascii_.size() && ascii_[character] >= 0) return ascii_[character];
  const auto found = tokens_.find(character);
  if (found == tokens_.end())
    fail<DataError>(where, ": the character ", describe_code_point(character), " is not in the vocabulary of ", size(),
                    " characters; use only characters of the training text, or train with --vocabulary byte");
  return found->second;
}

std::string Tokenizer::piece(std::int32_t token) const {
  if (token < 0 || token >= size()) fail("tokenizer: token ", token, " is outside the vocabulary of ", size());
  if (bytes_) return std::string(1, char(token));
  std::string text;
  append_utf8(text, characters_[std::size_t(token)]);
  return text;
}

std::string Tokenizer::decode(const std::vector<std::int32_t>& tokens) const {
  Utf8Stream stream;
  std::string text;
  for (const auto token : tokens) text += stream.push(piece(token));
  return text + stream.finish();
}

void require_same_vocabulary(const Tokenizer& data, const Tokenizer& checkpoint, const std::string& checkpoint_name) {
  if (data == checkpoint) return;
  const auto kind = [](const Tokenizer& t) { return t.is_bytes() ? "bytes" : "characters"; };
  std::string first;
  if (!data.is_bytes() && !checkpoint.is_bytes()) {
    const auto missing = [&](const Tokenizer& from, const Tokenizer& in, const char* says) {
      for (std::int32_t i = 0; first.empty() && i < from.size(); ++i) {
        const std::string piece = from.piece(i);
        try {
          in.encode(piece, "");
        } catch (const DataError&) {
          first = std::string("; ") + describe_code_point(first_code_point(piece).value) + says;
        }
      }
    };
    missing(data, checkpoint, " is only in the data");
    missing(checkpoint, data, " is only in the checkpoint");
  }
  fail<DataError>("vocabulary: the data has ", data.size(), " ", kind(data), ", ", checkpoint_name,
                  " was trained with ", checkpoint.size(), " ", kind(checkpoint), first,
                  "; give the data it was trained on, or start a new run with --out");
}

}  // namespace sinkhorn
