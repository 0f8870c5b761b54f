// Mixed precision: products and attention in bf16 beside f32 parameters, an f32 residual stream and f32 gradients.
#include <gtest/gtest.h>

#include <cmath>

#include "autograd/gradcheck.h"
#include "models/language_model.h"
#include "nn/flat_parameters.h"
#include "tests/models/random_model.h"

namespace sinkhorn::testing {
namespace {

Tensor numbers(std::uint64_t seed, Shape shape) { return uniform(Rng(seed), shape, -1, 1); }
Tensor rounded(const Tensor& x) { return x.to(DType::bf16).to(DType::f32); }

TEST(MixedPrecision, LinearMultipliesRoundedWeightsAndKeepsTheirGradientsWide) {
  const Tensor x = numbers(1, {5, 7}).to(DType::bf16), weight = numbers(2, {3, 7}), bias = numbers(3, {3}),
               dy = numbers(4, {5, 3}).to(DType::bf16);
  for (const Tensor& copy : {Tensor(), weight.to(DType::bf16)}) {
    const Tape tape = Tape::record();
    const Var leaf = tape.leaf(x), w = tape.leaf(weight), b = tape.leaf(bias);
    const Var y = linear(leaf, w, b, {copy});
    const Gradients flows = tape.backward(y, dy);
    EXPECT_EQ(y.value.dtype(), DType::bf16);
    EXPECT_EQ(flows.of(leaf).dtype(), DType::bf16);

    const Tape wide = Tape::record();
    const Var x32 = wide.leaf(x.to(DType::f32)), w32 = wide.leaf(rounded(weight)), b32 = wide.leaf(bias);
    const Var want = linear(x32, w32, b32);
    const Gradients wanted = wide.backward(want, dy.to(DType::f32));
    EXPECT_LE(relative_error(y.value.to(DType::f32), want.value), 1.0 / 128);
    EXPECT_LE(relative_error(flows.of(leaf).to(DType::f32), wanted.of(x32)), 1.0 / 128);
    // The parameters' gradients are summed and stored in f32: no rounding to bf16 on the way.
    EXPECT_LE(relative_error(flows.of(w), wanted.of(w32)), 1e-6);
    EXPECT_LE(relative_error(flows.of(b), wanted.of(b32)), 1e-6);
  }
}

TEST(MixedPrecision, LinearAddsToTheWideStreamWithoutRounding) {
  const Tensor x = numbers(1, {5, 7}).to(DType::bf16), weight = numbers(2, {3, 7}), bias = numbers(3, {3}),
               onto = numbers(4, {5, 3}), dy = numbers(5, {5, 3});
  const Tape tape = Tape::record();
  const Var w = tape.leaf(weight), stream = tape.leaf(onto);
  const Var y = linear(x, w, bias, {weight.to(DType::bf16), bias.to(DType::bf16)}, {stream});
  const Tensor product = linear(x.to(DType::f32), rounded(weight), bias).value;
  EXPECT_LE(relative_error(y.value, add(onto, product).value), 1e-6);
  const Gradients flows = tape.backward(y, dy);
  EXPECT_TRUE(equal_bits(flows.of(stream), dy));
  EXPECT_LE(relative_error(flows.of(w), matmul(rounded(dy), x.to(DType::f32), true).value), 1e-6);
}

TEST(MixedPrecision, LayerNormWritesBf16InTheSamePass) {
  const Tensor x = numbers(1, {4, 6}), gamma = numbers(2, {6}), beta = numbers(3, {6}),
               dy = numbers(4, {4, 6}).to(DType::bf16);
  const Tape tape = Tape::record(), wide = Tape::record();
  const Var leaf = tape.leaf(x), leaf32 = wide.leaf(x);
  const Var y = layer_norm(leaf, gamma, beta, 1e-5, DType::bf16), y32 = layer_norm(leaf32, gamma, beta);
  EXPECT_TRUE(equal_bits(y.value, y32.value.to(DType::bf16)));
  const Tensor dx = tape.backward(y, dy).of(leaf), dx32 = wide.backward(y32, dy.to(DType::f32)).of(leaf32);
  EXPECT_LE(relative_error(dx, dx32), 1e-6);
  EXPECT_THROW(layer_norm(x.to(DType::f64), gamma.to(DType::f64), beta.to(DType::f64), 1e-5, DType::bf16), Error);
}

TEST(MixedPrecision, WrongTypesAreNamed) {
  const Tensor x = numbers(1, {5, 7}), weight = numbers(2, {3, 7});
  EXPECT_THROW(linear(x, weight.to(DType::bf16)), Error) << "activations in f32 take f32 parameters";
  EXPECT_THROW(linear(x.to(DType::bf16), weight, {}, {numbers(2, {3, 7})}), Error) << "the copy is not rounded";
  EXPECT_THROW(linear(x.to(DType::bf16), weight, {}, {numbers(2, {7, 3}).to(DType::bf16)}), Error);
  EXPECT_THROW(linear(x.to(DType::bf16), weight, numbers(3, {3}), {{}, numbers(3, {3})}), Error) << "nor is the bias's";
  EXPECT_THROW(linear(x.to(DType::bf16), weight, {}, {}, {numbers(4, {5, 3}).to(DType::bf16)}), Error)
      << "the residual stream is f32";
}

/// Loss and flat gradient of a model on one batch, in full or mixed precision.
struct Pass {
  double loss;
  Tensor gradients, logits;
};

class MixedModel {
 public:
  explicit MixedModel(const ModelConfig& config) : model(config, Rng(3)), parameters(model) {}

