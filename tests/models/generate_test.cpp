// Sampling: temperature, filters, end tokens, long and ragged prompts.
#include "models/generate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/models/random_model.h"

namespace sinkhorn {
namespace {

// How often each token is drawn for evenly spread uniforms.
std::map<std::int32_t, double> shares(const std::vector<double>& logits, const Sampling& sampling) {
  std::map<std::int32_t, double> counts;
  constexpr int kDraws = 10000;
  for (int i = 0; i < kDraws; ++i) counts[sample(logits, sampling, (i + 0.5) / kDraws)] += 1.0 / kDraws;
  return counts;
}

std::vector<double> log_of(std::vector<double> p) {
  for (double& x : p) x = std::log(x);
  return p;
}

TEST(Sample, FollowsTheDistribution) {
  const auto drawn = shares(log_of({0.3, 0.25, 0.2, 0.15, 0.1}), {});
  EXPECT_NEAR(drawn.at(0), 0.3, 1e-3);
  EXPECT_NEAR(drawn.at(4), 0.1, 1e-3);
}

TEST(Sample, TopPKeepsTheMassThatItNames) {
  // 0.9 of {0.3, 0.25, 0.2, 0.15, 0.1} needs four tokens: 0.9 exactly.
  EXPECT_EQ(shares(log_of({0.3, 0.25, 0.2, 0.15, 0.1}), {1, 0, 0.899}).size(), 4u);
  EXPECT_EQ(shares(log_of({0.3, 0.25, 0.2, 0.15, 0.1}), {1, 0, 0.29}).size(), 1u);
  EXPECT_EQ(shares(log_of({0.3, 0.25, 0.2, 0.15, 0.1}), {1, 0, 1}).size(), 5u);
}

TEST(Sample, TopKIsACount) {
  EXPECT_EQ(shares(log_of({0.3, 0.25, 0.2, 0.15, 0.1}), {1, 2, 1}).size(), 2u);
  EXPECT_EQ(shares(log_of({0.3, 0.25, 0.2, 0.15, 0.1}), {1, 100, 1}).size(), 5u);
}

TEST(Sample, TemperatureComesBeforeTheFilter) {
  // At temperature 0.25 the first of {0.4, 0.3, 0.3} holds 0.61 of the mass; at 1 only 0.4.
  EXPECT_EQ(shares(log_of({0.4, 0.3, 0.3}), {0.25, 0, 0.6}).size(), 1u);
  EXPECT_EQ(shares(log_of({0.4, 0.3, 0.3}), {1, 0, 0.6}).size(), 2u);
}

TEST(Sample, TemperatureZeroIsTheFirstOfTheLikeliest) {
  EXPECT_EQ(sample(std::vector<double>{1, 3, 3, 2}, {0}, 0.99), 1);
}

TEST(Sample, RefusesWhatMakesNoSense) {
  EXPECT_THROW(validate(Sampling{-1}), UsageError);
  EXPECT_THROW(validate(Sampling{std::nan("")}), UsageError);
  EXPECT_THROW(validate(Sampling{1, -1}), UsageError);
  EXPECT_THROW(validate(Sampling{1, 0, 0}), UsageError);
  EXPECT_THROW(validate(Sampling{1, 0, 1.5}), UsageError);
  EXPECT_THROW(sample(std::vector<double>{0, std::nan("")}, {}, 0.5), NonFinite);
}

class Generate : public ::testing::Test {
 protected:
  Generate() {
    config.causal = true;
    config.num_tokens = 10;
    config.dim = 8;
    config.depth = 2;
    config.heads = 2;
    config.bucket_size = 4;
    config.max_seq_len = 16;
    model = testing::random_model(config, 3, DType::f64);
  }
  // Greedy continuation by full forwards of the exact context.
  std::vector<std::int32_t> greedy(std::vector<std::int32_t> row, int count) {
    std::vector<std::int32_t> made;
    while (count-- > 0) {
      const MaskedIds input = from_sequences({row});
      const Tensor logits = padded(*model, Scope{}, input.ids).value;
      const auto last =
          logits.reshape({-1, 10}).slice(std::int64_t(row.size()) - 1, std::int64_t(row.size())).to_vector();
      made.push_back(sample(last, {0}, 0.5));
      row.push_back(made.back());
    }
    return made;
  }
  ModelConfig config;
  std::unique_ptr<SinkhornTransformerLM> model;
};

TEST_F(Generate, RaggedRowsAreWhatEachRowIsAlone) {
  const std::vector<std::vector<std::int32_t>> prompts{{1, 2, 3, 4, 5}, {7}, {9, 8}};
  const auto together = generate(*model, prompts, 6, {0}, Rng(1));
  for (std::size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(together[i], greedy(prompts[i], 6)) << i;
}

TEST_F(Generate, SameStreamSameTokens) {
  const auto a = generate(*model, {{1}, {2, 3}}, 8, {}, Rng(1)), b = generate(*model, {{1}, {2, 3}}, 8, {}, Rng(1));
  EXPECT_EQ(a, b);
  EXPECT_NE(a, generate(*model, {{1}, {2, 3}}, 8, {}, Rng(2)));
}

TEST_F(Generate, FinishedRowsStayFinished) {
  const auto free = generate(*model, {{1}, {2}}, 12, {}, Rng(1));
  const std::int32_t end = free[0][3];
  const auto ended = generate(*model, {{1}, {2}}, 12, {1, 0, 1, end}, Rng(1));
  const auto first = std::size_t(std::find(free[0].begin(), free[0].end(), end) - free[0].begin());
  EXPECT_EQ(ended[0], std::vector<std::int32_t>(free[0].begin(), free[0].begin() + std::ptrdiff_t(first) + 1));
}

TEST_F(Generate, DropsTheOldestHalfInWholeBucketsWhenFull) {
  const std::vector<std::int32_t> prompt{1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6};  // 16 of 16
  const auto made = generate(*model, {prompt}, 3, {0}, Rng(1))[0];
  EXPECT_EQ(made[0], greedy(prompt, 1)[0]);
  std::vector<std::int32_t> kept(prompt.begin() + 8, prompt.end());  // two buckets of four are gone
  kept.push_back(made[0]);
  EXPECT_EQ(std::vector<std::int32_t>(made.begin() + 1, made.end()), greedy(kept, 2));
}

TEST_F(Generate, RefusesBadPrompts) {
  EXPECT_THROW(generate(*model, {{}}, 1, {}, Rng(1)), UsageError);
  EXPECT_THROW(generate(*model, {{10}}, 1, {}, Rng(1)), UsageError);
  EXPECT_THROW(generate(*model, {{-1}}, 1, {}, Rng(1)), UsageError);
}

TEST_F(Generate, StopsWhenAsked) {
  int calls = 0;
  const auto made = generate(*model, {{1}}, 10, {}, Rng(1), [&](std::size_t, std::int32_t) { return ++calls < 3; });
  EXPECT_EQ(made[0].size(), 3u);
}

}  // namespace
}  // namespace sinkhorn
