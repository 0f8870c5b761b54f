// The f32 functions keep the errors that vector_math.h states, over the whole of f32, special values included.
#include "autograd/cpu/vector_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>

namespace sinkhorn {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();

// |got - want| in units of the last place of `want` as an f32; subnormal results count in the smallest normal's.
double ulps(float got, double want) {
  if (std::isnan(got) || std::isnan(want)) return std::isnan(got) && std::isnan(want) ? 0 : 1e30;
  const float rounded = float(want), size = std::abs(rounded);
  if (std::isinf(got) || std::isinf(rounded)) return got == rounded ? 0 : 1e30;
  const float normal = std::max(size, std::numeric_limits<float>::min());
  return std::abs(got - want) / (normal - std::nextafter(normal, 0.0f));
}

// The worst error over every 4099th f32, infinities and NaNs among them.
double worst_ulps(const std::function<float(float)>& f, const std::function<double(double)>& exact) {
  double worst = 0;
  for (std::uint64_t bits = 0; bits < 1ull << 32; bits += 4099) {
    const float x = std::bit_cast<float>(std::uint32_t(bits));
    worst = std::max(worst, ulps(f(x), exact(x)));
  }
  return worst;
}

TEST(VectorMath, KeepsItsErrors) {
  EXPECT_LE(worst_ulps([](float x) { return math::exp(x); }, [](double x) { return std::exp(x); }), 2);
  EXPECT_LE(worst_ulps([](float x) { return math::tanh(x); }, [](double x) { return std::tanh(x); }), 7);
  double worst = 0;
  for (float x = -87; x < 110; x += 1e-4f)
    worst = std::max(worst, ulps(math::sigmoid(x), 1 / (1 + std::exp(-double(x)))));
  EXPECT_LE(worst, 4);
}

TEST(VectorMath, KnowsTheNormalDistribution) {
  double cdf = 0, pdf = 0, gelu = 0, slope = 0;
  for (float x = -30; x < 30; x += 1e-4f) {
    const double p = 0.5 * std::erfc(-double(x) * 0.70710678118654752);
    const double d = std::exp(-0.5 * double(x) * x) * 0.39894228040143268;
    cdf = std::max(cdf, std::abs(math::normal(x).cdf - p));
    pdf = std::max(pdf, std::abs(math::normal(x).pdf - d));
    gelu = std::max(gelu, std::abs(math::gelu(x) - x * p) / std::max(1.0, std::abs(double(x))));
    slope = std::max(slope, std::abs(math::gelu_slope(x) - (p + x * d)));
  }
  EXPECT_LE(cdf, 2e-7);
  EXPECT_LE(pdf, 1e-7);
  EXPECT_LE(gelu, 1.5e-7);
  EXPECT_LE(slope, 2.5e-7);
  EXPECT_EQ(math::gelu(40.0f), 40);
  EXPECT_EQ(math::gelu(-40.0f), 0);
  EXPECT_NEAR(math::gelu(1.0), 0.84134474606854293, 1e-15);
}

TEST(VectorMath, EndsWhereTheFunctionsEnd) {
  EXPECT_EQ(math::exp(0.0f), 1);
  EXPECT_EQ(math::exp(-kInfinity), 0);
  EXPECT_EQ(math::exp(kInfinity), kInfinity);
  EXPECT_EQ(math::exp(-104.0f), 0);
  EXPECT_EQ(math::exp(88.8f), kInfinity);
  EXPECT_GT(math::exp(-103.0f), 0);  // subnormal
  EXPECT_EQ(math::tanh(kInfinity), 1);
  EXPECT_EQ(math::tanh(-kInfinity), -1);
  EXPECT_EQ(math::sigmoid(-kInfinity), 0);
  EXPECT_EQ(math::normal(kInfinity).cdf, 1);
  EXPECT_EQ(math::normal(-kInfinity).cdf, 0);
  for (const float y : {math::exp(kNaN), math::tanh(kNaN), math::sigmoid(kNaN), math::normal(kNaN).cdf})
    EXPECT_TRUE(std::isnan(y));
}

}  // namespace
}  // namespace sinkhorn
