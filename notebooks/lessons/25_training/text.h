// A source of text whose entropy is known exactly: sentences from a small grammar, every choice as likely as the
// others.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "autograd/rng.h"

namespace sinkhorn::lessons::lesson_25_training {

/// "the cat sees a song. ": one of each list, in order.
struct Grammar {
  std::vector<std::vector<std::string>> lists = {
      {"the cat", "a dog", "the old king", "a small bird", "my sister", "the moon", "nobody", "a wise owl"},
      {"sees", "likes", "follows", "fears", "forgets", "paints", "answers", "hides"},
      {"the sea", "a red house", "the queen", "my brother", "a song", "the long road", "an apple", "the rain"}};

  /// Whole sentences, at least `least` characters.
  std::string text(std::size_t least, const Rng& rng) const {
    std::string result;
    for (std::uint64_t word = 0; result.size() < least;) {
      for (const auto& list : lists) result += list[rng.bits().word(word++) % list.size()] + " ";
      result.back() = '.';
      result += ' ';
    }
    return result;
  }
  /// Nats per character that nobody can save, however much is known: the choices of a sentence over its mean length.
  double entropy() const {
    double choices = 0, length = 1;  // the full stop
    for (const auto& list : lists) {
      choices += std::log(double(list.size()));
      double letters = 0;
      for (const std::string& words : list) letters += double(words.size());
      length += letters / double(list.size()) + 1;
    }
    return choices / length;
  }
};

/// Text as ids, 0 for the first letter of the vocabulary, in alphabetical order.
struct Encoded {
  std::string vocabulary;
  std::vector<std::int32_t> ids;

  explicit Encoded(const std::string& text) : vocabulary(text) {
    std::sort(vocabulary.begin(), vocabulary.end());
    vocabulary.erase(std::unique(vocabulary.begin(), vocabulary.end()), vocabulary.end());
    ids = encode(text);
  }
  std::vector<std::int32_t> encode(const std::string& text) const {
    std::vector<std::int32_t> result;
    result.reserve(text.size());
    for (const char letter : text) result.push_back(std::int32_t(vocabulary.find(letter)));
    return result;
  }
  std::string decode(const std::vector<std::int32_t>& tokens) const {
    std::string text;
    for (const std::int32_t token : tokens) text += vocabulary[std::size_t(token)];
    return text;
  }
  double size() const { return double(vocabulary.size()); }
};

/// Windows (rows, length + 1) of ids, drawn at random.
inline Tensor windows(const std::vector<std::int32_t>& ids, std::int64_t rows, std::int64_t length, const Rng& rng) {
  Tensor result({rows, length + 1}, DType::i32);
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto begin =
        std::int64_t(rng.bits().word(std::uint64_t(r)) % std::uint64_t(std::int64_t(ids.size()) - length));
    std::copy_n(ids.begin() + begin, length + 1, result.span<std::int32_t>().begin() + r * (length + 1));
  }
  return result;
}

/// Entropy of a letter in nats, from the text's frequencies: what is left to learn for who knows nothing else.
inline double unigram_entropy(const std::vector<std::int32_t>& ids) {
  std::map<std::int32_t, double> counts;
  for (const std::int32_t id : ids) ++counts[id];
  double entropy = 0;
  for (const auto& [id, count] : counts) entropy -= count / double(ids.size()) * std::log(count / double(ids.size()));
  return entropy;
}

/// Entropy of a letter when the letter before it is known.
inline double bigram_entropy(const std::vector<std::int32_t>& ids) {
  std::map<std::int32_t, double> first;
  std::map<std::pair<std::int32_t, std::int32_t>, double> pairs;
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    ++first[ids[i]];
    ++pairs[{ids[i], ids[i + 1]}];
  }
  double entropy = 0;
  for (const auto& [pair, count] : pairs)
    entropy -= count / double(ids.size() - 1) * std::log(count / first[pair.first]);
  return entropy;
}

}  // namespace sinkhorn::lessons::lesson_25_training
