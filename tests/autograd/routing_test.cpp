// Top-k, the gather of buckets and its dense twin: known numbers, ties, and rows with nothing to choose.
#include "autograd/ops/routing.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/gradcheck.h"
#include "autograd/ops/matmul.h"

namespace sinkhorn {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

Tensor row(const std::vector<double>& values) { return Tensor::from(values, {1, std::int64_t(values.size())}); }
std::vector<std::int32_t> picks_of(const TopK& chosen) {
  const auto picks = chosen.picks.span<std::int32_t>();
  return {picks.begin(), picks.end()};
}
using Picks = std::vector<std::int32_t>;

TEST(TopK, WeighsEachPickAmongWhatIsLeft) {
  const TopK chosen = top_k(row({1, 3, 2}), 2, 0.5);
  EXPECT_EQ(picks_of(chosen), Picks({1, 2}));
  const std::vector<double> weights = chosen.weights.value.to_vector();
  EXPECT_NEAR(weights[0], std::exp(6) / (std::exp(2) + std::exp(6) + std::exp(4)), 1e-15);
  EXPECT_NEAR(weights[1], std::exp(4) / (std::exp(2) + std::exp(4)), 1e-15);
}

TEST(TopK, OfTwoEqualLogitsIsAHalfAndThenOne) {
  const TopK chosen = top_k(row({0, 0}), 2, 0.75);
  EXPECT_EQ(picks_of(chosen), Picks({0, 1}));
  EXPECT_EQ(chosen.weights.value.to_vector(), std::vector<double>({0.5, 1}));
}

TEST(TopK, TiesGoToTheLowestColumn) {
  EXPECT_EQ(picks_of(top_k(row({1, 5, 5, 5, 1}), 4, 1)), Picks({1, 2, 3, 0}));
  // Logits decide, not probabilities that a large temperature rounds to the same number.
  EXPECT_EQ(picks_of(top_k(Tensor::from<float>({0.f, 1e-7f, 2e-7f}, {1, 3}), 2, 100)), Picks({2, 1}));
}

TEST(TopK, NeverChoosesMinusInfinity) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    const TopK chosen = top_k(row({kNone, 2, kNone, 1}).to(dtype), 3, 1);
    EXPECT_EQ(picks_of(chosen), Picks({1, 3, -1}));
    EXPECT_EQ(chosen.weights.value.to_vector()[1], 1);
    EXPECT_EQ(chosen.weights.value.to_vector()[2], 0);
    const TopK nothing = top_k(row({kNone, kNone}).to(dtype), 2, 1);
    EXPECT_EQ(picks_of(nothing), Picks({-1, -1}));
    EXPECT_EQ(nothing.weights.value.to_vector(), std::vector<double>({0, 0}));
  }
  EXPECT_EQ(picks_of(top_k(Tensor::zeros({1, 0}), 2, 1)), Picks({-1, -1})) << "no columns at all";
}

TEST(TopK, GivesMinusInfinityNoGradient) {
  const Tape tape = Tape::record();
  const Var logits = tape.leaf(Tensor::from<double>({kNone, 2, 0, 1, kNone, kNone, kNone, kNone}, {2, 4}));
  const Var weights = top_k(logits, 4, 0.75).weights;
  const std::vector<double> flow =
      tape.backward(weights, uniform(Rng(1), {2, 4}, 1, 2, DType::f64)).of(logits).to_vector();
  for (std::size_t i : {0, 4, 5, 6, 7}) EXPECT_EQ(flow[i], 0);
  EXPECT_NE(flow[1], 0);
  EXPECT_NE(flow[3], 0);
  EXPECT_NEAR(flow[1] + flow[2] + flow[3], 0, 1e-15) << "a softmax does not see a constant added to its logits";
}

TEST(TopK, BecomesOneHotAsTemperatureFalls) {
  const double gap = 0.25;
  for (double temperature : {0.5, 0.1, 0.02, 1e-3, 1e-30}) {
    const TopK chosen = top_k(row({0, 1, 1 + gap, -1}), 1, temperature);
    const double off = 1 - chosen.weights.value.item();
    EXPECT_EQ(picks_of(chosen), Picks({2}));
    EXPECT_GE(off, 0);
    EXPECT_LE(off, 3 * std::exp(-gap / temperature) + 1e-15) << temperature;
  }
}

