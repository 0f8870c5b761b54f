// Every module's gradients, parameters and input, against central differences.
#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "tests/models/random_model.h"

namespace sinkhorn {
namespace {

// Checks f(scope, x) at random parameters; fresh ones are drawn where a point lies on a tie.
template <class Module, class Forward>
void expect_gradients(Module& module, Shape input, Forward forward, double tolerance = kGradientTolerance) {
  const CaseResult result = check_case("module", [&](Draw& draw) {
    GradientProblem problem;
    Tensor x = draw.uniform(input);
    for_each_parameter(module, [&](const std::string& name, Parameter& parameter) {
      parameter.value = draw.uniform(parameter.value.shape(), -0.7, 0.7);
      problem.points.push_back(parameter.value);
      problem.names.push_back(name);
    });
    problem.points.push_back(x);
    problem.names.push_back("x");
    problem.value = [&module, forward, x] { return forward(Scope{{}, Rng(3), true}, module, Var(x)).value; };
    problem.gradients = [&module, forward, x](const Tensor& cotangent) {
      const Scope scope{Tape::record(), Rng(3), true};
      const Var leaf = scope.tape.leaf(x);
      const Gradients gradients = scope.tape.backward(forward(scope, module, leaf), cotangent);
      Tensors flows;
      for_each_parameter(module, [&](const std::string&, Parameter& p) { flows.push_back(gradients.of(p)); });
      flows.push_back(gradients.of(leaf));
      return flows;
    };
    return problem;
  });
  EXPECT_TRUE(result.report.smooth && result.report.repeatable && result.report.worst <= tolerance)
      << result.report.worst << " at " << result.report.where;
}

const auto call = [](const Scope& scope, auto& module, const Var& x) { return module(scope, x); };

TEST(ModuleGradients, Linear) {
  Initializer init(Rng(1), DType::f64);
  Linear module(3, 2, true, init);
  expect_gradients(module, {2, 4, 3}, call);
}

TEST(ModuleGradients, LayerNorm) {
  Initializer init(Rng(1), DType::f64);
  LayerNorm module(5, init);
  expect_gradients(module, {2, 3, 5}, call);
}

TEST(ModuleGradients, FeedForwardPlainGatedAndChunked) {
  for (bool gated : {false, true}) {
    Initializer init(Rng(1), DType::f64);
    FeedForward module(3, gated, 0.2, 2, init);
    expect_gradients(module, {2, 5, 3}, call);
  }
}

TEST(ModuleGradients, EmbeddingAndPositions) {
  Initializer init(Rng(1), DType::f64);
  Embedding table(5, 3, 1, init);
  const Tensor ids = Tensor::from(std::vector<std::int32_t>{1, 4, 1, 0, 1, 2}, {2, 3});
  expect_gradients(table, {2, 3, 3},
                   [&](const Scope& scope, auto& module, const Var& x) { return add(module(scope, ids), x); });
  AxialPositions positions(3, 2, 3, 1, init);
  expect_gradients(positions, {2, 5, 3},
                   [](const Scope& scope, auto& module, const Var& x) { return add(x, module(scope, 5)); });
}

// Three heads of width 2 over vectors of 4, one of them local; dropout everywhere.
AttentionOptions small_attention() {
  return {.dim = 4,
          .heads = 3,
          .width = 2,
          .bucket = 2,
          .key_bucket = 2,
          .local = 1,
          .n_top = 2,
          .max_buckets = 3,
          .temperature = 0.75,
          .dropout = 0.1,
          .output_dropout = 0.1,
          .sinkhorn_iterations = 3};
}

void expect_attention_gradients(const AttentionOptions& options) {
  Initializer init(Rng(1), DType::f64);
  SinkhornAttention module(options, init);
  testing::Dice dice(5);
  const Tensor mask = testing::random_mask(dice, testing::Padding::right, 2, 6);
  expect_gradients(module, {2, 6, 4}, [&](const Scope& scope, auto& m, const Var& x) { return m(scope, x, mask); });
}

TEST(ModuleGradients, CausalSelfAttentionWithBothSortNets) {
  AttentionOptions options = small_attention();
  for (int choice = 0; choice < 4; ++choice) {
    options.simple_sort_net = choice % 2;
    options.composed = choice / 2;
    expect_attention_gradients(options);
  }
}

TEST(ModuleGradients, SelfAttentionInBothDirections) {
  AttentionOptions options = small_attention();
  options.causal = false;
  for (int choice = 0; choice < 12; ++choice) {
    options.by_top_k = choice % 2;
    options.sortcut = choice / 2 % 2 * 2;
    options.simple_sort_net = choice / 4 == 1;
    options.key_bucket = choice / 4 == 2 ? 3 : 2;
    expect_attention_gradients(options);
  }
}

// The first four vectors are the queries, the others the context.
TEST(ModuleGradients, CrossAttention) {
  AttentionOptions options = small_attention();
  options.cross = true;
  options.local = 0;
  options.key_bucket = 3;
  testing::Dice dice(5);
  const Tensor mask = testing::random_mask(dice, testing::Padding::right, 2, 4);
  const Tensor context_mask = testing::random_mask(dice, testing::Padding::holes, 2, 6);
  for (int choice = 0; choice < 16; ++choice) {
    options.causal = choice % 2;
    options.by_top_k = choice / 2 % 2;
    options.project_context = choice / 4 % 2;
    options.sortcut = choice / 8 * 2;
    options.heads = options.project_context ? 3 : 2;  // without a projection the heads share the width
    Initializer init(Rng(1), DType::f64);
    SinkhornAttention module(options, init);
    expect_gradients(module, {2, 10, 4}, [&](const Scope& scope, auto& m, const Var& x) {
      return m(scope, slice(x, 1, 0, 4), {mask, slice(x, 1, 4, 10), context_mask});
    });
  }
}

TEST(ModuleGradients, ProductKeyMemory) {
  for (const ProductKeyOptions& options : {ProductKeyOptions{4, 2, 3, 3, 2}, {3, 1, 2, 4, 5}}) {
    Initializer init(Rng(1), DType::f64);
    ProductKeyMemory module(options, init);
    expect_gradients(module, {2, 3, options.dim}, call);
  }
}

ModelConfig everything_on() {
  ModelConfig config;
  config.causal = true;
  config.num_tokens = 5;
  config.dim = 4;
  config.depth = 3;
  config.heads = 3;
  config.dim_head = 2;
  config.bucket_size = 2;
  config.max_seq_len = 6;
  config.n_local_attn_heads = 1;
  config.use_simple_sort_net = true;
  config.ff_glu = true;
  config.ff_chunks = 2;
  config.weight_tie = true;
  config.attn_dropout = config.ff_dropout = config.attn_layer_dropout = 0.1;
  config.pkm_layers = {2};
  config.pkm_num_keys = config.pkm_dim_head = 3;
  config.pkm_heads = config.pkm_topk = 2;
  return config;
}

TEST(ModuleGradients, ThreeLayerModelWithEverythingOn) {
  for (bool reversible : {false, true}) {
    ModelConfig config = everything_on();
    config.reversible = reversible;
    config.emb_dim = 3;
    Initializer init(Rng(1), DType::f64);
    SinkhornTransformer model(config, init);
    expect_gradients(model, {1, 6, 3}, call, 1e-6);
  }
}

// The first four vectors are the input, the others the context; its gradient comes from all three layers.
TEST(ModuleGradients, ThreeLayerModelWithEverythingOnAndAContext) {
  for (int choice = 0; choice < 4; ++choice) {
    ModelConfig config = everything_on();
    config.reversible = choice % 2;
    config.causal = choice / 2;
    config.use_simple_sort_net = false;
    config.receives_context = true;
    config.context_bucket_size = 3;
    config.context_n_sortcut = choice / 2;
    Initializer init(Rng(1), DType::f64);
    SinkhornTransformer model(config, init);
    expect_gradients(
        model, {1, 10, 4},
        [](const Scope& scope, auto& m, const Var& x) {
          return m(scope, slice(x, 1, 0, 4), {{}, slice(x, 1, 4, 10)});
        },
        1e-6);
  }
}

}  // namespace
}  // namespace sinkhorn
