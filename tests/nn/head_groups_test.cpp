// Attention in groups of heads, one layer: what they add up to, and what they draw.
#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "nn/attention.h"
#include "tests/models/random_model.h"

namespace sinkhorn {
namespace {

AttentionOptions six_heads() {
  return {.dim = 5,
          .heads = 6,
          .width = 2,
          .bucket = 2,
          .key_bucket = 2,
          .local = 2,
          .n_top = 2,
          .max_buckets = 4,
          .temperature = 0.75,
          .output_dropout = 0.3,
          .sinkhorn_iterations = 3};
}

// The groups added to a residual one after the other, and the gradients of x and of all parameters.
Tensors results_of(SinkhornAttention& layer, std::int64_t groups, const Tensor& mask, bool training) {
  const Scope scope{Tape::record(), Rng(3), training};
  const Var x = scope.tape.leaf(uniform(Rng(4), {2, 8, layer.options.dim}, -2, 2, DType::f64));
  Var y = uniform(Rng(5), x.shape(), -1, 1, DType::f64);
  for (HeadGroup group{0, groups}; group.index < groups; ++group.index) y = layer(scope, x, mask, group, {y});
  const Gradients gradients = scope.tape.backward(y, uniform(Rng(6), y.shape(), -1, 1, DType::f64));
  Tensors all{y.value, gradients.of(x)};
  for_each_parameter(layer, [&](const std::string&, Parameter& p) { all.push_back(gradients.of(p)); });
  return all;
}

void expect_sum_of_groups(const AttentionOptions& options, std::int64_t groups) {
  Initializer init(Rng(1), DType::f64);
  SinkhornAttention layer(options, init);
  testing::move_parameters(layer, 2);
  testing::Dice dice(5);
  const bool draws_noise = !options.causal && !options.by_top_k;
  for (const testing::Padding padding : {testing::Padding::none, testing::Padding::holes}) {
    const Tensor mask = testing::random_mask(dice, padding, 2, 8);
    const Tensors want = results_of(layer, 1, mask, !draws_noise), got = results_of(layer, groups, mask, !draws_noise);
    for (std::size_t i = 0; i < want.size(); ++i) {
      ASSERT_TRUE(want[i] && got[i]) << "tensor " << i;
      EXPECT_LE(relative_error(got[i], want[i], 1e-3), 1e-12) << "tensor " << i;
    }
  }
}

TEST(HeadGroups, OfACausalLayerAddUpToIt) {
  for (int choice = 0; choice < 4; ++choice) {
    AttentionOptions options = six_heads();
    options.simple_sort_net = choice % 2;
    options.composed = choice / 2;
    expect_sum_of_groups(options, 2);
    options.heads = 8, options.local = 0;
    expect_sum_of_groups(options, 4);
  }
}

TEST(HeadGroups, OfALayerThatLooksBothWaysAddUpToIt) {
  for (int choice = 0; choice < 12; ++choice) {
    AttentionOptions options = six_heads();
    options.causal = false;
    options.by_top_k = choice % 2;
    options.sortcut = choice / 2 % 2 * 2;
    options.simple_sort_net = choice / 4 == 1;
    options.key_bucket = choice / 4 == 2 ? 4 : 2;
    expect_sum_of_groups(options, 2);
  }
}

// Two heads with the same numbers: what they draw is all that can tell their groups apart.
TEST(HeadGroups, DropProbabilitiesByStreamsOfTheirOwn) {
  AttentionOptions options = six_heads();
  options.heads = options.local = 2;
  options.output_dropout = 0;
  Initializer init(Rng(1), DType::f64);
  SinkhornAttention layer(options, init);
  layer.to_out.bias.value.fill(0);
  const auto copy_head = [&](const Tensor& weight, std::int64_t heads) {
    const Tensor rows = weight.reshape({heads, 2, weight.count() / heads / 2});
    for (std::int64_t i = 0; i < heads; ++i) rows.slice(i, i + 1).assign(rows.slice(i / 2 * 2, i / 2 * 2 + 1));
  };
  EXPECT_TRUE(layer.to_kv);
  copy_head(layer.to_q.weight.value, 2);
  copy_head(layer.to_kv->weight.value, 4);
  const Var out = layer.to_out.weight.value, first = slice(out, 1, 0, 2);
  layer.to_out.weight.value.assign(concat({first, first}, 1).value);
  const Var x = uniform(Rng(4), {1, 8, 5}, -2, 2, DType::f64);
  for (const double rate : {0.0, 0.5}) {
    layer.options.dropout = rate;
    const Scope scope{{}, Rng(3), true};
    const Tensor one = layer(scope, x, {}, {0, 2}).value, other = layer(scope, x, {}, {1, 2}).value;
    EXPECT_EQ(equal_bits(one, other), rate == 0);
    EXPECT_TRUE(equal_bits(one, layer(scope, x, {}, {0, 2}).value)) << "drawn again";
  }
}

TEST(HeadGroups, AreOneWhereAllHeadsAreLookedAtOrReplaced) {
  AttentionOptions options = six_heads();
  options.groups = 2;
  Initializer init(Rng(1), DType::f64);
  SinkhornAttention layer(options, init);
  EXPECT_EQ(layer.groups(Scope{}), 2);
  const Observer observer = [](std::string_view, const Tensor&) {};
  EXPECT_EQ(layer.groups(Scope{.observer = &observer}), 1);
  InjectedNoise noise({});
  EXPECT_EQ(layer.groups(Scope{.injected = &noise}), 1);
  layer.twin = [](const SinkhornAttention&, const Scope&, const Var& q, const Var&, const AttentionMasks&) {
    return q;
  };
  EXPECT_EQ(layer.groups(Scope{}), 1);
}

}  // namespace
}  // namespace sinkhorn