  Pass run(const Tensor& ids, std::optional<DType> compute, bool training = true) {
    if (compute) parameters.round();
    parameters.zero_gradients();
    const Scope scope{.tape = Tape::record(true), .rng = Rng(7), .training = training, .compute = compute};
    const Var logits = padded(model, scope, ids);
    const CrossEntropy result = cross_entropy(logits, ids);
    scope.tape.backward(result.loss);
    return {result.loss.value.item(), parameters.gradients.clone(), logits.value};
  }

  SinkhornTransformerLM model;
  FlatParameters parameters;
};

double cosine(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = a.to_vector(), y = b.to_vector();
  double xy = 0, xx = 0, yy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) xy += x[i] * y[i], xx += x[i] * x[i], yy += y[i] * y[i];
  return xy / std::sqrt(xx * yy);
}

ModelConfig wider(ModelConfig c) {
  c.dim = 32 * c.heads;
  c.dim_head = ModelConfig().dim_head;
  c.emb_dim = ModelConfig().emb_dim;
  return c;
}

// Every kind of causal model: what bf16 changes is rounding. A step that was left out, done twice or in the wrong type
// would show as an error, or turn the gradient.
TEST(MixedPrecision, LossAndGradientsAreThoseOfFullPrecisionButForRounding) {
  int runs = 0;
  for (std::uint64_t seed = 0; seed < 24; ++seed) {
    Dice dice(seed);
    ModelConfig config = wider(random_config(dice));
    config.n_top_buckets = 1000;  // all buckets: rounding may then not change which are picked
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    MixedModel model(config);
    const Tensor ids = integers(Rng(seed), {2, config.max_seq_len - 1}, std::int32_t(config.num_tokens));
    const Pass full = model.run(ids, {}), mixed = model.run(ids, DType::bf16);
    EXPECT_EQ(full.logits.dtype(), DType::f32);
    EXPECT_EQ(mixed.logits.dtype(), DType::bf16);
    EXPECT_NEAR(mixed.loss, full.loss, 0.02 * full.loss);
    // With memories other keys may be found.
    EXPECT_GE(cosine(mixed.gradients, full.gradients), config.pkm_layers.empty() ? 0.99 : 0.5);
    EXPECT_EQ(mixed.gradients.dtype(), DType::f32);
    ++runs;
  }
  EXPECT_EQ(runs, 24);
}

TEST(MixedPrecision, BothWaysAndReadingAContextRunsInBf16Too) {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    Dice dice(seed);
    ModelConfig config = wider(random_config_both_ways(dice));
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    MixedModel model(config);
    const Tensor ids = integers(Rng(seed), {1, config.max_seq_len}, std::int32_t(config.num_tokens));
    // Without training there is no noise that could differ. Other picks may, so the bound is wide.
    const Pass full = model.run(ids, {}, false), mixed = model.run(ids, DType::bf16, false);
    EXPECT_NEAR(mixed.loss, full.loss, 0.1 * full.loss);
  }
}

TEST(MixedPrecision, TheReversibleStreamStaysInF32) {
  Dice dice(1);
  ModelConfig config = wider(random_config(dice));
  config.reversible = true;
  config.depth = 6;
  config.pkm_layers = {};
  config.layer_dropout = 0;
  MixedModel model(config);
  const Tensor ids = integers(Rng(5), {2, config.max_seq_len - 1}, std::int32_t(config.num_tokens));
  const Pass recomputed = model.run(ids, DType::bf16);
  model.model.stack().keep_activations(true);
  const Pass kept = model.run(ids, DType::bf16);
  EXPECT_TRUE(equal_bits(recomputed.logits, kept.logits));
  // What is rebuilt is exact to f32's rounding, so both gradients see nearly the same activations, in bf16 as well.
  EXPECT_GE(cosine(recomputed.gradients, kept.gradients), 0.9999);
}

TEST(MixedPrecision, NoOutputDependsOnTheFutureBitForBit) {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    Dice dice(seed);
    const ModelConfig config = random_config(dice);
    MixedModel model(config);
    const Scope scope{.compute = DType::bf16};
    const std::int64_t length = config.max_seq_len;
    const Tensor ids = integers(Rng(seed), {1, length}, std::int32_t(config.num_tokens)), changed = ids.clone();
    const std::int64_t from = length / 2;
    for (std::int64_t t = from; t < length; ++t)
      changed.span<std::int32_t>()[std::size_t(t)] = std::int32_t((ids.span<std::int32_t>()[std::size_t(t)] + 1) % 7);
    const Var before = slice(padded(model.model, scope, ids), 1, 0, from);
    const Var after = slice(padded(model.model, scope, changed), 1, 0, from);
    EXPECT_TRUE(equal_bits(before.value, after.value)) << "seed " << seed;
  }
}

}  // namespace
}  // namespace sinkhorn::testing
