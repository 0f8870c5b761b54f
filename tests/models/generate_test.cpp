// Sampling: temperature, filters, end tokens, long and ragged prompts.
#include "models/generate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "autograd/pool.h"
#include "models/encoder_decoder.h"
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

// The same by definition: a full forward over what each row still sees, for every token.
std::vector<std::vector<std::int32_t>> by_full_forwards(const SinkhornTransformerLM& model,
                                                        const std::vector<std::vector<std::int32_t>>& prompts,
                                                        std::int64_t count, const Sampling& sampling, const Rng& rng,
                                                        const AttentionContext& around = {}) {
  const std::int64_t longest = model.config().max_length(), bucket = model.config().bucket_size;
  std::vector<std::vector<std::int32_t>> made(prompts.size());
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    std::vector<std::int32_t> seen = prompts[i];
    AttentionContext its_own;
    const auto row_of = [&](const Tensor& x) { return x.slice(std::int64_t(i), std::int64_t(i) + 1); };
    if (around.context.value) its_own = {{}, row_of(around.context.value), row_of(around.context_mask)};
    for (std::int64_t step = 0; step < count; ++step) {
      while (std::int64_t(seen.size()) > longest)
        seen.erase(seen.begin(), seen.begin() + std::max<std::int64_t>(longest / bucket / 2, 1) * bucket);
      const Tensor logits = padded(model, Scope{}, from_sequences({seen}).ids, its_own).value;
      const std::int64_t last = std::int64_t(seen.size()) - 1;
      const std::vector<double> row = logits.reshape(Shape{-1, logits.shape()[2]}).slice(last, last + 1).to_vector();
      seen.push_back(sample(row, sampling, rng.split(std::uint32_t(i)).bits().uniform<double>(std::uint64_t(step))));
      made[i].push_back(seen.back());
      if (seen.back() == sampling.end_token) break;
    }
  }
  return made;
}

TEST(GenerateEverything, DrawsWhatFullForwardsDraw) {
  for (int seed = 0; seed < testing::configurations(60, 600); ++seed) {
    testing::Dice dice{std::uint64_t(seed)};
    const ModelConfig config = testing::random_config(dice);
    const auto model = testing::random_model(config, std::uint64_t(seed), DType::f64);
    std::vector<std::vector<std::int32_t>> prompts(std::size_t(dice.between(1, 3)));
    for (auto& prompt : prompts) {  // some longer than the model's longest sequence
      prompt.resize(std::size_t(dice.between(1, config.max_length() * 5 / 2)));
      for (std::int32_t& token : prompt) token = std::int32_t(dice.upto(config.num_tokens - 1));
    }
    Sampling sampling{dice.chance(0.3) ? 0 : 0.8, dice.upto(4), dice.chance(0.5) ? 1 : 0.9};
    if (dice.chance(0.5)) sampling.end_token = 3;
    const std::int64_t count = config.max_length() * 3 / 2;
    EXPECT_EQ(generate(*model, prompts, count, sampling, Rng(std::uint64_t(seed))),
              by_full_forwards(*model, prompts, count, sampling, Rng(std::uint64_t(seed))))
        << "seed " << seed << " " << testing::describe(config);
  }
}

TEST(GenerateEverything, AnswersASourceAsFullForwardsDo) {
  for (int seed = 0; seed < testing::configurations(20, 200); ++seed) {
    testing::Dice dice{std::uint64_t(seed)};
    EncoderDecoderConfig config{testing::random_config(dice), testing::random_config(dice)};
    config.encoder.causal = config.encoder.use_simple_sort_net = false;
    config.encoder.return_embeddings = true;
    config.encoder.emb_dim.reset();
    config.encoder.dim = config.decoder.dim;
    config.encoder.dim_head = 3;
    config.decoder.receives_context = true;
    config.decoder.context_bucket_size = dice.between(1, 4);
    const EncoderDecoder model(config, Rng(std::uint64_t(seed)), DType::f64);
    std::vector<std::vector<std::int32_t>> sources(3), starts{{1}, {2, 3}, {4}};
    for (auto& source : sources) source.resize(std::size_t(dice.between(1, config.encoder.max_length())), 5);
    const MaskedIds source = from_sequences(sources);
    const std::int64_t count = config.decoder.max_length() * 3 / 2;
    const Sampling sampling{.temperature = 0.8, .end_token = 6};
    EXPECT_EQ(generate(model, sources, starts, count, sampling, Rng(3)),
              by_full_forwards(model.decoder(), starts, count, sampling, Rng(3),
                               {{}, model.encode(Scope{}, source), source.mask}))
        << "seed " << seed << " " << testing::describe(config.decoder);
  }
}

// The prompt is one full forward, and so is each slide of the window; the tokens between need little.
TEST_F(Generate, RunsAFullForwardOnlyWhereTheWindowSlides) {
  config.max_seq_len = 512;
  model = testing::random_model(config, 3, DType::f64);
  Pool& pool = Pool::of(Device::cpu);
  std::vector<std::size_t> peaks;  // of what is computed before each token
  std::size_t before = pool.stats().in_use;
  pool.reset_peak();
  generate(*model, {std::vector<std::int32_t>(500, 1)}, 400, {}, Rng(1), [&](std::size_t, std::int32_t) {
    peaks.push_back(pool.stats().peak - before);
    before = pool.stats().in_use;
    pool.reset_peak();
    return true;
  });
  ASSERT_EQ(peaks.size(), 400u);
  for (std::size_t i = 1; i < peaks.size(); ++i) {
    const bool slides = i == 13 || i == 13 + 256;  // the 513th token does not fit; nor does the 256th after it
    EXPECT_EQ(peaks[i] > peaks[0] / 20, slides) << i << ": " << peaks[i] << " of " << peaks[0];
  }
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
