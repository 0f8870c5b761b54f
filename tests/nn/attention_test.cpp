// The fused attention against the one composed from small ops, and the sort net's summaries against plain loops.
#include "nn/attention.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>

#include "autograd/gradcheck.h"
#include "autograd/parallel.h"
#include "cuda/device.h"
#include "nn/composed_attention.h"
#include "nn/flat_parameters.h"
#include "tests/models/random_model.h"

namespace sinkhorn {
namespace {

struct Point {
  Tensor q, kv, weights, null_keys, null_values, picks;
  AttentionMasks masks;
  AttentionPattern pattern;

  Routing routing() const { return {weights, picks}; }
};

enum class Direction { past, both, context };

// Random inputs with the picks and weights of a real sort net.
Point random_point(std::uint64_t seed, Direction direction = Direction::past, DType dtype = DType::f64) {
  testing::Dice dice(seed);
  const bool causal = direction == Direction::past, cross = direction == Direction::context;
  const std::int64_t batch = 2, heads = dice.between(1, 4), local = cross ? 0 : dice.upto(heads);
  const std::int64_t width = dice.between(1, 4), bucket = dice.between(1, 5), n_top = dice.between(1, 3);
  const std::int64_t key_bucket = causal ? bucket : dice.between(1, 5);
  const std::int64_t length = std::lcm(bucket, cross ? 1 : key_bucket) * dice.between(1, 5);
  const std::int64_t key_length = cross ? key_bucket * dice.between(1, 5) : length;
  std::uint32_t tag = 0;
  auto draw = [&](Shape shape) { return uniform(Rng(seed).split(++tag), shape, -2, 2, dtype); };
  auto mask = [&](std::int64_t length) {
    return testing::random_mask(dice, testing::Padding(dice.upto(3)), batch, length);
  };
  auto null = [&] { return causal ? draw({heads - local, 1, width}) : Tensor(); };
  Point p{.q = draw({batch, length, heads, width}),
          .kv = draw({batch, key_length, 2, heads, width}),
          .weights = {},
          .null_keys = null(),
          .null_values = null(),
          .picks = {},
          .masks = {mask(length), {}},
          .pattern = {bucket, key_bucket, local, causal, !cross}};
  p.masks.keys = cross ? mask(key_length) : p.masks.queries;
  const SortOptions sort{p.pattern, n_top, dice.chance(0.3) ? dice.between(1, 3) : 0, 0.75, 1, dice.chance(0.5)};
  const Routing routing = causal ? CausalSortNet()(Scope{}, p.q, p.kv, bucket, local, n_top, 0.75, p.masks.queries)
                                 : SortNet().route(Scope{}, p.q, p.kv, sort, p.masks);
  p.weights = routing.weights.value;
  p.picks = routing.picks;
  return p;
}

// y, and the gradients of all differentiable inputs for one cotangent.
Tensors run(decltype(&bucketed_attention) attention, const Point& p, double dropout) {
  const Tape tape = Tape::record();
  std::vector<Var> leaves{tape.leaf(p.q), p.kv ? tape.leaf(p.kv) : Var(), tape.leaf(p.weights)};
  NullBlock null;
  if (p.null_keys) {
    null = {tape.leaf(p.null_keys), tape.leaf(p.null_values)};
    leaves.insert(leaves.end(), {null.keys, null.values});
  }
  const Var y = attention(leaves[0], leaves[1], {leaves[2], p.picks}, null, p.pattern, p.masks, {dropout, Rng(3)});
  const Gradients gradients = tape.backward(y, uniform(Rng(4), y.shape(), -1, 1, y.value.dtype()));
  Tensors all{y.value};
  for (const Var& leaf : leaves) {
    if (!leaf.value) continue;
    const Tensor gradient = gradients.of(leaf);
    all.push_back(gradient ? gradient : Tensor::zeros(leaf.shape(), y.value.dtype()));
  }
  return all;
}

constexpr Direction kDirections[] = {Direction::past, Direction::both, Direction::context};

TEST(BucketedAttention, EqualsTheComposedForm) {
  for (int seed = 0; seed < testing::configurations(150, 1500); ++seed) {
    const Point p = random_point(seed, kDirections[seed % 3]);
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

// Queries, keys and values in one tensor (B, T, 3, H, d), or queries apart: the same bits, in gradients, too.
TEST(BucketedAttention, TakesAllPackedWithTheSameBits) {
  for (int seed = 0; seed < 40; ++seed) {
    const Direction direction = seed % 2 ? Direction::past : Direction::both;
    const Point p = random_point(seed, direction, seed % 4 < 2 ? DType::f32 : DType::f64);
    const Shape s = p.q.shape();
    const auto beside_keys = [&](const Tensor& q, const Tensor& kv) {
      return concat({reshape(q, {s[0], s[1], 1, s[2], s[3]}), kv}, 2).value;
    };
    Point packed = p;
    packed.q = beside_keys(p.q, p.kv);
    packed.kv = {};
    for (const auto& attention : {bucketed_attention, composed_attention}) {
      const Tensors apart = run(attention, p, 0.3), together = run(attention, packed, 0.3);
      ASSERT_EQ(together.size() + 1, apart.size());
      EXPECT_TRUE(equal_bits(together[0], apart[0])) << "seed " << seed;
      EXPECT_TRUE(equal_bits(together[1], beside_keys(apart[1], apart[2]))) << "seed " << seed;
      for (std::size_t i = 2; i < together.size(); ++i)
        EXPECT_TRUE(equal_bits(together[i], apart[i + 1])) << "tensor " << i << " seed " << seed;
    }
    if (p.pattern.local == s[2]) continue;
    const SortOptions sort{p.pattern, 2, seed % 3, 0.75};
    const auto route = [&](const Tensor& q, const Tensor& kv) {
      return direction == Direction::past
                 ? CausalSortNet()(Scope{}, q, kv, p.pattern.bucket, p.pattern.local, 2, 0.75, p.masks.queries)
                 : SortNet().route(Scope{}, q, kv, sort, p.masks);
    };
    const Routing apart = route(p.q, p.kv), together = route(packed.q, {});
    EXPECT_TRUE(equal_bits(apart.picks, together.picks) && equal_bits(apart.weights.value, together.weights.value));
  }
}

// Self-attention projects in one product, of both weights where they lie: from the start, flat, and on a device.
TEST(SinkhornAttention, QueriesKeysAndValuesAreOneProduct) {
  Initializer init(Rng(1), DType::f32);
  SinkhornAttention layer({.dim = 6, .heads = 2, .width = 3, .bucket = 2, .key_bucket = 2}, init);
  const auto lies_together = [&](Tensor Parameter::*part) {
    return bool(Tensor::adjoining(std::array{layer.to_q.weight.*part, layer.to_kv->weight.*part}));
  };
  const auto multiplies_in_place = [&] {
    const Tape tape = Tape::record();
    layer(Scope{.tape = tape}, tape.leaf(uniform(Rng(2), {1, 4, 6}, -1, 1)));
    std::vector<NodeInfo> products;
    for (const NodeInfo& node : tape.nodes())
      if (node.name == "linear") products.push_back(node);
    ASSERT_EQ(products.size(), 2u);
    EXPECT_EQ(products[0].shape, Shape({1, 4, 18}));
    EXPECT_EQ(products[0].kept[1].memory, layer.to_q.weight.value.raw());
  };
  multiplies_in_place();
  FlatParameters flat(layer);
  flat.round();
  for (Tensor Parameter::*part : {&Parameter::value, &Parameter::gradient, &Parameter::rounded})
    EXPECT_TRUE(lies_together(part));
  multiplies_in_place();
  if (!cuda::is_usable()) return;
  move_to(Device::cuda, layer);
  EXPECT_TRUE(lies_together(&Parameter::value));
}

TEST(BucketedAttention, LowerPrecisionStaysNearF64) {
  for (int seed = 0; seed < 20; ++seed) {
    Point exact = random_point(seed, kDirections[seed % 3]);
    for (DType dtype : {DType::f32, DType::bf16}) {
      Point rounded = exact;
      for (Tensor Point::*field : {&Point::q, &Point::kv, &Point::weights, &Point::null_keys, &Point::null_values}) {
        if (!(exact.*field)) continue;
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
  const int before = threads();
  for (const Direction direction : kDirections) {
    const Point p = random_point(7, direction, DType::f32);
    set_threads(1);
    const Tensors one = run(bucketed_attention, p, 0.2);
    for (int count : {2, 4}) {
      set_threads(count);
      const Tensors many = run(bucketed_attention, p, 0.2);
      for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(equal_bits(one[i], many[i])) << i;
    }
  }
  set_threads(before);
}

TEST(BucketedAttention, PaddedQueriesAndRowsWithoutKeysAreZero) {
  for (const Direction direction : kDirections) {
    Point p = random_point(11, direction);
    p.masks.queries = Tensor::zeros({2, p.q.shape()[1]}, DType::boolean);
    for (const Tensor& t : run(bucketed_attention, p, 0))
      for (double x : t.to_vector()) EXPECT_EQ(x, 0);
  }
  Point p = random_point(11, Direction::context);
  p.masks = {{}, Tensor::zeros({2, p.kv.shape()[1]}, DType::boolean)};
  for (const Tensor& t : run(bucketed_attention, p, 0))
    for (double x : t.to_vector()) EXPECT_EQ(x, 0);
}

TEST(BucketedAttention, NamesTheExtentsThatDoNotFit) {
  const Point p = random_point(1);
  auto message = [&](const Tensor& kv, const AttentionPattern& pattern) -> std::string {
    try {
      bucketed_attention(p.q, kv, p.routing(), {p.null_keys, p.null_values}, pattern);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message(p.q, p.pattern).find("bucketed_attention: expected q (B, T, H, d) and kv (B, S, 2, H, d)"),
            std::string::npos);
  AttentionPattern other = p.pattern;
  other.key_bucket = p.q.shape()[1] + 1;
  EXPECT_NE(message(p.kv, other).find("is not a multiple of the bucket size"), std::string::npos);
}

// A sorting matrix of whole buckets is top-k routing with weight 1.
TEST(BlendedAttention, OfOneHotRowsIsBucketedAttention) {
  for (int seed = 0; seed < testing::configurations(100, 500); ++seed) {
    for (const Direction direction : {Direction::both, Direction::context}) {
      Point p = random_point(seed, direction);
      const Shape s = p.picks.shape();  // (B, h, lists, n)
      if (s[1] == 0) continue;
      const std::int64_t buckets = p.kv.shape()[1] / p.pattern.key_bucket;
      const bool shared = s[2] == 1;
      p.picks = shared ? p.picks : slice(Var(p.picks), 3, 0, 1).value.clone();
      for (std::int32_t& pick : p.picks.span<std::int32_t>()) pick = std::max(pick, 0);  // -1 is no bucket to blend
      const Shape chosen = p.picks.shape();
      p.weights = Tensor::full(chosen, 1, DType::f64);
      const std::int64_t rows = chosen[2] * chosen[3];
      const Var matrix = reshape(sorting_matrix(p.weights.reshape({chosen[0] * chosen[1], rows, 1}),
                                                p.picks.reshape({chosen[0] * chosen[1], rows, 1}), buckets),
                                 {chosen[0], chosen[1], rows, buckets});
      const Tensor want = bucketed_attention(p.q, p.kv, p.routing(), {}, p.pattern, p.masks, {0.2, Rng(3)}).value;
      const Tensor got = blended_attention(p.q, p.kv, matrix, shared, p.pattern, p.masks, {0.2, Rng(3)}).value;
      EXPECT_LE(relative_error(got, want), 1e-13) << "seed " << seed;
    }
  }
}

// A blend of two buckets: a slot counts as real if at least half of its mass is, and what is padded adds nothing.
TEST(BlendedAttention, SeesASlotIfHalfOfItIsReal) {
  const AttentionPattern pattern{1, 1, 0, false, false};
  const Tensor q = Tensor::full({1, 1, 1, 1}, 1, DType::f64);
  const Tensor kv = Tensor::from(std::vector<double>{0, 5, 0, 7}, {1, 2, 2, 1, 1});  // keys 0, values 5 and 7
  Tensor mask = Tensor::full({1, 2}, 1, DType::boolean);
  mask.data<bool>()[1] = false;
  for (const double share : {0.4, 0.5, 0.6}) {
    const Tensor matrix = Tensor::from(std::vector<double>{share, 1 - share}, {1, 1, 1, 2});
    const Tensor y = blended_attention(q, kv, matrix, false, pattern, {{}, mask}).value;
    EXPECT_EQ(y.item(), share >= 0.5 ? 5 * share : 0) << share;
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

Tensor greater_than_zero(const Tensor& x) {
  Tensor result(x.shape(), DType::boolean);
  for (std::int64_t i = 0; i < x.count(); ++i) result.data<bool>()[i] = x.data<double>()[i] > 0;
  return result;
}

// bucket_summary against cumulative_mean and slices, rotated heads and masks included.
TEST(BucketSummary, EqualsTheComposedForm) {
  for (int seed = 0; seed < 60; ++seed) {
    const Point p = random_point(seed);
    const Shape s = p.q.shape();
    const std::int64_t bucket = p.pattern.bucket, local = p.pattern.local;
    const std::int64_t batch = s[0], length = s[1], sorting = s[2] - local, buckets = length / bucket;
    if (sorting == 0) continue;
    auto halves_rotated = [&](const Var& x, int time) {  // heads on axis 1
      return concat({slice(x, 1, 0, sorting / 2), rotate(slice(x, 1, sorting / 2, sorting), time, bucket - 1)}, 1);
    };
    const Tensor real = p.masks.queries ? p.masks.queries : Tensor::full({batch, length}, 1, DType::boolean);
    const Var mask = halves_rotated(broadcast_to(reshape(Var(real), {batch, 1, length}), {batch, sorting, length}), 2);
    const Tensor flat_mask = mask.value.reshape({batch * sorting, length});
    const Var x =
        reshape(halves_rotated(slice(permute(p.q, {0, 2, 1, 3}), 1, local, s[2]), 2), {batch * sorting, length, s[3]});
    const Var means = cumulative_mean(x, flat_mask);
    const Shape bucketed{batch, sorting, buckets, bucket, s[3]};
    auto first = [&](const Var& y) {
      return reshape(slice(reshape(y, bucketed), 3, 0, 1), {batch, sorting, buckets, s[3]}).value;
    };
    const Tensor per_element = broadcast_to(reshape(Var(flat_mask), {batch * sorting, length, 1}), x.shape()).value;
    auto of_real = [&](const Var& y) { return mask_fill(y, per_element, 0); };
    EXPECT_LE(relative_error(bucket_summary(p.q, Summary::mean_at_first, bucket, local, 0, p.masks.queries).value,
                             first(means)),
              1e-13);
    EXPECT_LE(relative_error(bucket_summary(p.q, Summary::value_at_first, bucket, local, 0, p.masks.queries).value,
                             first(of_real(x))),
              0);
    EXPECT_LE(relative_error(bucket_summary(p.q, Summary::sum_of_means, bucket, local, 0, p.masks.queries).value,
                             sum(reshape(of_real(means), bucketed), 3).value),
              1e-13);
    // The summaries of sort nets that look both ways: not rotated, bucket by bucket.
    const Tensor flat = broadcast_to(reshape(Var(real), {batch, 1, length, 1}), {batch, sorting, length, s[3]}).value;
    const Var heads = slice(permute(p.q, {0, 2, 1, 3}), 1, local, s[2]);
    const Var sums = sum(reshape(mask_fill(heads, flat, 0), bucketed), 3);
    const Var counts = sum(reshape(Var(flat.to(DType::f64)), bucketed), 3);
    const Var at_least_one = mask_fill(counts, greater_than_zero(counts.value), 1);
    auto summary = [&](Summary kind) {
      return bucket_summary(p.q, kind, bucket, local, 0, p.masks.queries, false).value;
    };
    EXPECT_LE(relative_error(summary(Summary::sum), sums.value), 1e-13);
    EXPECT_LE(relative_error(summary(Summary::mean), div(sums, at_least_one).value), 1e-13);
  }
}

}  // namespace
}  // namespace sinkhorn
