// A text made ready: tokens to train and validate on, and what a bit per character means for it.
#pragma once
#include <optional>

#include "tools/compressors.h"
#include "tools/corpus.h"
#include "tools/tokenizer.h"

namespace sinkhorn {

struct Dataset {
  std::string name, note;   // as Corpus has them
  std::string fingerprint;  // of the whole text
  std::int64_t bytes = 0, characters = 0;
  Tokenizer tokenizer;
  Tokens tokens;  // all of them
  Split split;

  /// From nats per token of the validation text. A text that is not UTF-8 has as many characters as bytes.
  double bits_per_character(double nats_per_token) const;
  /// Makes the validation part the whole text.
  void use_whole_text();
  /// What compressors need for the validation text, in bits per character; of a long one, for its first 16 MiB, since
  /// they take a second for each one or two.
  std::vector<CompressedSize> compressed() const;

  std::string_view validation_text;
  std::int64_t validation_characters = 0;
  bool is_utf8 = true;

 private:
  friend Dataset load_dataset(const std::string&, const std::string&, std::int64_t, const std::optional<Tokenizer>&);
  std::int64_t characters_in(std::string_view text) const;
};

/// Reads `path` (empty: the default text). The tokenizer is `known`, or made from the text: `vocabulary` is char or
/// byte. Throws DataError for a text that cannot be read, is shorter than two sequences, or has characters without a
/// token.
Dataset load_dataset(const std::string& path, const std::string& vocabulary, std::int64_t seq_len,
                     const std::optional<Tokenizer>& known = {});

/// "bzip2 2.31, xz 2.40", or empty.
std::string to_text(const std::vector<CompressedSize>& compressed);

}  // namespace sinkhorn
