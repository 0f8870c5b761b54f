// The text to train on: a user's file, the Jargon File, or sentences made up where that cannot be had.
#pragma once
#include <cstdint>
#include <string>

#include "tools/tokens.h"

namespace sinkhorn {

struct Corpus {
  TextBytes text;
  std::string name;  // for people: the path, or which default it is
  std::string note;  // why this is not what was asked for, if so
  /// Names the content, so that a resumed run can tell that its data changed.
  std::string fingerprint() const;
};

/// Opens `path` (plain, which is mapped; gzip; or "-"); empty: the default text, from the file that SINKHORN_JARGON
/// names or from Debian's jargon-text package, else made-up sentences, with the reason in `note`. Throws DataError for
/// an empty or unreadable file.
Corpus load_corpus(const std::string& path);

/// Prose of the Jargon File: its lists of headwords and tables left out, ASCII throughout, without indents.
std::string clean_jargon(const std::string& raw);
/// About `bytes` bytes of English sentences from a small grammar, the same for the same seed.
std::string made_up_sentences(std::size_t bytes, std::uint64_t seed);

/// Tokens for training (the first 90 %) and for validation (the rest). Throws DataError, naming both numbers, if either
/// part is shorter than one sequence and its next token.
struct Split {
  Tokens train, validation;
};
Split split_tokens(const Tokens& tokens, std::int64_t seq_len, const std::string& name);

}  // namespace sinkhorn
