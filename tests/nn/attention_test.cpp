// The fused attention against the one composed from small ops, and the sort net's summaries against plain loops.
#include "nn/attention.h"

#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "autograd/parallel.h"
#include "tests/models/random_model.h"

namespace sinkhorn {
namespace {

struct Point {
  Tensor q, kv, weights, null_keys, null_values, picks, mask;
  std::int64_t bucket, local;
};

// Random inputs with the picks and weights of a real sort net.
Point random_point(std::uint64_t seed, DType dtype = DType::f64) {
  testing::Dice dice(seed);
  const std::int64_t batch = 2, heads = dice.between(1, 4), local = dice.upto(heads), width = dice.between(1, 4);
  const std::int64_t bucket = dice.between(1, 5), length = bucket * dice.between(1, 5), n_top = dice.between(1, 3);
  std::uint32_t tag = 0;
  auto draw = [&](Shape shape) { return uniform(Rng(seed).split(++tag), shape, -2, 2, dtype); };
  Point p{draw({batch, length, heads, width}),
          draw({batch, length, 2, heads, width}),
          {},
          draw({heads - local, 1, width}),
          draw({heads - local, 1, width}),
          {},
          testing::random_mask(dice, testing::Padding(dice.upto(3)), batch, length),
          bucket,
          local};
  const Routing routing = CausalSortNet()(Scope{}, p.q, p.kv, bucket, local, n_top, 0.75, p.mask);
  p.weights = routing.weights.value;
  p.picks = routing.picks;
  return p;
}

// y, and the gradients of all differentiable inputs for one cotangent.
Tensors run(decltype(&bucketed_attention) attention, const Point& p, double dropout) {
  const Tape tape = Tape::record();
  const std::vector<Var> leaves{tape.leaf(p.q), tape.leaf(p.kv), tape.leaf(p.weights), tape.leaf(p.null_keys),
                                tape.leaf(p.null_values)};
  const Var y = attention(leaves[0], leaves[1], {leaves[2], p.picks}, leaves[3], leaves[4], p.bucket, p.local, p.mask,
                          dropout, Rng(3));
  const Gradients gradients = tape.backward(y, uniform(Rng(4), y.shape(), -1, 1, y.value.dtype()));
  Tensors all{y.value};
  for (const Var& leaf : leaves) {
    const Tensor gradient = gradients.of(leaf);
    all.push_back(gradient ? gradient : Tensor::zeros(leaf.shape(), y.value.dtype()));
  }
  return all;
}

TEST(BucketedAttention, EqualsTheComposedForm) {
  for (int seed = 0; seed < testing::configurations(100, 1000); ++seed) {
    const Point p = random_point(seed);
    for (double dropout : {0.0, 0.3}) {
      const Tensors fused = run(bucketed_attention, p, dropout), composed = run(composed_attention, p, dropout);
      double largest = 0;
      for (const Tensor& t : composed)
        for (double x : t.to_vector()) largest = std::max(largest, std::abs(x));
      for (std::size_t i = 0; i < fused.size(); ++i)
        EXPECT_LE(relative_error(fused[i], composed[i], largest), 1e-12) << "tensor " << i << " seed " << seed;
    }
  }
}

TEST(BucketedAttention, LowerPrecisionStaysNearF64) {
  for (int seed = 0; seed < 20; ++seed) {
    Point exact = random_point(seed);
    for (DType dtype : {DType::f32, DType::bf16}) {
      Point rounded = exact;
      for (Tensor Point::*field : {&Point::q, &Point::kv, &Point::weights, &Point::null_keys, &Point::null_values}) {
        rounded.*field = (exact.*field).to(dtype);
        exact.*field = (rounded.*field).to(DType::f64);
      }
      const Tensors got = run(bucketed_attention, rounded, 0), want = run(bucketed_attention, exact, 0);
      for (std::size_t i = 0; i < got.size(); ++i)
        EXPECT_LE(relative_error(got[i], want[i], 1), dtype == DType::f32 ? 2e-5 : 4e-2) << i << " seed " << seed;
    }
  }
}

TEST(BucketedAttention, HasTheSameBitsForAnyNumberOfThreads) {
  const Point p = random_point(7, DType::f32);
  const int before = threads();
  set_threads(1);
  const Tensors one = run(bucketed_attention, p, 0.2);
  for (int count : {2, 4}) {
    set_threads(count);
    const Tensors many = run(bucketed_attention, p, 0.2);
    for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(equal_bits(one[i], many[i])) << i;
  }
  set_threads(before);
}

TEST(BucketedAttention, PaddedQueriesAndRowsWithoutKeysAreZero) {
  Point p = random_point(11);
  p.mask = Tensor::zeros({2, p.q.shape()[1]}, DType::boolean);
  for (const Tensor& t : run(bucketed_attention, p, 0))
    for (double x : t.to_vector()) EXPECT_EQ(x, 0);
}

TEST(BucketedAttention, NamesTheExtentsThatDoNotFit) {
  const Point p = random_point(1);
  try {
    bucketed_attention(p.q, p.q, {p.weights, p.picks}, p.null_keys, p.null_values, p.bucket, p.local);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("bucketed_attention: expected q (B, T, H, d) and kv (B, T, 2, H, d)"),
              std::string::npos)
        << error.what();
  }
}

// Two heads, the second rotated left by 1; tokens 2 and 3 are padded: bucket 1 of the plain head holds no real token,
// while the rotated head's buckets are (1, 2), (3, 4), (5, 0).
TEST(CausalChoices, AreNullsAndEarlierBucketsWithARealToken) {
  Tensor mask = Tensor::full({1, 6}, 1, DType::boolean);
  mask.data<bool>()[2] = mask.data<bool>()[3] = false;
  const std::vector<double> expected{1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0,   // head 0: a null, then buckets 0 .. 2
                                     1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0};  // head 1
  EXPECT_EQ(causal_choices(1, 2, 3, 2, 1, mask).to_vector(), expected);
}

// bucket_summary against cumulative_mean and slices, rotated heads and masks included.
TEST(BucketSummary, EqualsTheComposedForm) {
  for (int seed = 0; seed < 60; ++seed) {
    const Point p = random_point(seed);
    const Shape s = p.q.shape();
    const std::int64_t batch = s[0], length = s[1], sorting = s[2] - p.local, buckets = length / p.bucket;
    if (sorting == 0) continue;
    auto halves_rotated = [&](const Var& x, int time) {  // heads on axis 1
      return concat({slice(x, 1, 0, sorting / 2), rotate(slice(x, 1, sorting / 2, sorting), time, p.bucket - 1)}, 1);
    };
    const Tensor real = p.mask ? p.mask : Tensor::full({batch, length}, 1, DType::boolean);
    const Var mask = halves_rotated(broadcast_to(reshape(Var(real), {batch, 1, length}), {batch, sorting, length}), 2);
    const Tensor flat_mask = mask.value.reshape({batch * sorting, length});
    const Var x = reshape(halves_rotated(slice(permute(p.q, {0, 2, 1, 3}), 1, p.local, s[2]), 2),
                          {batch * sorting, length, s[3]});
    const Var means = cumulative_mean(x, flat_mask);
    const Shape bucketed{batch, sorting, buckets, p.bucket, s[3]};
    auto first = [&](const Var& y) {
      return reshape(slice(reshape(y, bucketed), 3, 0, 1), {batch, sorting, buckets, s[3]}).value;
    };
    const Tensor per_element = broadcast_to(reshape(Var(flat_mask), {batch * sorting, length, 1}), x.shape()).value;
    auto of_real = [&](const Var& y) { return mask_fill(y, per_element, 0); };
    EXPECT_LE(
        relative_error(bucket_summary(p.q, Summary::mean_at_first, p.bucket, p.local, 0, p.mask).value, first(means)),
        1e-13);
    EXPECT_LE(relative_error(bucket_summary(p.q, Summary::value_at_first, p.bucket, p.local, 0, p.mask).value,
                             first(of_real(x))),
              0);
    EXPECT_LE(relative_error(bucket_summary(p.q, Summary::sum_of_means, p.bucket, p.local, 0, p.mask).value,
                             sum(reshape(of_real(means), bucketed), 3).value),
              1e-13);
  }
}

}  // namespace
}  // namespace sinkhorn
