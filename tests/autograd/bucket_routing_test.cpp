// Streaming routing against top-k of the matrix of all scores: the same picks, ties among them, and the same gradients.
#include "autograd/ops/bucket_routing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "autograd/best_of_stream.h"
#include "autograd/ops.h"
#include "autograd/pool.h"
#include "nn/sort_net.h"

namespace sinkhorn {
namespace {

struct Point {
  Tensor queries, keys, open;  // open (B, parts, M) or none
  bool causal;
  std::int64_t n;
};

// The logits as a matrix.
TopK composed(const Point& p, const Var& queries, const Var& keys, double temperature, const Tensor& picks = {}) {
  const Shape q = queries.shape(), k = keys.shape();
  const std::int64_t heads = q[1], rows = q[2], columns = k[2], nulls = p.causal ? p.n : 0;
  Tensor open({q[0], heads, rows, nulls + columns}, DType::boolean);
  bool* out = open.data<bool>();
  for (std::int64_t b = 0; b < q[0]; ++b)
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t u = 0; u < rows; ++u)
        for (std::int64_t j = -nulls; j < columns; ++j) {
          const std::int64_t parts = p.open ? p.open.shape()[1] : 1, part = parts == 2 && h >= heads / 2 ? 1 : 0;
          *out++ =
              j < 0 || ((!p.causal || j < u) && (!p.open || p.open.data<bool>()[(b * parts + part) * columns + j]));
        }
  Var scores = scale(matmul(queries, keys, false, true), 1 / std::sqrt(double(q[3])));
  if (nulls > 0) scores = concat({Tensor::zeros({q[0], heads, rows, nulls}, queries.value.dtype()), scores}, -1);
  return top_k(mask_fill(scores, open, -std::numeric_limits<double>::infinity()), p.n, temperature, picks);
}

Tensor whole(std::uint64_t seed, Shape shape, DType dtype) {
  const Tensor numbers = integers(Rng(seed), shape, 3);
  return sub(Var(numbers.to(dtype)), Tensor::full({}, 1, dtype)).value;
}

// Whole numbers, so that every score is exact whatever the order of its sum, and many are equal.
std::vector<Point> points_with_ties(DType dtype) {
  std::vector<Point> points;
  std::uint64_t seed = 0;
  for (const bool causal : {true, false})
    for (const std::int64_t n : {1, 2, 5})
      for (const std::int64_t parts : {0, 1, 2}) {
        const std::int64_t rows = 130 + parts, columns = causal ? rows : 70;
        Draw draw(Rng(90 + ++seed));
        points.push_back({whole(seed, {2, 3, rows, 4}, dtype), whole(100 + seed, {2, 3, columns, 4}, dtype),
                          parts > 0 ? draw.mask({2, parts, columns}, 0.5) : Tensor(), causal, n});
      }
  return points;
}

TEST(RouteBuckets, PicksWhatTheMatrixOfScoresPicks) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    std::int64_t ties = 0;
    for (const Point& p : points_with_ties(dtype)) {
      const TopK expected = composed(p, p.queries, p.keys, 0.75);
      for (const Device device : {Device::cpu, Device::cuda}) {
        const Tensor open = p.open ? p.open.to(device) : Tensor();
        const TopK found = route_buckets({p.queries.to(device), p.keys.to(device), open, p.causal}, p.n, 0.75);
        EXPECT_TRUE(equal_bits(found.picks.to(Device::cpu), expected.picks));
        const auto got = found.weights.value.to_vector(), want = expected.weights.value.to_vector();
        for (std::size_t i = 0; i < got.size(); ++i) {
          ASSERT_NEAR(got[i], want[i], dtype == DType::f64 ? 1e-13 : 1e-5);
          ties += want[i] == 0.5;
        }
      }
    }
    EXPECT_GT(ties, 0) << "nothing was equal, so nothing was shown of ties";
  }
}

TEST(RouteBuckets, HasTheGradientsOfTheMatrixOfScores) {
  for (const Point& p : points_with_ties(DType::f64)) {
    const auto gradients = [&](Device device, auto route) {
      const Tape tape = Tape::record();
      const Var queries = tape.leaf(p.queries.to(device)), keys = tape.leaf(p.keys.to(device));
      const Var weights = route(queries, keys).weights;
      const Gradients all = tape.backward(weights, uniform(Rng(7), weights.shape(), -1, 1, DType::f64).to(device));
      return std::pair(all.of(queries).to_vector(), all.of(keys).to_vector());
    };
    const auto [dq, dk] = gradients(Device::cpu, [&](auto& q, auto& k) { return composed(p, q, k, 0.75); });
    for (const Device device : {Device::cpu, Device::cuda}) {
      const auto [dq_streamed, dk_streamed] = gradients(device, [&](const Var& q, const Var& k) {
        return route_buckets({q, k, p.open ? p.open.to(device) : Tensor(), p.causal}, p.n, 0.75);
      });
      for (std::size_t i = 0; i < dq.size(); ++i) ASSERT_NEAR(dq_streamed[i], dq[i], 1e-12);
      for (std::size_t i = 0; i < dk.size(); ++i) ASSERT_NEAR(dk_streamed[i], dk[i], 1e-12);
    }
  }
}

