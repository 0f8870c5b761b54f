#include "tools/corpus.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

#include "autograd/error.h"
#include "autograd/rng.h"
#include "models/xxh64.h"
#include "tools/read_file.h"
#include "tools/utf8.h"

namespace sinkhorn {
namespace {

/// ASCII for the symbols of the Jargon File that have a plain equivalent; the others are left out.
std::string_view in_ascii(char32_t c) {
  switch (c) {
    case 0x2018:
    case 0x2019:
    case 0xB4:
      return "'";
    case 0x201C:
    case 0x201D:
      return "\"";
    case 0x2014:
    case 0x2212:
    case 0xB7:
      return "-";
    case 0xA0:
      return " ";
    case 0x2022:
      return "*";
    case 0xD7:
      return "x";
    case 0x2192:
      return "->";
    case 0xE9:
    case 0xE8:
    case 0xEA:
      return "e";
    case 0xC9:
      return "E";
    case 0xF6:
      return "o";
    case 0xFC:
      return "u";
    case 0xE0:
    case 0xE4:
      return "a";
    case 0xEF:
      return "i";
    default:
      return "";
  }
}

bool is_box_drawing(char32_t c) { return c >= 0x2500 && c < 0x2580; }

}  // namespace

std::string clean_jargon(const std::string& raw) {
  enum class Region { table_of_contents, prose, headwords };
  Region region = Region::table_of_contents;
  std::string text;
  int blank_lines = 0, titles = 0;
  for (std::size_t at = 0; at < raw.size();) {
    const std::size_t end = std::min(raw.find('\n', at), raw.size());
    const std::string_view line = std::string_view(raw).substr(at, end - at);
    at = end + 1;

    // The title stands in the table of contents and again above the text. Lists of headwords, one for the lexicon and
    // one below each initial (a line of its own), end where the first entry (":word:") begins.
    if (line.ends_with(" Welcome to the Jargon File") && ++titles == 2) region = Region::prose;
    if (region == Region::prose &&
        (line == "Glossary" || (line.size() == 3 && line.starts_with("  ") && line[2] != ' ')))
      region = Region::headwords;
    if (region == Region::headwords && line.starts_with("   :")) region = Region::prose;
    if (region != Region::prose) continue;

    std::string plain;
    bool table = false;
    for (std::size_t i = 0; i < line.size();) {
      const CodePoint c = first_code_point(line.substr(i));
      table = table || is_box_drawing(c.value);
      if (c.value == '\n' || (c.value >= 0x20 && c.value < 0x7F))
        plain += char(c.value);
      else
        plain += in_ascii(c.value);
      i += std::size_t(std::max(c.length, 1));
    }
    if (table) continue;
    plain.erase(0, plain.find_first_not_of(' '));
    plain.erase(plain.find_last_not_of(' ') + 1);
    blank_lines = plain.empty() ? blank_lines + 1 : 0;
    if (blank_lines < 2 && !(text.empty() && plain.empty())) text += plain + "\n";
  }
  return text;
}

std::string made_up_sentences(std::size_t bytes, std::uint64_t seed) {
  static constexpr std::array subjects = {"the compiler",   "a small model",  "the old engineer", "my neighbour",
                                          "the garden",     "an open window", "the library",      "every student",
                                          "the north wind", "a quiet cat"};
  static constexpr std::array verbs = {"remembers", "follows", "answers", "repairs",
                                       "sorts",     "finds",   "carries", "watches"};
  static constexpr std::array objects = {"the letters",       "a long road",       "the broken clock", "seven numbers",
                                         "the same question", "a bucket of water", "the last page",    "some bread",
                                         "an honest mistake", "the evening"};
  static constexpr std::array endings = {
      "", " without a word", " before noon", " in the rain", " once again", " for a friend"};
  const RandomBits random{seed, 0};
  std::uint64_t drawn = 0;
  const auto pick = [&](const auto& words) { return std::string(words[random.word(drawn++) % words.size()]); };
  std::string text;
  for (int sentence = 1; text.size() < bytes; ++sentence) {
    std::string line = pick(subjects) + " " + pick(verbs) + " " + pick(objects) + pick(endings);
    line[0] = char(line[0] - 'a' + 'A');
    text += line + (sentence % 5 == 0 ? ".\n" : ". ");
  }
  return text;
}

std::string Corpus::fingerprint() const {
  return fmt::format("{} bytes, {:016x}", text.view().size(), xxh64(text.view()));
}

Corpus load_corpus(const std::string& path) {
  if (!path.empty()) {
    Corpus corpus{TextBytes::of_file(path, "data"), path == "-" ? "standard input" : path, ""};
    if (corpus.text.view().empty()) fail<DataError>("data: ", corpus.name, " is empty; give a text to learn from");
    return corpus;
  }
  const char* named = std::getenv("SINKHORN_JARGON");
  const std::string jargon = named && *named ? named : "/usr/share/doc/jargon-text/jargon.txt.gz";
  std::string reason;
  try {
    Corpus corpus{TextBytes(clean_jargon(read_file(jargon, "the Jargon File"))), "the Jargon File (" + jargon + ")",
                  ""};
    if (corpus.text.view().size() > 100000) return corpus;
    reason = "the Jargon File: " + jargon + " does not hold it";
  } catch (const DataError& error) {
    reason = error.what();
  }
  return {TextBytes(made_up_sentences(1 << 20, 1)), "made-up sentences",
          reason + "; training on made-up sentences instead (install the package jargon-text, or give --data FILE)"};
}

Split split_tokens(const Tokens& tokens, std::int64_t seq_len, const std::string& name) {
  const std::int64_t count = tokens.size(), window = seq_len + 1;
  if (count < 2 * window)
    fail<DataError>("data: ", name, " has ", count, " tokens, but sequences of ", seq_len, " need at least ",
                    2 * window,
                    " (one to train on, one to validate, each with its next token); lower --seq-len or give more text");
  // The last tenth, or one sequence if a tenth is shorter.
  const std::int64_t cut = std::min(count - count / 10, count - window);
  return {tokens.slice(0, cut), tokens.slice(cut, count)};
}

}  // namespace sinkhorn
