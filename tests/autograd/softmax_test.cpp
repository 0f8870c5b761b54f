// Softmax, its logarithm and the log-sum-exp: definitions, overflow, masks, rows with nothing allowed.
#include "autograd/ops/softmax.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/gradcheck.h"

namespace sinkhorn {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

double tolerance(DType dtype) { return dtype == DType::f64 ? 1e-14 : dtype == DType::f32 ? 2e-6 : 1e-2; }

TEST(Softmax, AndItsRelativesEqualTheirDefinitions) {
  const std::int64_t rows = 5, width = 37;
  for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    const Tensor x = uniform(Rng(1), {rows, width}, -5, 5, DType::f64).to(dtype),
                 allowed = Draw(Rng(2)).mask({rows, width});
    const std::vector<double> v = x.to_vector();
    for (const Tensor& mask : {Tensor(), allowed}) {
      std::vector<double> probability(v.size()), log_probability(v.size()), log_sums;
      for (std::int64_t r = 0; r < rows; ++r) {
        double sum = 0;
        for (std::int64_t i = r * width; i < (r + 1) * width; ++i)
          if (!mask || mask.data<bool>()[i]) sum += std::exp(v[std::size_t(i)]);
        log_sums.push_back(std::log(sum));
        for (std::int64_t i = r * width; i < (r + 1) * width; ++i) {
          probability[std::size_t(i)] = !mask || mask.data<bool>()[i] ? std::exp(v[std::size_t(i)]) / sum : 0;
          log_probability[std::size_t(i)] = v[std::size_t(i)] - log_sums.back();
        }
      }
      EXPECT_LE(relative_error(softmax(x, mask).value, Tensor::from(probability, x.shape())), tolerance(dtype));
      EXPECT_LE(relative_error(log_sum_exp(x, mask).value, Tensor::from(log_sums, {rows})), tolerance(dtype));
      if (!mask) {
        EXPECT_LE(relative_error(log_softmax(x).value, Tensor::from(log_probability, x.shape())), tolerance(dtype));
      }
    }
  }
}

TEST(Softmax, SurvivesHugeNumbers) {
  const Tensor x = Tensor::from<float>({3e38f, 3e38f, -3e38f}, {1, 3});
  EXPECT_EQ(softmax(x).value.to_vector(), std::vector<double>({0.5, 0.5, 0}));
  EXPECT_EQ(log_sum_exp(x).value.item(), double(3e38f));
  const Tensor y = Tensor::from<float>({1000, 1000}, {2});
  EXPECT_NEAR(log_sum_exp(y).value.item(), 1000 + std::log(2), 1e-4);
  EXPECT_NEAR(log_softmax(y).value.to_vector()[0], -std::log(2), 1e-6);
  EXPECT_NEAR(log_softmax(Tensor::from<float>({0, -200}, {2})).value.to_vector()[1], -200, 1e-4) << "exp(-200) is 0";
}

TEST(Softmax, OfNothingAllowedIsZeroAndMinusInfinityWithoutANaN) {
  const Tensor mask = Tensor::zeros({2, 3}, DType::boolean), open = Tensor::full({2, 3}, kNone, DType::f64);
  mask.data<bool>()[0] = true;
  for (const Tensor& x : {uniform(Rng(1), {2, 3}, -1, 1, DType::f64), open}) {
    const Tape tape = Tape::record();
    const Var a = tape.leaf(x), b = tape.leaf(x);
    const Var y = softmax(a, mask);
    const bool first = x.data<double>()[0] != kNone;
    EXPECT_EQ(y.value.to_vector(), std::vector<double>({first ? 1.0 : 0.0, 0, 0, 0, 0, 0}));
    EXPECT_EQ(tape.backward(y, y.value).of(a).to_vector(), std::vector<double>(6, 0.0));
    const Tape other = Tape::record();
    const Var c = other.leaf(x), z = log_sum_exp(c, mask);
    EXPECT_EQ(z.value.to_vector(), std::vector<double>({x.data<double>()[0], kNone}));
    EXPECT_EQ(other.backward(z, Tensor::full({2}, 1, DType::f64)).of(c).to_vector(),
              std::vector<double>({first ? 1.0 : 0.0, 0, 0, 0, 0, 0}));
  }
  EXPECT_EQ(log_softmax(open).value.to_vector(), std::vector<double>(6, kNone));
  EXPECT_EQ(log_sum_exp(Tensor::zeros({2, 0})).value.to_vector(), std::vector<double>(2, kNone));
}

TEST(Softmax, KeepsANaNVisible) {
  const Tensor x = Tensor::from<float>({1, NAN, 2}, {1, 3});
  for (const Var& y : {softmax(x), log_softmax(x), log_sum_exp(x)})
    for (double v : y.value.to_vector()) EXPECT_TRUE(std::isnan(v));
}

TEST(Softmax, RefusesAMaskOfAnotherShapeOrType) {
  const Tensor x = Tensor::zeros({2, 3});
  EXPECT_THROW(softmax(x, Tensor::zeros({3}, DType::boolean)), Error);
  EXPECT_THROW(softmax(x, Tensor::zeros({2, 3})), Error);
  EXPECT_THROW(log_sum_exp(x, Tensor::zeros({2, 3}, DType::i32)), Error);
  EXPECT_THROW(log_softmax(Tensor::zeros({})), Error);
}

}  // namespace
}  // namespace sinkhorn