TEST(RouteBuckets, ReplaysPicksThatAreNoLongerTheBest) {
  const Point p{uniform(Rng(1), {1, 2, 70, 3}, -1, 1, DType::f64),
                uniform(Rng(2), {1, 2, 70, 3}, -1, 1, DType::f64),
                {},
                true,
                2};
  const Tensor picks = composed(p, p.queries, p.keys, 0.75).picks;
  const Tensor moved = uniform(Rng(3), p.queries.shape(), -1, 1, DType::f64);
  const std::vector<double> want = composed(p, moved, p.keys, 0.75, picks).weights.value.to_vector();
  for (const Device device : {Device::cpu, Device::cuda}) {
    const TopK found = route_buckets({moved.to(device), p.keys.to(device)}, 2, 0.75, picks.to(device));
    EXPECT_TRUE(equal_bits(found.picks.to(Device::cpu), picks));
    const std::vector<double> got = found.weights.value.to_vector();
    for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-13);
  }
}

TEST(RouteBuckets, KeepsWhatAShiftToTheBestLogitWouldLose) {
  // Beside 2,000 all others vanish, yet of what is left the second pick has half.
  const Tensor queries = Tensor::full({1, 1, 1, 1}, 1), keys = Tensor::from<float>({0, 2000, 0}, {1, 1, 3, 1});
  for (const Device device : {Device::cpu, Device::cuda}) {
    const TopK chosen = route_buckets({queries.to(device), keys.to(device), {}, false}, 2, 0.75);
    EXPECT_EQ(chosen.weights.value.to_vector(), std::vector<double>({1, 0.5}));
    EXPECT_EQ(chosen.picks.to(Device::cpu).to_vector(), std::vector<double>({1, 0}));
  }
}

TEST(RouteBuckets, ErrorsNameWhatDoesNotFit) {
  const auto message = [](auto call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  const Tensor x = Tensor::zeros({1, 2, 3, 4});
  EXPECT_EQ(message([&] {
              route_buckets({x, Tensor::zeros({1, 2, 3, 5})}, 1, 1);
            }),
            "route_buckets: expected queries (B, h, N, d) and keys (B, h, M, d) of one dtype, got f32 (1, 2, 3, 4) and "
            "f32 (1, 2, 3, 5)");
  EXPECT_EQ(message([&] {
              route_buckets({x, Tensor::zeros({1, 2, 2, 4})}, 1, 1);
            }),
            "route_buckets: causal routing needs as many key buckets as query buckets, got 2 and 3");
  EXPECT_EQ(message([&] {
              route_buckets({x, x}, kMostStreamedPicks + 1, 1);
            }),
            "route_buckets: n must be in 1 .. 32, got 33");
  EXPECT_EQ(message([&] { route_buckets({x, x}, 1, 0); }), "route_buckets: temperature must be above 0, got 0");
  EXPECT_EQ(message([&] {
              route_buckets({x, x, Tensor::zeros({1, 3, 3}, DType::boolean)}, 1, 1);
            }),
            "route_buckets: open must be bool (B, 1, M) or (B, 2, M) with B 1 and M 3, got bool (1, 3, 3)");
  EXPECT_EQ(message([&] {
              route_buckets({x, x}, 1, 1, Tensor::full({1, 2, 3, 1}, 4, DType::i32));
            }),
            "route_buckets: pick 4 is neither -1 nor one of 4 columns");
}

// Bytes that routing forward and back takes beside its inputs, for so many buckets.
double routing_peak(std::int64_t buckets) {
  const Tensor queries = uniform(Rng(1), {1, 1, buckets, 2}, -1, 1), keys = uniform(Rng(2), {1, 1, buckets, 2}, -1, 1);
  const Tape tape = Tape::record();
  Pool& pool = Pool::of(Device::cpu);
  const std::size_t before = pool.stats().in_use;
  pool.reset_peak();
  const Var weights = route_buckets({tape.leaf(queries), tape.leaf(keys)}, 2, 0.75).weights;
  tape.backward(weights, Tensor::full(weights.shape(), 1));
  return double(pool.stats().peak - before);
}

TEST(RouteBuckets, TakesMemoryInProportionToTheBuckets) {
  const double less = routing_peak(512), more = routing_peak(4096);
  EXPECT_LE(more, 8.5 * less);
  EXPECT_LE(more, 100 * 4096);
}

// 4,194,304 tokens in buckets of 128.
TEST(RouteBuckets, RoutesFourMillionTokens) {
  if (!std::getenv("SINKHORN_LONG_TESTS")) GTEST_SKIP() << "long: set SINKHORN_LONG_TESTS=1";
  EXPECT_LE(routing_peak(32768), 100 * 32768);
}

// The mask of rotated heads, as the matrix of choices has it.
TEST(RouteBuckets, KnowsWhichRotatedBucketsHoldATokenAsTheMatrixDoes) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const std::int64_t batch = 2, buckets = 5, bucket = 1 + std::int64_t(seed % 4);
    Draw draw{Rng(seed)};
    const Tensor mask = draw.mask({batch, buckets * bucket}, 0.3);
    const Tensor matrix = causal_choices(batch, 2, buckets, bucket, 0, mask);
    const Tensor open = rotated_buckets_with_tokens(mask, bucket);
    for (std::int64_t row = 0; row < 2 * batch; ++row)  // a sequence and one of its two heads
      for (std::int64_t j = 0; j + 1 < buckets; ++j)
        EXPECT_EQ(matrix.data<bool>()[(row * buckets + buckets - 1) * buckets + j],
                  open.data<bool>()[row * buckets + j]);
  }
}

}  // namespace
}  // namespace sinkhorn
