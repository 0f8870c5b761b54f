// Element-wise ops against plain loops: broadcasting, masks, dropout, the gate, rounding, and what refuses.
#include "autograd/ops/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cuda/device.h"
#include "tests/autograd/expect.h"

namespace sinkhorn {
namespace {

using testing::expect_error;
using testing::expect_values;
using testing::filled;

TEST(Maps, EqualTheDefinitions) {
  const std::vector<double> at{-2.5, -0.5, 0, 0.3, 2};
  const auto expect = [&](Var (*map)(const Var&), double (*f)(double)) {
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
      const Tensor x = Tensor::from(at, {5}).to(dtype);
      const double tolerance = dtype == DType::f64 ? 1e-15 : dtype == DType::f32 ? 3e-7 : 4e-3;
      const std::vector<double> y = map(x).value.to_vector(), rounded = x.to_vector();
      for (std::size_t i = 0; i < y.size(); ++i)
        EXPECT_LE(std::abs(y[i] - f(rounded[i])), tolerance * std::max(1.0, std::abs(f(rounded[i])))) << rounded[i];
    }
  };
  expect(exp, [](double x) { return std::exp(x); });
  expect(square, [](double x) { return x * x; });
  expect(abs, [](double x) { return std::abs(x); });
  expect(tanh, [](double x) { return std::tanh(x); });
  expect(sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); });
  expect(relu, [](double x) { return std::max(x, 0.0); });
  expect(leaky_relu, [](double x) { return x > 0 ? x : 0.01 * x; });
  expect(gelu, [](double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2))); });
  expect_values(log(filled({3}, {1, 2, 4})), {0, std::log(2.0), std::log(4.0)}, 1e-15);
  expect_values(sqrt(filled({2}, {4, 2})), {2, std::sqrt(2.0)}, 1e-15);
  expect_values(reciprocal(filled({2}, {4, -0.5})), {0.25, -2});
}

TEST(Maps, KeepANaNVisible) {
  const Tensor nan = filled({1}, {std::numeric_limits<double>::quiet_NaN()});
  for (Var (*map)(const Var&) : {exp, log, sqrt, square, reciprocal, abs, tanh, sigmoid, relu, leaky_relu, gelu})
    for (const DType dtype : {DType::f32, DType::f64, DType::bf16})
      EXPECT_TRUE(std::isnan(map(nan.to(dtype)).value.item())) << dtype;
}

TEST(Maps, KeepOneTensorForBackward) {
  const Tape tape = Tape::record();
  const Var x = tape.leaf(Tensor::zeros({10}, DType::f64));
  gelu(x);  // keeps x
  exp(x);   // keeps y
  EXPECT_EQ(tape.kept_bytes(), 2 * 80u);
}

TEST(Arithmetic, StretchesEitherOperand) {
  const Var column = filled({2, 1}, {1, 2}), row = filled({3}, {10, 20, 30});
  expect_values(column + row, {11, 21, 31, 12, 22, 32});
  expect_values(row - column, {9, 19, 29, 8, 18, 28});
  expect_values(column * row, {10, 20, 30, 20, 40, 60});
  expect_values(row / column, {10, 20, 30, 5, 10, 15});
  expect_values(2 * row, {20, 40, 60});
  expect_values(-row, {-10, -20, -30});
  expect_values(scale(row, 0.5, 1), {6, 11, 16});
  EXPECT_EQ((Var(Tensor::zeros({2, 1, 4, 1})) + Tensor::zeros({3, 1, 5})).shape(), (Shape{2, 3, 4, 5}));
  EXPECT_EQ((Var(Tensor::zeros({0, 3})) * Tensor::zeros({3})).shape(), (Shape{0, 3}));
}

