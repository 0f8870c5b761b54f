// exp, tanh, erf and sigmoid without branches or calls in f32, so that loops over them vectorise; f64 and CUDA use the
// standard functions. Errors are measured over all of f32 by tests/autograd/vector_math_test.cpp.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "autograd/dtype.h"

namespace sinkhorn::math {

SINKHORN_HD inline double exp(double x) { return std::exp(x); }
SINKHORN_HD inline double tanh(double x) { return std::tanh(x); }
SINKHORN_HD inline double erf(double x) { return std::erf(x); }

#ifdef __CUDA_ARCH__
SINKHORN_HD inline float exp(float x) { return ::expf(x); }
SINKHORN_HD inline float tanh(float x) { return ::tanhf(x); }
SINKHORN_HD inline float erf(float x) { return ::erff(x); }
#else
namespace detail {

/// x kept within -limit .. limit; a NaN stays a NaN.
inline float clamp(float x, float limit) {
  x = x > limit ? limit : x;
  return x < -limit ? -limit : x;
}
/// c0 + c1 x + c2 x^2 + ...
template <class... C>
inline float polynomial(float x, float c0, C... c) {
  if constexpr (sizeof...(c) == 0)
    return c0;
  else
    return c0 + x * polynomial(x, c...);
}
/// y, but with the sign of x and the magnitude 1 where |x| >= limit.
inline float saturate(float x, float limit, float y) { return std::abs(x) >= limit ? std::copysign(1.0f, x) : y; }

}  // namespace detail

/// e^x to 2 ulp, and to 1 ulp of the smallest number below 1.2e-38. e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2
/// / 2.
inline float exp(float x) {
  constexpr float kRound = 12582912;  // 1.5 * 2^23: adding it leaves n in the low bits
  const float clamped = x > 90 ? 90 : x < -105 ? -105 : x;
  const float rounded = clamped * 1.44269504f + kRound, n = rounded - kRound;
  const float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts, the first of 9 bits
  const float y =
      1 + (r + r * r * detail::polynomial(r, 0.5f, 0.1666657669f, 0.04166655424f, 0.008363229402f, 0.001392624648f));
  // 2^n in two factors, since it may be larger or smaller than any normal number.
  const std::int32_t whole = std::bit_cast<std::int32_t>(rounded) - std::bit_cast<std::int32_t>(kRound);
  const std::int32_t half = whole >> 1;
  return y * std::bit_cast<float>((half + 127) << 23) * std::bit_cast<float>((whole - half + 127) << 23);
}

/// tanh(x) to 4 ulp: x P(x^2) / Q(x^2), least-maximum fit on |x| <= 9.1; +-1 beyond.
inline float tanh(float x) {
  const float c = detail::clamp(x, 9.1f), t = c * c;
  const float p = detail::polynomial(t, 0.999999978f, 0.1337420249f, 0.00348746721f, 2.047472506e-5f, 1.316707627e-8f);
  const float q = detail::polynomial(t, 1.0f, 0.4670751681f, 0.02584613244f, 0.0003272323126f, 7.700085085e-7f);
  return detail::saturate(x, 9.1f, c * p / q);
}

/// erf(x) to 4 ulp: x P(x^2) / Q(x^2), least-maximum fit on |x| <= 3.93; +-1 beyond.
inline float erf(float x) {
  const float c = detail::clamp(x, 3.93f), t = c * c;
  const float p = detail::polynomial(t, 1.128379146f, 0.1909212603f, 0.05280143569f, 0.003783681255f, 0.0002845802453f,
                                     2.036615377e-6f);
  const float q =
      detail::polynomial(t, 1.0f, 0.5025322933f, 0.1143079643f, 0.01500572303f, 0.001165612855f, 3.793692081e-5f);
  return detail::saturate(x, 3.93f, c * p / q);
}
#endif

/// 1 / (1 + e^-x)
template <class R>
SINKHORN_HD inline R sigmoid(R x) {
  return 1 / (1 + math::exp(-x));
}

/// The distribution function of N(0, 1), and its density.
template <class R>
SINKHORN_HD inline R normal_cdf(R x) {
  return R(0.5) * (1 + math::erf(x * R(0.70710678118654752)));
}
template <class R>
SINKHORN_HD inline R normal_pdf(R x) {
  return R(0.39894228040143268) * math::exp(R(-0.5) * x * x);
}

/// x normal_cdf(x) (Hendrycks & Gimpel 2016, the exact form), and its derivative. In f32 to about 1e-7 max(1, |x|).
template <class R>
SINKHORN_HD inline R gelu(R x) {
  return x * normal_cdf(x);
}
template <class R>
SINKHORN_HD inline R gelu_slope(R x) {
  return normal_cdf(x) + x * normal_pdf(x);
}

}  // namespace sinkhorn::math
