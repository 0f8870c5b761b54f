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

// Bytes of the pool's peak in backward, beside what stands when it begins, of `rows` sequences of the longest length.
double backward_peak(const ModelConfig& config, std::int64_t rows) {
  const SinkhornTransformerLM model(config, Rng(1));
  const Scope scope{Tape::record(), Rng(2), true};
  const Var logits = model(scope, testing::random_ids(1, rows, config.max_seq_len, config.num_tokens));
  Pool& pool = Pool::of(Device::cpu);
  pool.reset_peak();
  const std::size_t before = pool.stats().in_use;
  scope.tape.backward(mean(logits));
  return double(pool.stats().peak - before);
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
    return backward_peak(config, 2048);
  };
  const double plain = peak(false), gated = peak(true);
  EXPECT_LE(gated, 1.02 * plain) << gated << " against " << plain;
}

// Nearly all that this model holds for a token are queries, keys, values, results and their gradients.
TEST(Reversible, TheHeadsAreThereInGroups) {
  const auto peak = [](std::int64_t groups) {
    ModelConfig config;
    config.causal = config.reversible = true;
    config.num_tokens = 5;
    config.dim = 8;
    config.depth = 2;
    config.heads = 8;
    config.dim_head = 32;
    config.bucket_size = 16;
    config.max_seq_len = 512;
    config.head_groups = groups;
    return backward_peak(config, 4);
  };
  const double all = peak(1), halves = peak(2), quarters = peak(4);
  EXPECT_LE(halves, 0.55 * all) << halves << " against " << all;
  EXPECT_LE(quarters, 0.55 * halves) << quarters << " against " << halves;
}

// The output and all gradients of a model in training.
std::vector<std::pair<std::string, Tensor>> results_of(const ModelConfig& config, bool masked, bool keep_activations) {
  auto model = testing::random_model(config, 1, DType::f64);
  model->stack().keep_activations(keep_activations);
  testing::Dice dice(4);
  const Tensor mask = testing::random_mask(dice, masked ? testing::Padding::holes : testing::Padding::none, 2, 32);
  const Scope scope{Tape::record(), Rng(2), true};
  const Var y = (*model)(scope, testing::random_ids(3, 2, 32, config.num_tokens), mask);
  const Gradients gradients = scope.tape.backward(y, uniform(Rng(9), y.shape(), -1, 1, DType::f64));
  std::vector<std::pair<std::string, Tensor>> all{{"output", y.value}};
  for_each_parameter(*model, [&](const std::string& name, Parameter& p) { all.emplace_back(name, gradients.of(p)); });
  return all;
}

// Whatever is drawn is drawn for the layer here: dropout of results, of feed-forwards, of layers.
TEST(Reversible, HeadsInGroupsHaveTheGradientsOfAllAtOnce) {
  ModelConfig usual;
  usual.causal = usual.reversible = true;
  usual.num_tokens = 11;
  usual.dim = 6;
  usual.depth = 3;
  usual.heads = 6;
  usual.dim_head = 2;
  usual.n_local_attn_heads = 2;
  usual.bucket_size = 4;
  usual.max_seq_len = 32;
  usual.ff_dropout = usual.attn_layer_dropout = 0.2;
  using Change = std::function<void(ModelConfig&)>;
  const std::pair<const char*, Change> kinds[] = {
      {"causal", [](ModelConfig&) {}},
      {"simple sort net", [](ModelConfig& c) { c.use_simple_sort_net = true; }},
      {"tied", [](ModelConfig& c) { c.weight_tie = true; }},
      {"ReZero", [](ModelConfig& c) { c.use_rezero = true; }},
      {"layers left out", [](ModelConfig& c) { c.layer_dropout = 0.5; }},
      {"both ways", [](ModelConfig& c) { c.causal = false, c.kv_bucket_size = 8; }},
      {"both ways, simple sort net", [](ModelConfig& c) { c.causal = false, c.use_simple_sort_net = true; }},
      {"two of each kind", [](ModelConfig& c) { c.heads = 8, c.n_local_attn_heads = 0, c.head_groups = 4; }},
      {"local heads alone", [](ModelConfig& c) { c.n_local_attn_heads = 6, c.head_groups = 3; }}};
  for (const auto& [name, change] : kinds)
    for (const bool masked : {false, true})
      for (const bool keep_activations : {false, true}) {
        ModelConfig groups = usual;
        groups.head_groups = 2;
        change(groups);
        ModelConfig whole = groups;
        whole.head_groups = 1;
        const auto want = results_of(whole, masked, false), got = results_of(groups, masked, keep_activations);
        ASSERT_EQ(want.size(), got.size());
        double largest = 0;
        for (std::size_t i = 1; i < want.size(); ++i)
          if (want[i].second)
            for (const double x : want[i].second.to_vector()) largest = std::max(largest, std::abs(x));
        for (std::size_t i = 0; i < want.size(); ++i) {
          ASSERT_EQ(want[i].first, got[i].first);
          ASSERT_EQ(bool(want[i].second), bool(got[i].second)) << name << ", " << want[i].first;
          if (!want[i].second) continue;  // of a layer that was left out
          EXPECT_LE(relative_error(got[i].second, want[i].second, i == 0 ? 0 : largest), 1e-10)
              << name << ", " << want[i].first << (masked ? ", masked" : "") << (keep_activations ? ", kept" : "");
        }
      }
}

TEST(Reversible, AnObserverSeesAllHeadsAtOnce) {
  ModelConfig config = small_config();
  config.n_local_attn_heads = 0;
  config.head_groups = 2;
  const SinkhornTransformerLM model(config, Rng(1));
  int layers = 0;
  const Observer observer = [&](std::string_view what, const Tensor& value) {
    if (what != "heads") return;
    ++layers;
    EXPECT_EQ(value.shape(), (Shape{2, 64, 4, 8}));
  };
  (void)model(Scope{.observer = &observer}, testing::random_ids(3, 2, 64, 11));
  EXPECT_EQ(layers, config.depth);
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