// Every pair of shapes of up to three axes of extent 1 or 2..4, against index arithmetic written out.
TEST(Arithmetic, EqualsALoopForAllPairsOfShapes) {
  const std::int64_t extents[] = {2, 3, 4};
  for (int bits = 0; bits < 64; ++bits) {
    Shape a{1, 1, 1}, b{1, 1, 1}, y{1, 1, 1};
    for (int axis = 0; axis < 3; ++axis) {
      if (bits >> axis & 1) a[axis] = y[axis] = extents[axis];
      if (bits >> (3 + axis) & 1) b[axis] = y[axis] = extents[axis];
    }
    const Tensor p = uniform(Rng(bits), a, -1, 1, DType::f64), q = uniform(Rng(100 + bits), b, -1, 1, DType::f64);
    const auto at = [](const Tensor& x, std::int64_t i, std::int64_t j, std::int64_t k) {
      const Shape& s = x.shape();
      return x.data<double>()[((s[0] > 1 ? i : 0) * s[1] + (s[1] > 1 ? j : 0)) * s[2] + (s[2] > 1 ? k : 0)];
    };
    std::vector<double> sums;
    for (std::int64_t i = 0; i < y[0]; ++i)
      for (std::int64_t j = 0; j < y[1]; ++j)
        for (std::int64_t k = 0; k < y[2]; ++k) sums.push_back(at(p, i, j, k) + at(q, i, j, k));
    const Var sum = add(p, q);
    EXPECT_EQ(sum.shape(), y);
    expect_values(sum, sums);
  }
}

TEST(Arithmetic, ErrorsNameBothOperands) {
  expect_error([] { add(Tensor::zeros({2, 3}), Tensor::zeros({4, 3})); }, {"add", "(2, 3)", "(4, 3)", "axis -2"});
  expect_error([] { mul(Tensor::zeros({2, 3}), Tensor::zeros({2})); }, {"mul", "(2, 3)", "(2)"});
  expect_error([] { add(Tensor::zeros({2}), Tensor::zeros({3}, DType::f64)); }, {"add", "f32 (2)", "f64 (3)", "cast"});
}

TEST(Arithmetic, GivesGradientsOnlyWhereWanted) {
  const Tape tape = Tape::record();
  const Var a = tape.leaf(filled({2}, {1, 2}));
  const Var y = a * filled({2}, {3, 4});
  EXPECT_EQ(tape.kept_bytes(), 16u);  // the constant alone
  expect_values(tape.backward(y, filled({2}, {1, 1})).of(a), {3, 4});
}

TEST(MaskFill, NeverReadsWhatIsNotAllowed) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tape tape = Tape::record();
  const Var x = tape.leaf(filled({2, 2}, {1, nan, 3, nan}));
  const Tensor allowed = filled({2}, {1, 0}).to(DType::boolean);
  const Var y = mask_fill(x, allowed, -5);
  expect_values(y, {1, -5, 3, -5});
  expect_values(tape.backward(y, filled({2, 2}, {1, nan, 2, nan})).of(x), {1, 0, 2, 0});
  expect_error([&] { mask_fill(x, Tensor::zeros({3}, DType::boolean), 0); }, {"mask_fill", "(2, 2)", "(3)"});
  expect_error([&] { mask_fill(Tensor::zeros({2}), Tensor::zeros({2, 2}, DType::boolean), 0); }, {"(2, 2)", "(2)"});
  expect_error([&] { mask_fill(x, Tensor::zeros({2, 2}), 0); }, {"mask_fill", "bool", "f32"});
}

TEST(Dropout, KeepsWhatItsMaskSays) {
  const Tensor x = uniform(Rng(1), {3, 7001}, 1, 2);
  const Rng rng(5);
  const std::vector<double> y = dropout(x, 0.25, rng).value.to_vector(), from = x.to_vector();
  const std::vector<double> kept = dropout_mask(rng, x.shape(), 0.25).to_vector();
  double share = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    EXPECT_FLOAT_EQ(float(y[i]), float(kept[i] * from[i] / 0.75)) << i;
    share += kept[i] / double(y.size());
  }
  EXPECT_NEAR(share, 0.75, 0.01);  // 3.4 standard deviations
  EXPECT_EQ(dropout(x, 0, rng).value.raw(), x.raw());
  for (const double p : {-0.1, 1.0, std::nan("")}) expect_error([&] { dropout(x, p, rng); }, {"dropout", "[0, 1)"});
}

