// Reversible execution: constant memory in depth, and equal masks, noise and picks in recomputation.
#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "autograd/pool.h"
#include "nn/flat_parameters.h"
#include "tests/models/random_model.h"

namespace sinkhorn {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.causal = true;
  config.num_tokens = 11;
  config.dim = 32;
  config.depth = 4;
  config.heads = 4;
  config.n_local_attn_heads = 2;
  config.bucket_size = 8;
  config.max_seq_len = 128;
  config.reversible = true;
  config.pkm_layers = {1};
  config.pkm_num_keys = config.pkm_dim_head = 8;
  config.pkm_heads = 2;
  config.attn_dropout = config.ff_dropout = config.attn_layer_dropout = 0.1;
  return config;
}

// Bytes of the pool's peak during one training step, parameters and their gradients aside.
std::size_t step_peak(std::int64_t depth) {
  ModelConfig config = small_config();
  config.depth = depth;
  SinkhornTransformerLM model(config, Rng(1));
  FlatParameters parameters(model);
  const Tensor ids = testing::random_ids(1, 4, 129, config.num_tokens);
  Pool& pool = Pool::of(Device::cpu);
  const std::size_t before = pool.stats().in_use;
  pool.reset_peak();
  {
    const Scope scope{Tape::record(true), Rng(2), true};
    scope.tape.backward(autoregressive_loss(model, scope, ids).loss);
  }
  return pool.stats().peak - before;
}

TEST(Reversible, PeakMemoryDoesNotGrowWithDepth) {
  step_peak(1);
  const double four = double(step_peak(4)), sixteen = double(step_peak(16));
  EXPECT_LE(std::abs(sixteen - four), 0.05 * four) << four << " against " << sixteen;
}

// With so many tokens the inside of a feed-forward, twice as wide if gated, would be the peak, were it there at once.
TEST(Reversible, TheInsideOfAFeedForwardIsThereInPieces) {
  const auto peak = [](bool gated) {
    ModelConfig config;
    config.causal = config.reversible = true;
    config.num_tokens = 5;
    config.dim = 8;
    config.depth = 1;
    config.heads = 2;
    config.bucket_size = 16;
    config.max_seq_len = 64;
    config.ff_glu = gated;
    config.ff_chunks = 8;
    const SinkhornTransformerLM model(config, Rng(1));
    const Scope scope{Tape::record(), Rng(2), true};
    const Var logits = model(scope, testing::random_ids(1, 2048, 64, config.num_tokens));
    Pool::of(Device::cpu).reset_peak();
    const std::size_t before = Pool::of(Device::cpu).stats().in_use;
    scope.tape.backward(mean(logits));
    return double(Pool::of(Device::cpu).stats().peak - before);
  };
  const double plain = peak(false), gated = peak(true);
  EXPECT_LE(gated, 1.02 * plain) << gated << " against " << plain;
}

TEST(Reversible, ATapeThatIsNotRunBackwardsLeavesNothingBehind) {
  SinkhornTransformerLM model(small_config(), Rng(1));
  const Tensor ids = testing::random_ids(1, 2, 64, small_config().num_tokens);
  const std::size_t before = Pool::of(Device::cpu).stats().in_use;
  { (void)model(Scope{Tape::record(), Rng(2), true}, ids); }
  EXPECT_EQ(Pool::of(Device::cpu).stats().in_use, before);
}

TEST(Reversible, RecomputationDrawsTheSameMasksAndMakesTheSamePicks) {
  for (DType dtype : {DType::f32, DType::f64}) {
    SinkhornTransformerLM model(small_config(), Rng(1), dtype);
    std::vector<std::pair<std::string, Tensor>> seen;
    const Observer observer = [&](std::string_view what, const Tensor& value) {
      if (what.ends_with("picks") || what == "dropout") seen.emplace_back(what, value);  // outputs only up to rounding
    };
    Scope scope{Tape::record(), Rng(5), true};
    scope.observer = &observer;
    const Var loss = autoregressive_loss(model, scope, testing::random_ids(3, 2, 65, 11)).loss;
    const auto forward = std::exchange(seen, {});
    scope.tape.backward(loss);
    // Backward visits the branches from the last to the first.
    ASSERT_EQ(forward.size(), seen.size());
    ASSERT_GE(forward.size(), 4u * 3);
    auto branches = [](const std::vector<std::pair<std::string, Tensor>>& events) {
      std::vector<std::pair<std::string, Tensor>> picks, masks;
      for (auto& event : events) (event.first.ends_with("picks") ? picks : masks).push_back(event);
      return std::pair(picks, masks);
    };
    const auto [picks, masks] = branches(forward);
    const auto [picks_again, masks_again] = branches(seen);
    ASSERT_EQ(picks.size(), picks_again.size());
    for (std::size_t i = 0; i < picks.size(); ++i)
      EXPECT_TRUE(equal_bits(picks[i].second, picks_again[picks.size() - 1 - i].second));
    ASSERT_EQ(masks.size(), masks_again.size());
    for (std::size_t i = 0; i < masks.size(); ++i)
      EXPECT_TRUE(equal_bits(masks[i].second, masks_again[masks.size() - 1 - i].second));
  }
}

// Dropout must do something, or the test above would compare nothing.
TEST(Reversible, AnotherStreamDrawsOtherMasks) {
  SinkhornTransformerLM model(small_config(), Rng(1));
  const Tensor ids = testing::random_ids(3, 2, 65, 11);
  auto loss = [&](std::uint64_t key) {
    return autoregressive_loss(model, Scope{{}, Rng(key), true}, ids).loss.value.item();
  };
  EXPECT_EQ(loss(5), loss(5));
  EXPECT_NE(loss(5), loss(6));
}

TEST(Reversible, EvaluationCanBeDifferentiated) {
  SinkhornTransformerLM model(small_config(), Rng(1), DType::f64);
  const Scope scope{Tape::record()};
  const Var loss = autoregressive_loss(model, scope, testing::random_ids(3, 2, 65, 11)).loss;
  const Gradients gradients = scope.tape.backward(loss);
  for_each_parameter(model, [&](const std::string& name, Parameter& p) { EXPECT_TRUE(gradients.of(p)) << name; });
}

TEST(Pool, AsksTheSystemForNothingFromTheSecondStepOn) {
  SinkhornTransformerLM model(small_config(), Rng(1));
  FlatParameters parameters(model);
  const Tensor ids = testing::random_ids(1, 4, 129, 11);
  auto step = [&] {
    parameters.zero_gradients();
    const Scope scope{Tape::record(true), Rng(2), true};
    scope.tape.backward(autoregressive_loss(model, scope, ids).loss);
    return Pool::of(Device::cpu).stats().system_allocations;
  };
  const std::size_t first = step();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(step(), first);
}

}  // namespace
}  // namespace sinkhorn
