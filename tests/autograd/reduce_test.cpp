// Reductions against plain loops, the accuracy of long sums, and means over what a mask allows.
#include "autograd/ops/reduce.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "autograd/ops/elementwise.h"
#include "tests/autograd/expect.h"

namespace sinkhorn {
namespace {

using testing::expect_error;
using testing::expect_values;
using testing::filled;

TEST(Sum, EqualsALoopForEveryAxisAndBlocking) {
  for (const Shape& shape :
       {Shape{3, 4, 5}, Shape{1, 70000, 1}, Shape{40000, 2}, Shape{3, 5000, 40}, Shape{2, 40, 3000}})
    for (int axis = 0; axis < shape.rank(); ++axis) {
      const Tensor x = uniform(Rng(1), shape, -1, 1, DType::f64);
      const Around around(shape, axis);
      std::vector<double> want(std::size_t(around.before * around.after));
      for (std::int64_t i = 0; i < around.before; ++i)
        for (std::int64_t k = 0; k < around.extent; ++k)
          for (std::int64_t j = 0; j < around.after; ++j)
            want[std::size_t(i * around.after + j)] += x.data<double>()[(i * around.extent + k) * around.after + j];
      const Var y = sum(x, axis, true);
      EXPECT_EQ(y.shape(), shape.with(axis, 1));
      expect_values(y, want, 1e-10);
    }
}

TEST(Sum, OfALongF32RowIsExactToRounding) {
  const Tensor x = uniform(Rng(2), {1 << 20}, 0, 1);
  double exact = 0;
  for (const double value : x.to_vector()) exact += value;
  EXPECT_LE(std::abs(sum(x).value.item() / exact - 1), 2e-7);
  EXPECT_LE(std::abs(mean(x).value.item() / (exact / (1 << 20)) - 1), 2e-7);
}

TEST(Sum, OfBf16AccumulatesInF32) {
  EXPECT_EQ(sum(Tensor::full({4096}, 1, DType::bf16)).value.item(), 4096);  // in bf16 it would stay at 256
  EXPECT_EQ(sum(Tensor::full({4096, 2}, 1, DType::bf16), 0).value.to_vector()[1], 4096);
}

TEST(Sum, DropsOrKeepsTheAxis) {
  const Tensor x = filled({2, 3}, {1, 2, 3, 4, 5, 6});
  EXPECT_EQ(sum(x, 0).shape(), (Shape{3}));
  EXPECT_EQ(sum(x, -1, true).shape(), (Shape{2, 1}));
  EXPECT_EQ(sum(x).shape(), Shape{});
  expect_values(sum(x, 0), {5, 7, 9});
  expect_values(mean(x, 1), {2, 5});
  expect_values(mean(x), {3.5});
  expect_values(sum(Tensor::zeros({0, 2}, DType::f64), 0), {0, 0});
  expect_error([] { mean(Tensor::zeros({0, 2}), 0); }, {"mean", "(0, 2)"});
  expect_error([&] { sum(x, 2); }, {"axis 2", "(2, 3)"});
}

TEST(SumTo, UndoesEveryStretching) {
  const Tensor x = Tensor::full({2, 3, 4, 5}, 1, DType::f64);
  for (const Shape& shape :
       {Shape{}, Shape{5}, Shape{4, 1}, Shape{3, 1, 5}, Shape{2, 1, 4, 1}, Shape{1, 1, 1, 1}, x.shape()}) {
    const Tensor y = sum_to(x, shape);
    EXPECT_EQ(y.shape(), shape);
    for (const double value : y.to_vector()) EXPECT_EQ(value, 120.0 / double(shape.count())) << shape;
  }
}

TEST(Max, SendsItsGradientToTheFirstOfEquals) {
  const Tape tape = Tape::record();
  const Var x = tape.leaf(filled({2, 3}, {1, 7, 7, -1, -2, -1}));
  const Var y = max(x, 1);
  expect_values(y, {7, -1});
  expect_values(tape.backward(y, filled({2}, {10, 20})).of(x), {0, 10, 0, 20, 0, 0});
}

TEST(Max, KeepsANaNVisible) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(std::isnan(max(filled({3}, {1, nan, 2}), 0).value.item()));
  EXPECT_EQ(max(filled({2}, {-infinity, -infinity}), 0).value.item(), -infinity);
  expect_error([] { max(Tensor::zeros({2, 0}), 1); }, {"max", "(2, 0)", "empty"});
}

TEST(CumulativeMean, EqualsTheDefinition) {
  const Tensor x = uniform(Rng(3), {3, 40, 70}, -1, 1, DType::f64), mask = Draw(Rng(4)).mask({3, 40}, 0.4);
  for (const Tensor& allowed : {Tensor(), mask}) {
    std::vector<double> want;
    for (std::int64_t g = 0; g < 3; ++g)
      for (std::int64_t t = 0; t < 40; ++t)
        for (std::int64_t j = 0; j < 70; ++j) {
          double sum = 0, count = 0;
          for (std::int64_t s = 0; s <= t; ++s)
            if (!allowed || allowed.data<bool>()[g * 40 + s]) sum += x.data<double>()[(g * 40 + s) * 70 + j], ++count;
          want.push_back(sum / std::max(count, 1.0));
        }
    expect_values(cumulative_mean(x, allowed), want, 1e-14);
    if (!allowed) continue;
    const std::vector<double> last = masked_mean(x, allowed).value.to_vector();
    for (std::size_t g = 0; g < 3; ++g)
      for (std::size_t j = 0; j < 70; ++j) EXPECT_NEAR(last[g * 70 + j], want[(g * 40 + 39) * 70 + j], 1e-14);
  }
}

TEST(CumulativeMean, StaysExactOverALongSequence) {
  constexpr std::int64_t kTime = 300000;
  const Tensor x = uniform(Rng(5), {1, kTime, 1}, 0, 1);
  const std::vector<double> y = cumulative_mean(x).value.to_vector();
  double sum = 0, worst = 0;
  for (std::int64_t t = 0; t < kTime; ++t) {
    sum += double(x.data<float>()[t]);
    worst = std::max(worst, std::abs(y[std::size_t(t)] * double(t + 1) / sum - 1));
  }
  EXPECT_LE(worst, 6e-8);  // half a unit in the last place: a running f32 sum is off by 1e-5
  EXPECT_EQ(cumulative_mean(Tensor::full({1, 1000, 1}, 1, DType::bf16)).value.to_vector().back(), 1);
}

TEST(CumulativeMean, NeverReadsWhatIsNotAllowed) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor allowed = filled({1, 4}, {0, 1, 0, 1}).to(DType::boolean);
  const Tape tape = Tape::record();
  const Var x = tape.leaf(filled({1, 4, 1}, {nan, 2, nan, 6}));
  const Var y = cumulative_mean(x, allowed);
  expect_values(y, {0, 2, 2, 4});
  expect_values(tape.backward(y, filled({1, 4, 1}, {1, 1, 1, 1})).of(x), {0, 2.5, 0, 0.5});
  expect_values(masked_mean(x.value, allowed), {4});
  expect_values(masked_mean(x.value, Tensor::zeros({1, 4}, DType::boolean)), {0});
}

TEST(CumulativeMean, RefusesForeignMasks) {
  const Tensor x = Tensor::zeros({2, 4, 3});
  expect_error([&] { cumulative_mean(x, Tensor::zeros({4}, DType::boolean)); },
               {"cumulative_mean", "(2, 4, 3)", "(4)"});
  expect_error([&] { masked_mean(x, Tensor::zeros({2, 3}, DType::boolean)); }, {"masked_mean", "(2, 4, 3)", "(2, 3)"});
  expect_error([&] { cumulative_mean(Tensor::zeros({4})); }, {"cumulative_mean", "(4)"});
}

}  // namespace
}  // namespace sinkhorn
