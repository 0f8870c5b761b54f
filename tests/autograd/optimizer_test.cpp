// AdamW against its formulas written out, and the norm's accuracy and independence of threads.
#include "autograd/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "autograd/parallel.h"
#include "tests/autograd/expect.h"

namespace sinkhorn {
namespace {

using testing::expect_error;
using testing::filled;

struct Buffers {
  explicit Buffers(std::int64_t count, DType dtype)
      : value(uniform(Rng(1), {count}, -1, 1, dtype)),
        gradient(uniform(Rng(2), {count}, -1, 1, dtype)),
        m(Tensor::zeros({count}, dtype)),
        v(Tensor::zeros({count}, dtype)) {}
  Tensor value, gradient, m, v;
};

TEST(AdamW, FollowsItsFormulas) {
  const AdamW adam{0.9, 0.99, 1e-8, 0.1};
  const std::vector<Range> decayed{{2, 5}, {5, 6}, {90, 40000}};
  for (const DType dtype : {DType::f64, DType::f32}) {
    Buffers at(50000, dtype);
    std::vector<double> value = at.value.to_vector(), m(value.size()), v(value.size());
    const std::vector<double> gradient = at.gradient.to_vector();
    for (int step = 1; step <= 3; ++step) {
      const double lr = 0.1 / step;
      adamw_step(adam, step, lr, at.value, at.gradient, at.m, at.v, decayed, 0.5);
      for (std::size_t i = 0; i < value.size(); ++i) {
        const double g = 0.5 * gradient[i], decay = (i >= 2 && i < 6) || (i >= 90 && i < 40000) ? 0.1 : 0;
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.99 * v[i] + 0.01 * g * g;
        const double m_hat = m[i] / (1 - std::pow(0.9, step)), v_hat = v[i] / (1 - std::pow(0.99, step));
        value[i] -= lr * (m_hat / (std::sqrt(v_hat) + 1e-8) + decay * value[i]);
      }
    }
    const Tensor want = Tensor::from(value, {50000}), got = at.value.to(DType::f64);
    EXPECT_LE(relative_error(got, want), dtype == DType::f64 ? 1e-14 : 1e-6);
  }
}

TEST(AdamW, RefusesWhatDoesNotFit) {
  Buffers at(10, DType::f32);
  const auto step = [&](std::int64_t number, std::vector<Range> decayed) {
    adamw_step({}, number, 0.1, at.value, at.gradient, at.m, at.v, decayed);
  };
  expect_error([&] { step(0, {}); }, {"adamw", "0"});
  expect_error([&] { step(1, {{0, 11}}); }, {"adamw", "0 .. 11", "10 elements"});
  expect_error([&] { step(1, {{4, 6}, {5, 7}}); }, {"adamw", "5 .. 7"});
  expect_error([&] { step(1, {{4, 6}, {6, 2}}); }, {"adamw", "6 .. 2"});
  at.m = Tensor::zeros({9});
  expect_error([&] { step(1, {}); }, {"adamw", "(10)", "(9)"});
}

TEST(GlobalNorm, IsExactAndTheSameOnEveryNumberOfThreads) {
  const Tensor x = uniform(Rng(3), {100001}, -1, 1), y = uniform(Rng(4), {37, 5}, -1, 1, DType::f64);
  double squares = 0;
  for (const Tensor& t : {x, y})
    for (const double value : t.to_vector()) squares += value * value;
  const int before = threads();
  for (const int count : {1, 2, 4}) {
    set_threads(count);
    static double first = global_norm({x, {}, y});
    EXPECT_NEAR(first, std::sqrt(squares), 1e-10);
    EXPECT_EQ(global_norm({x, {}, y}), first);
  }
  set_threads(before);
  EXPECT_EQ(global_norm({}), 0);
  EXPECT_TRUE(std::isnan(global_norm({x, filled({1}, {std::numeric_limits<double>::quiet_NaN()})})));
}

}  // namespace
}  // namespace sinkhorn
