// Sinkhorn normalisation: what is exact, what converges and how fast, closed columns, limits; and its Gumbel noise.
#include "autograd/ops/sinkhorn.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/movement.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/softmax.h"
#include "autograd/parallel.h"
#include "tests/autograd/expect.h"

namespace sinkhorn {
namespace {

using testing::expect_error;
using testing::filled;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Log scores as routing makes them: log(relu(R0) + 1e-6), half of them at the floor, with noise, at temperature 0.75.
Tensor routing_scores(std::uint64_t key, Shape shape, DType dtype) {
  const Var positive = relu(uniform(Rng(key), shape, -4, 4, DType::f64));
  const Var noisy = log(scale(positive, 1, 1e-6)) + Var(gumbel(Rng(key).split(1), shape, DType::f64));
  return scale(noisy, 1 / 0.75).value.to(dtype);
}

// Sums over rows (axis -2) or along rows (axis -1), in f64.
std::vector<double> sums(const Tensor& y, int axis) { return sum(y.to(DType::f64), axis).value.to_vector(); }

double largest_distance(const std::vector<double>& values, double from) {
  double largest = 0;
  for (double v : values) largest = std::abs(v - from) <= largest ? largest : std::abs(v - from);
  return largest;
}

TEST(Sinkhorn, EqualsItsCompositionFromSmallOps) {
  for (const Shape& shape : {Shape{2, 6, 6}, Shape{5, 9}, Shape{9, 5}, Shape{2, 3, 4, 4}, Shape{1, 1}}) {
    for (std::int64_t iterations : {1, 2, 8}) {
      const Tensor x = routing_scores(3, shape, DType::f64), dy = uniform(Rng(4), shape, -1, 1, DType::f64);
      const Tape tape = Tape::record();
      const Var a = tape.leaf(x), y = sinkhorn(a, {}, iterations);
      const Tensor da = tape.backward(y, dy).of(a);
      const Tape other = Tape::record();
      const Var b = other.leaf(x), z = composed_sinkhorn(b, iterations);
      EXPECT_LE(relative_error(y.value, z.value), 1e-13) << shape << ", " << iterations;
      EXPECT_LE(relative_error(da, other.backward(z, dy).of(b)), 1e-12) << shape << ", " << iterations;
      for (DType dtype : {DType::f32, DType::bf16}) {  // against f64 at the same, rounded, numbers
        const Tensor rounded = x.to(dtype), cotangent = dy.to(dtype);
        const Tape narrow = Tape::record(), wide = Tape::record();
        const Var c = narrow.leaf(rounded), d = wide.leaf(rounded.to(DType::f64));
        const Var got = sinkhorn(c, {}, iterations), want = composed_sinkhorn(d, iterations);
        const double tolerance = dtype == DType::f32 ? 2e-5 : 4e-3;
        EXPECT_LE(relative_error(got.value.to(DType::f64), want.value), tolerance) << shape << ", " << iterations;
        EXPECT_LE(relative_error(narrow.backward(got, cotangent).of(c).to(DType::f64),
                                 wide.backward(want, cotangent.to(DType::f64)).of(d)),
                  tolerance)
            << shape << ", " << iterations << " " << dtype;
      }
    }
  }
}

TEST(Sinkhorn, NormalisesColumnsToRoundingAndRowsOnlyRoughly) {
  for (const Shape& shape : {Shape{50, 32, 32}, Shape{20, 7, 40}, Shape{20, 40, 7}}) {
    EXPECT_LE(largest_distance(sums(sinkhorn(routing_scores(1, shape, DType::f64), {}, 5).value, -2), 1), 1.6e-15);
    EXPECT_LE(largest_distance(sums(sinkhorn(routing_scores(1, shape, DType::f32), {}, 5).value, -2), 1), 1.5e-6);
  }
  const Tensor far = add(uniform(Rng(2), {8, 8}, -1, 1), uniform(Rng(3), {8}, -1e4, 1e4)).value;
  EXPECT_LE(largest_distance(sums(sinkhorn(far, {}, 5).value, -2), 1), 1.5e-6) << "where potentials are coarse";
  const double rows = largest_distance(sums(sinkhorn(routing_scores(1, {50, 32, 32}, DType::f64), {}, 5).value, -1), 1);
  EXPECT_GT(rows, 0.01) << "five iterations do not make a matrix doubly stochastic: which axis was last?";
}

TEST(Sinkhorn, NeverMovesTheRowSumsAwayFromOne) {
  for (const Shape& shape : {Shape{32, 32}, Shape{5, 5}, Shape{6, 11}, Shape{11, 6}}) {
    for (std::uint64_t key = 0; key < 20; ++key) {
      const Tensor x = routing_scores(key, shape, DType::f64);
      const double share = double(shape[1]) / double(shape[0]);  // what each row tends to
      double before = kInfinity, first = 0;
      for (std::int64_t iterations = 1; iterations <= 30; ++iterations) {
        double deviation = 0;
        for (double row : sums(sinkhorn(x, {}, iterations).value, -1)) deviation += std::abs(row - share);
        EXPECT_LE(deviation, before + 1e-13) << shape << " key " << key << " after " << iterations;
        before = deviation;
        if (iterations == 1) first = deviation;
      }
      EXPECT_LT(before, 0.5 * first) << shape << " key " << key;
    }
  }
}

// Hilbert's projective distance of two positive vectors.
double hilbert(const std::vector<double>& a, const std::vector<double>& b) {
  double low = kInfinity, high = -kInfinity;
  for (std::size_t i = 0; i < a.size(); ++i) {
    low = std::min(low, std::log(a[i] / b[i]));
    high = std::max(high, std::log(a[i] / b[i]));
  }
  return high - low;
}

// The largest Hilbert distance of two rows of exp(x): the projective diameter of what that matrix makes of the positive
// vectors.
double diameter(const std::vector<double>& x, std::size_t rows, std::size_t columns) {
  double widest = 0;
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t k = 0; k < i; ++k) {
      double low = kInfinity, high = -kInfinity;
      for (std::size_t j = 0; j < columns; ++j) {
        low = std::min(low, x[i * columns + j] - x[k * columns + j]);
        high = std::max(high, x[i * columns + j] - x[k * columns + j]);
      }
      widest = std::max(widest, high - low);
    }
  return widest;
}

// Each half iteration is exp(x) or its transpose applied to a positive vector, and a contraction by
// tanh(diameter / 4) in Hilbert's metric (Birkhoff 1957, Hopf 1963). So the row sums draw together by its square.
TEST(Sinkhorn, ContractsAtLeastAsFastAsBirkhoffAndHopfSay) {
  for (const Shape& shape : {Shape{8, 8}, Shape{4, 9}, Shape{9, 4}}) {
    for (double spread : {0.2, 0.5, 1.0}) {
      const Tensor x = uniform(Rng(5), shape, -spread, spread, DType::f64);
      const double factor = std::tanh(diameter(x.to_vector(), std::size_t(shape[0]), std::size_t(shape[1])) / 4);
      const std::vector<double> even(std::size_t(shape[0]), 1.0);
      double before = hilbert(sums(sinkhorn(x, {}, 1).value, -1), even);
      ASSERT_GT(before, 1e-6);
      for (std::int64_t iterations = 2; iterations <= 8; ++iterations) {
        const double now = hilbert(sums(sinkhorn(x, {}, iterations).value, -1), even);
        EXPECT_LE(now, factor * factor * before + 1e-14) << shape << ", spread " << spread << ", " << iterations;
        before = now;
      }
    }
  }
}

// A constant added to a row is taken away by the first half iteration. One added to a column changes where the
// iteration starts (its first row sums), hence every finite iterate, and not where it ends.
TEST(Sinkhorn, ForgetsRowConstantsAtOnceAndColumnConstantsOnlyInTheLimit) {
  const Tensor x = uniform(Rng(6), {6, 6}, -1, 1, DType::f64), by_row = uniform(Rng(7), {6, 1}, -3, 3, DType::f64),
               by_column = uniform(Rng(8), {6}, -3, 3, DType::f64);
  const Tensor rows_moved = add(x, by_row).value, columns_moved = add(x, by_column).value;
  const auto after = [](const Tensor& scores, std::int64_t iterations) {
    return sinkhorn(scores, {}, iterations).value;
  };
  EXPECT_LE(relative_error(after(rows_moved, 1), after(x, 1)), 1e-14);
  EXPECT_GT(relative_error(after(columns_moved, 1), after(x, 1)), 0.1);
  EXPECT_LE(relative_error(after(columns_moved, 200), after(x, 200)), 1e-13);
}

// Scores whose entries on one permutation are 0 and elsewhere at most -gap. With a = (N - 1) exp(-gap / T), a row's
// first sum is at most 1 + a, so that a column then holds at least 1 / (1 + a) on the permutation and at most a
// elsewhere: normalised, the largest error is below a. On these matrices that holds for later iterates as well (on
// others they may pass it by some per cent).
TEST(Sinkhorn, BecomesThePermutationAsTheTemperatureFalls) {
  constexpr std::size_t kSize = 7;
  constexpr double kGap = 0.5;
  const std::vector<std::size_t> permutation{3, 0, 6, 1, 5, 2, 4};
  std::vector<double> best(kSize * kSize);
  for (std::size_t i = 0; i < kSize; ++i) best[i * kSize + permutation[i]] = 1;
  for (std::uint64_t key = 0; key < 10; ++key) {
    std::vector<double> scores = uniform(Rng(key), {kSize, kSize}, -3, -kGap, DType::f64).to_vector();
    for (std::size_t i = 0; i < scores.size(); ++i)
      if (best[i] == 1) scores[i] = 0;
    for (DType dtype : {DType::f32, DType::f64})
      for (double temperature : {1.0, 0.5, 0.1, 0.05, 0.01, 1e-4})
        for (std::int64_t iterations : {1, 8}) {
          const Tensor x = scale(filled({kSize, kSize}, scores), 1 / temperature).value.to(dtype);
          const double rounding = dtype == DType::f32 ? 1e-6 : 1e-15;
          testing::expect_values(sinkhorn(x, {}, iterations), best,
                                 (kSize - 1) * std::exp(-kGap / temperature) + rounding);
        }
  }
}

// Value and gradient at x, for a fixed cotangent.
Tensors value_and_gradient(const Tensor& x, const Tensor& dy, const Tensor& columns, std::int64_t iterations) {
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(x), y = sinkhorn(leaf, columns, iterations);
  return {y.value, tape.backward(y, dy).of(leaf)};
}

// Columns `kept` of a (rows, columns) tensor.
Tensor choose(const Tensor& x, const std::vector<std::int64_t>& kept) {
  std::vector<Var> parts;
  parts.reserve(kept.size());
  for (std::int64_t j : kept) parts.push_back(slice(x, 1, j, j + 1));
  return concat(parts, 1).value;
}

TEST(Sinkhorn, WithClosedColumnsIsTheProblemWithoutThem) {
  const std::vector<std::int64_t> kept{0, 2, 3, 6}, left_out{1, 4, 5};
  for (DType dtype : {DType::f32, DType::f64}) {
    Tensor columns = Tensor::zeros({7}, DType::boolean);
    for (std::int64_t j : kept) columns.data<bool>()[j] = true;
    Tensor x = routing_scores(10, {5, 7}, DType::f64), dy = uniform(Rng(11), {5, 7}, -1, 1, DType::f64);
    // What stands in a closed column must not matter, whatever it is.
    const std::vector<double> junk{NAN, kInfinity, -kInfinity, 1e30, 0};
    for (std::int64_t j : left_out)
      for (std::int64_t i = 0; i < 5; ++i) {
        x.data<double>()[i * 7 + j] = junk[std::size_t(i)];
        dy.data<double>()[i * 7 + j] = junk[std::size_t(i + 1) % 5];
      }
    x = x.to(dtype), dy = dy.to(dtype);
    const Tensors masked = value_and_gradient(x, dy, columns, 5),
                  smaller = value_and_gradient(choose(x, kept), choose(dy, kept), {}, 5);
    for (std::size_t k : {0, 1}) {
      EXPECT_LE(relative_error(choose(masked[k], kept), smaller[k]), dtype == DType::f32 ? 1e-6 : 1e-14) << k;
      EXPECT_EQ(choose(masked[k], left_out).to_vector(), std::vector<double>(15, 0.0)) << k;
    }
  }
}

TEST(Sinkhorn, ReadsOneMaskPerMatrixOrOneForAll) {
  const Tensor x = routing_scores(12, {2, 3, 4, 5}, DType::f64), one = Draw(Rng(13)).mask({5}),
               each = Draw(Rng(14)).mask({2, 1, 5});
  for (const Tensor& mask : {one, each}) {
    const Tensor y = sinkhorn(x, mask, 3).value, whole = stretch(mask, {2, 3, 5});
    for (std::int64_t m = 0; m < 6; ++m) {
      const Tensor alone = x.reshape({6, 4, 5}).slice(m, m + 1).reshape({4, 5});
      EXPECT_TRUE(equal_bits(y.reshape({6, 4, 5}).slice(m, m + 1).reshape({4, 5}),
                             sinkhorn(alone, whole.reshape({6, 5}).slice(m, m + 1).reshape({5}), 3).value));
    }
  }
}

TEST(Sinkhorn, OfNothingIsZeroWithoutANaN) {
  const Tensor x = routing_scores(15, {2, 3, 4}, DType::f64), dy = uniform(Rng(16), {2, 3, 4}, -1, 1, DType::f64);
  for (const Tensor& t : value_and_gradient(x, dy, Tensor::zeros({2, 4}, DType::boolean), 3))
    EXPECT_EQ(t.to_vector(), std::vector<double>(24, 0.0));
  // A row and a column without a score above -inf stay 0, and the rest is the problem without them.
  const Tensor open = filled({3, 3}, {1, -kInfinity, 2, -kInfinity, -kInfinity, -kInfinity, 0, -kInfinity, 3}),
               flow = filled({3, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 10});
  const Tensors got = value_and_gradient(open, flow, {}, 4),
                want = value_and_gradient(filled({2, 2}, {1, 2, 0, 3}), filled({2, 2}, {1, 3, 7, 10}), {}, 4);
  for (std::size_t k : {0, 1}) {
    const std::vector<double> w = want[k].to_vector();
    testing::expect_values(got[k], {w[0], 0, w[1], 0, 0, 0, w[2], 0, w[3]}, 1e-15);
  }
  EXPECT_EQ(sinkhorn(Tensor::zeros({2, 0, 3}), {}, 2).shape(), Shape({2, 0, 3}));
  EXPECT_EQ(sinkhorn(Tensor::zeros({2, 3, 0}), {}, 2).shape(), Shape({2, 3, 0}));
}

TEST(Sinkhorn, KeepsANaNVisible) {
  Tensor x = Tensor::zeros({2, 3, 3});
  x.data<float>()[4] = NAN;
  const std::vector<double> y = sinkhorn(x, {}, 2).value.to_vector();
  for (std::size_t i = 0; i < 18; ++i) EXPECT_EQ(std::isnan(y[i]), i < 9) << i;
}

// Why causal attention does not route with this. Bucket u may look at v < u (here v <= u), so a triangle of scores is
// open. Normalising columns then lets every later row say how much of a column the earlier ones get.
TEST(Sinkhorn, UnderATriangularMaskLetsTheFutureSpeak) {
  constexpr std::int64_t kSize = 4;
  Tensor x = Tensor::full({kSize, kSize}, -kInfinity, DType::f64);
  for (std::int64_t i = 0; i < kSize; ++i)
    for (std::int64_t j = 0; j <= i; ++j) x.data<double>()[i * kSize + j] = 0;
  Tensor later = x.clone();  // the last row wants bucket 2, then any but that
  for (std::int64_t j = 0; j < kSize; ++j) {
    x.data<double>()[(kSize - 1) * kSize + j] = j == 2 ? 6 : -6;
    later.data<double>()[(kSize - 1) * kSize + j] = j == 2 ? -6 : 6;
  }

  // The largest change of any row but the last.
  auto influence = [&](const std::function<Tensor(const Tensor&)>& normalise) {
    const std::vector<double> a = normalise(x).to_vector(), b = normalise(later).to_vector();
    double largest = 0;
    for (std::size_t i = 0; i < (kSize - 1) * kSize; ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
    return largest;
  };
  EXPECT_GT(influence([](const Tensor& z) { return sinkhorn(z, {}, 5).value; }), 0.25);
  EXPECT_EQ(influence([](const Tensor& z) { return softmax(z).value; }), 0) << "rows alone do not leak";
}

TEST(Sinkhorn, RefusesWhatItCannotRead) {
  const Tensor x = Tensor::zeros({2, 3, 4});
  expect_error([&] { sinkhorn(x, {}, 0); }, {"sinkhorn", "at least 1 iteration", "got 0"});
  expect_error([&] { composed_sinkhorn(x, -1); }, {"sinkhorn", "at least 1 iteration", "got -1"});
  expect_error([&] { sinkhorn(Tensor::zeros({3}), {}, 1); }, {"sinkhorn", "(..., rows, columns)", "(3)"});
  expect_error([&] { sinkhorn(x, Tensor::zeros({2, 4}), 1); }, {"sinkhorn", "bool", "f32"});
  expect_error([&] { sinkhorn(x, Tensor::zeros({2, 3}, DType::boolean), 1); }, {"sinkhorn", "(2, 3)", "(2, 4)"});
  expect_error([&] { sinkhorn(Tensor::zeros({3, 4}, DType::i32), {}, 1); }, {"floating"});
}

TEST(Gumbel, HasTheDistributionsMomentsAndQuantiles) {
  constexpr std::int64_t kCount = 400000;
  for (DType dtype : {DType::f32, DType::f64}) {
    std::vector<double> g = gumbel(Rng(17), {kCount}, dtype).to_vector();
    const double mean = std::accumulate(g.begin(), g.end(), 0.0) / kCount;
    double square = 0, cube = 0;
    for (double v : g) square += (v - mean) * (v - mean) / kCount, cube += std::pow(v - mean, 3) / kCount;
    EXPECT_NEAR(mean, std::numbers::egamma, 0.01);
    EXPECT_NEAR(square, std::numbers::pi * std::numbers::pi / 6, 0.02);
    EXPECT_NEAR(cube / std::pow(square, 1.5), 1.1395, 0.05) << "skew to the right";
    std::sort(g.begin(), g.end());
    for (double p : {0.01, 0.25, 0.5, 0.75, 0.99}) {
      const double quantile = -std::log(-std::log(p)), density = -p * std::log(p);
      EXPECT_NEAR(g[std::size_t(p * kCount)], quantile, 5 * std::sqrt(p * (1 - p) / kCount) / density) << p;
    }
  }
}

// The words 0 and 2^32 - 1 are too rare to draw, so the formula is asked at both ends, and the op near them.
TEST(Gumbel, IsFiniteAtBothEndsOfTheInterval) {
  for (std::uint32_t word : {0u, ~0u}) {
    const float narrow = -std::log(-std::log(RandomBits::to_uniform<float>(word)));
    const double wide = -std::log(-std::log(RandomBits::to_uniform<double>(word)));
    EXPECT_NEAR(wide, word == 0 ? -2.8115 : 16.6355, 1e-4);
    EXPECT_NEAR(narrow, wide, 1e-5);
  }
  const std::vector<double> g = gumbel(Rng(18), {4000000}).to_vector();
  const auto [low, high] = std::minmax_element(g.begin(), g.end());
  EXPECT_GE(*low, -2.82);
  EXPECT_LE(*high, 16.64);
  EXPECT_LT(*low, -2.6);
  EXPECT_GT(*high, 12.5);
}

TEST(Gumbel, IsAFunctionOfKeyStepAndIndexAlone) {
  const Tensor f64 = gumbel(Rng(19), {3, 70001}, DType::f64), f32 = gumbel(Rng(19), {3, 70001});
  EXPECT_LE(relative_error(f32.to(DType::f64), f64), 1e-6);
  EXPECT_TRUE(equal_bits(gumbel(Rng(19), {3, 70001}, DType::bf16), f32.to(DType::bf16)));
  EXPECT_TRUE(equal_bits(gumbel(Rng(19), {3 * 70001 - 5}), f32.reshape({-1}).slice(0, 3 * 70001 - 5)));
  for (std::int64_t i : {0, 1, 70001, 3 * 70001 - 1})
    EXPECT_EQ(f64.data<double>()[i], -std::log(-std::log(Rng(19).bits().uniform<double>(std::uint64_t(i)))));
  EXPECT_FALSE(equal_bits(gumbel(Rng(20), {3, 70001}), f32));
  EXPECT_FALSE(equal_bits(gumbel(Rng(19, filled({1}, {1}).to(DType::i32)), {3, 70001}), f32)) << "the next step";
  const int before = threads();
  for (DType dtype : {DType::f32, DType::f64}) {
    for (int count : {1, 2, 4}) {
      set_threads(count);
      EXPECT_TRUE(equal_bits(gumbel(Rng(19), {3, 70001}, dtype), dtype == DType::f32 ? f32 : f64)) << count;
    }
  }
  set_threads(before);
  expect_error([] { gumbel(Rng(1), {2}, DType::i32); }, {"floating", "i32"});
}

}  // namespace
}  // namespace sinkhorn