TEST(TopK, ReplaysGivenPicks) {
  const Tensor logits = uniform(Rng(3), {6, 5}, -2, 2);
  const TopK searched = top_k(logits, 2, 0.75), replayed = top_k(logits, 2, 0.75, searched.picks);
  EXPECT_TRUE(equal_bits(searched.weights.value, replayed.weights.value));
  EXPECT_TRUE(equal_bits(searched.picks, replayed.picks));
  const TopK other = top_k(row({1, 3, 2}), 2, 1, Tensor::from<std::int32_t>({0, 2}, {1, 2}));
  EXPECT_NEAR(other.weights.value.to_vector()[0], 1 / (1 + std::exp(2) + std::exp(1)), 1e-15);
  EXPECT_NEAR(other.weights.value.to_vector()[1], std::exp(2) / (std::exp(3) + std::exp(2)), 1e-15);
}

TEST(TopK, RefusesWhatMakesNoSense) {
  const Tensor logits = row({1, 2});
  EXPECT_THROW(top_k(logits, 0, 1), Error);
  EXPECT_THROW(top_k(logits, 1, 0), Error);
  EXPECT_THROW(top_k(logits, 1, NAN), Error);
  EXPECT_THROW(top_k(logits, 1, 1, Tensor::from<std::int32_t>({2}, {1, 1})), Error);
  EXPECT_THROW(top_k(logits, 1, 1, Tensor::from<std::int32_t>({0, 1}, {1, 2})), Error);
}

TEST(GatherBuckets, CopiesWeightedBucketsInOrder) {
  const Tensor x = Tensor::from<float>({1, 2, 3, 4, 5, 6}, {1, 3, 2, 1});  // three buckets of two
  const Tensor weights = Tensor::from<float>({0.5f, 2, 1, 9}, {1, 2, 2});
  const Tensor picks = Tensor::from<std::int32_t>({2, 0, 2, -1}, {1, 2, 2});
  const Var y = gather_buckets(x, weights, picks);
  EXPECT_EQ(y.shape(), Shape({1, 2, 4, 1}));
  EXPECT_EQ(y.value.to_vector(), std::vector<double>({2.5, 3, 2, 4, 5, 6, 0, 0}));
  EXPECT_EQ(sorting_matrix(weights, picks, 3).value.to_vector(),
            std::vector<double>({0, 0, 0.5, 2, 0, 0, 0, 0, 1, 0, 0, 0}));
}

// One route through the gather, one through the dense matrix: values and both gradients agree.
TEST(GatherBuckets, EqualsItsDenseTwin) {
  const std::int64_t G = 3, M = 5, N = 4, n = 2, c = 3, d = 7;
  const Tensor picks = integers(Rng(5), {G, N, n}, M + 1);
  for (std::int32_t& pick : picks.span<std::int32_t>()) --pick;
  const Tensor bucketed = uniform(Rng(1), {G, M, c, d}, -1, 1, DType::f64);
  const Tensor weighted = uniform(Rng(2), {G, N, n}, -1, 1, DType::f64);
  const Tensor cotangent = uniform(Rng(3), {G, N, n * c, d}, -1, 1, DType::f64);

  const Tape sparse = Tape::record(), dense = Tape::record();
  const Var x = sparse.leaf(bucketed), weights = sparse.leaf(weighted);
  const Var y = gather_buckets(x, weights, picks);
  const Gradients gradients = sparse.backward(y, cotangent);

  const Var flat = dense.leaf(bucketed.reshape({G, M, c * d})), same = dense.leaf(weighted);
  const Var z = matmul(sorting_matrix(same, picks, M), flat);
  const Gradients twins = dense.backward(z, cotangent.reshape(z.shape()));

  EXPECT_LE(relative_error(y.value.reshape(z.shape()), z.value), 1e-14);
  EXPECT_LE(relative_error(gradients.of(x).reshape({G, M, c * d}), twins.of(flat)), 1e-14);
  EXPECT_LE(relative_error(gradients.of(weights), twins.of(same)), 1e-14);
}

TEST(GatherBuckets, RefusesForeignPicks) {
  const Tensor x = Tensor::zeros({1, 3, 2, 1}), weights = Tensor::zeros({1, 1, 1});
  for (std::int32_t pick : {3, -2}) {
    const Tensor picks = Tensor::from<std::int32_t>({pick}, {1, 1, 1});
    EXPECT_THROW(gather_buckets(x, weights, picks), Error);
    EXPECT_THROW(sorting_matrix(weights, picks, 3), Error);
  }
  EXPECT_THROW(gather_buckets(x, weights, Tensor::zeros({1, 1, 1})), Error) << "picks must be i32";
}

}  // namespace
}  // namespace sinkhorn
