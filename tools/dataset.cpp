#include "tools/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <numbers>

#include "tools/utf8.h"

namespace sinkhorn {

double Dataset::bits_per_character(double nats_per_token) const {
  return nats_per_token / std::numbers::ln2 * double(split.validation.size()) / double(validation_characters);
}

std::vector<CompressedSize> Dataset::compressed() const {
  const std::string_view part = validation_text.substr(0, 16 << 20);
  std::vector<CompressedSize> sizes = compressed_sizes(part);
  for (auto& size : sizes) size.bits /= double(characters_in(part));
  return sizes;
}

void Dataset::use_whole_text() {
  split.validation = tokens;
  validation_text = tokens.bytes();
  validation_characters = characters;
}

// Every character begins with one byte that does not continue another.
std::int64_t Dataset::characters_in(std::string_view text) const {
  const auto begins = [&](char c) { return !is_utf8 || (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
  return std::max<std::int64_t>(1, std::count_if(text.begin(), text.end(), begins));
}

Dataset load_dataset(const std::string& path, const std::string& vocabulary, std::int64_t seq_len,
                     const std::optional<Tokenizer>& known) {
  const Corpus corpus = load_corpus(path);
  const std::string_view text = corpus.text.view();
  const std::string where = "data: " + corpus.name;
  Dataset data;
  data.name = corpus.name;
  data.note = corpus.note;
  data.fingerprint = corpus.fingerprint();
  data.bytes = std::int64_t(text.size());
  data.tokenizer = known ? *known : vocabulary == "byte" ? Tokenizer::bytes() : Tokenizer::characters(text, where);
  data.tokens = Tokens(corpus.text, data.tokenizer, where);
  data.split = split_tokens(data.tokens, seq_len, corpus.name);
  data.validation_text = data.split.validation.bytes();
  data.is_utf8 = !data.tokenizer.is_bytes() || !first_invalid_byte(text);
  data.characters = data.tokenizer.is_bytes() ? data.characters_in(text) : data.tokens.size();
  data.validation_characters = data.characters_in(data.validation_text);
  return data;
}

std::string to_text(const std::vector<CompressedSize>& compressed) {
  std::string text;
  for (const auto& size : compressed)
    text += fmt::format("{}{} {:.2f}", text.empty() ? "" : ", ", size.program, size.bits);
  return text;
}

}  // namespace sinkhorn
