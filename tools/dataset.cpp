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
  std::vector<CompressedSize> sizes = compressed_sizes(validation_text);
  for (auto& size : sizes) size.bits /= double(validation_characters);
  return sizes;
}

void Dataset::use_whole_text() {
  split.validation.insert(split.validation.begin(), split.train.begin(), split.train.end());
  std::string text;
  for (const std::int32_t token : split.train) text += tokenizer.piece(token);
  validation_text.insert(0, text);
  validation_characters = characters;
}

Dataset load_dataset(const std::string& path, const std::string& vocabulary, std::int64_t seq_len,
                     const std::optional<Tokenizer>& known) {
  const Corpus corpus = load_corpus(path);
  Dataset data{.name = corpus.name,
               .note = corpus.note,
               .fingerprint = corpus.fingerprint(),
               .bytes = std::int64_t(corpus.text.size()),
               .tokenizer = known                  ? *known
                            : vocabulary == "byte" ? Tokenizer::bytes()
                                                   : Tokenizer::characters(corpus.text, "data: " + corpus.name),
               .split = {},
               .validation_text = {}};
  data.split = split_tokens(data.tokenizer.encode(corpus.text, "data: " + corpus.name), seq_len, corpus.name);
  for (const std::int32_t token : data.split.validation) data.validation_text += data.tokenizer.piece(token);
  // Every character begins with one byte that does not continue another.
  const bool is_text = !first_invalid_byte(corpus.text);
  const auto begins = [&](char c) { return !is_text || (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
  data.characters = std::count_if(corpus.text.begin(), corpus.text.end(), begins);
  data.validation_characters =
      std::max<std::int64_t>(1, std::count_if(data.validation_text.begin(), data.validation_text.end(), begins));
  return data;
}

std::string to_text(const std::vector<CompressedSize>& compressed) {
  std::string text;
  for (const auto& size : compressed)
    text += fmt::format("{}{} {:.2f}", text.empty() ? "" : ", ", size.program, size.bits);
  return text;
}

}  // namespace sinkhorn