TEST(Dropout, DrawsTheSameBitsBackwardAndOthersInTheNextStep) {
  Tensor step = Tensor::zeros({1}, DType::i32);
  const Rng rng(5, step);
  const auto run = [&] {
    const Tape tape = Tape::record();
    const Var x = tape.leaf(Tensor::full({1000}, 1));
    const Var y = dropout(x, 0.5, rng);
    EXPECT_TRUE(equal_bits(y.value, tape.backward(y, Tensor::full({1000}, 1)).of(x)));
    return y.value;
  };
  const Tensor first = run(), again = run();
  step.data<std::int32_t>()[0] = 1;
  EXPECT_TRUE(equal_bits(first, again));
  EXPECT_FALSE(equal_bits(first, run()));
}

TEST(GatedGelu, GatesTheFirstHalfByTheSecond) {
  const auto gelu_of = [](double a) { return 0.5 * a * std::erfc(-a / std::sqrt(2)); };
  expect_values(gated_gelu(filled({2, 4}, {1, -2, 3, 4, 0.5, 0, -1, 2})),
                {gelu_of(1) * 3, gelu_of(-2) * 4, -gelu_of(0.5), 0}, 1e-15);
  const Tensor x = uniform(Rng(2), {50, 34}, -4, 4);
  EXPECT_LE(relative_error(gated_gelu(x).value.to(DType::f64), gated_gelu(x.to(DType::f64)).value), 1e-6);
  expect_error([] { gated_gelu(Tensor::zeros({2, 3})); }, {"gated_gelu", "(2, 3)", "even"});
}

TEST(Cast, RoundsToNearestEvenAndBack) {
  const Tensor x = Tensor::from(std::vector<float>{1, 1 + 1.0f / 256, 1 + 3.0f / 256, 1 + 1.01f / 256, -3.3e38f}, {5});
  expect_values(cast(x, DType::bf16).value,
                {1, 1, 1 + 4.0 / 256, 1 + 2.0 / 256, -double(std::bit_cast<float>(0x7f780000u))});
  EXPECT_EQ(cast(x, DType::f32).value.raw(), x.raw());
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(x);
  const Tensor dy = Tensor::full({5}, 3, DType::bf16);
  const Tensor dx = tape.backward(cast(leaf, DType::bf16), dy).of(leaf);
  EXPECT_EQ(dx.dtype(), DType::f32);
  expect_values(dx, {3, 3, 3, 3, 3});
}

// A copy that is there is taken; and a flow is added, in full, to what has gathered.
TEST(Cast, TakesACopyAndAddsToAGradient) {
  const Tensor x = Tensor::from<float>({1, 2, 3}, {3}), copy = Tensor::from<float>({4, 5, 6}, {3}).to(DType::bf16),
               dy = Tensor::from<float>({0.5, 2, -1}, {3}).to(DType::bf16);
  for (const Device device : {Device::cpu, Device::cuda}) {
    if (device == Device::cuda && !cuda::is_usable()) continue;
    const Tensor there = copy.to(device);
    Parameter p{x.to(device), Tensor::from<float>({1.00390625, 10, 100}, {3}).to(device)};
    const Tape tape = Tape::record(true);
    const Var y = cast(tape.leaf(p), DType::bf16, there);
    EXPECT_EQ(y.value.raw(), there.raw());
    tape.backward(y, dy.to(device));
    expect_values(p.gradient, {1.50390625, 12, 99});
  }
  expect_error([&] { cast(x, DType::bf16, copy.slice(0, 2)); }, {"cast", "the copy is bf16 (2)", "expected bf16 (3)"});
}

TEST(Bf16, ComputesInF32AndRoundsOnce) {
  const Tensor a = Tensor::from(std::vector<float>{256}, {1}).to(DType::bf16);
  const Tensor ones = Tensor::full({600}, 1, DType::bf16);
  expect_values(add(a, scale(a, 1.0 / 256)).value, {256});  // 257 rounds to even
  expect_values(scale(a, 1.0 / 256, 1e-3).value, {1});      // the sum in f32, rounded at the end
  EXPECT_EQ(dropout(ones, 0.5, Rng(1)).value.dtype(), DType::bf16);
}

}  // namespace
}  // namespace sinkhorn
