// Scores of predicted sequences, on cases worked out by hand.
#include "tools/sequence_score.h"

#include <gtest/gtest.h>

#include <string>

#include "autograd/rng.h"

namespace sinkhorn {
namespace {

std::vector<std::int32_t> letters(const std::string& text) { return {text.begin(), text.end()}; }

std::int64_t distance(const std::string& a, const std::string& b) { return edit_distance(letters(a), letters(b)); }

TEST(EditDistance, KnownAnswers) {
  EXPECT_EQ(distance("kitten", "sitting"), 3);
  EXPECT_EQ(distance("saturday", "sunday"), 3);
  EXPECT_EQ(distance("intention", "execution"), 5);
  EXPECT_EQ(distance("", ""), 0);
  EXPECT_EQ(distance("", "abc"), 3);
  EXPECT_EQ(distance("abc", ""), 3);
  EXPECT_EQ(distance("abc", "abc"), 0);
  EXPECT_EQ(distance("abcdef", "bcdefa"), 2);  // a shift is one deletion and one insertion
  EXPECT_EQ(distance("ab", "ba"), 2);
}

TEST(EditDistance, IsAMetric) {
  const auto word = [](std::uint32_t i) {
    const RandomBits random = Rng(5).split(i).bits();
    std::vector<std::int32_t> w(random.word(0) % 9);
    for (std::size_t t = 0; t < w.size(); ++t) w[t] = std::int32_t(random.word(t + 1) % 3);
    return w;
  };
  for (std::uint32_t i = 0; i < 300; i += 3) {
    const auto a = word(i), b = word(i + 1), c = word(i + 2);
    EXPECT_EQ(edit_distance(a, b), edit_distance(b, a));
    EXPECT_EQ(edit_distance(a, b) == 0, a == b);
    EXPECT_LE(edit_distance(a, c), edit_distance(a, b) + edit_distance(b, c));
    EXPECT_LE(edit_distance(a, b), std::int64_t(std::max(a.size(), b.size())));
    EXPECT_GE(edit_distance(a, b), std::abs(std::int64_t(a.size()) - std::int64_t(b.size())));
  }
}

SequenceScore score(const std::string& predicted, const std::string& right) {
  SequenceScore s;
  s.add(letters(predicted), letters(right), '.');
  return s;
}

void expect_score(const SequenceScore& s, double exact, double tokens, double distance) {
  EXPECT_DOUBLE_EQ(s.exact_match(), exact);
  EXPECT_DOUBLE_EQ(s.token_accuracy(), tokens);
  EXPECT_DOUBLE_EQ(s.edit_distance(), distance);
}

TEST(SequenceScore, CasesByHand) {
  expect_score(score("abc.", "abc"), 1, 1, 0);
  expect_score(score("abcd", "abc"), 0, 0.75, 0.25);     // no end: one token too many
  expect_score(score("abc", "abc"), 0, 0.75, 0);         // all there, but it did not end
  expect_score(score("ab.", "abc"), 0, 0.5, 1.0 / 3);    // ended early
  expect_score(score("bca.", "abc"), 0, 0.25, 2.0 / 3);  // a shift: nearly all tokens wrong, two edits
  expect_score(score(".", "abc"), 0, 0, 1);
  expect_score(score("", "abc"), 0, 0, 1);
  expect_score(score("a.c.", "abc"), 0, 0.75, 2.0 / 3);  // as a teacher-forced model may answer
  expect_score(score("abc.zzz", "abc"), 1, 1, 0);
}

TEST(SequenceScore, MeansAreOverSequencesAndTokens) {
  SequenceScore s;
  EXPECT_EQ(s.sequences(), 0);
  expect_score(s, 0, 0, 0);
  s.add(letters("a."), letters("a"), '.');
  s.add(letters("xxxx."), letters("abcd"), '.');
  EXPECT_EQ(s.sequences(), 2);
  expect_score(s, 0.5, 3.0 / 7, 0.5);
}

}  // namespace
}  // namespace sinkhorn
