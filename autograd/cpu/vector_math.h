// exp, tanh, sigmoid and the normal distribution without branches or calls in f32, so that loops over them vectorise;
// f64 uses the standard functions, and so does CUDA but for the normal distribution.
// tests/autograd/vector_math_test.cpp holds them to the errors stated here.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "autograd/dtype.h"

namespace sinkhorn::math {

namespace detail {
/// c0 + c1 x + c2 x^2 + ...
template <class... C>
SINKHORN_HD inline float polynomial(float x, float c0, C... c) {
  if constexpr (sizeof...(c) == 0)
    return c0;
  else
    return c0 + x * polynomial(x, c...);
}
}  // namespace detail

SINKHORN_HD inline double exp(double x) { return std::exp(x); }
SINKHORN_HD inline double tanh(double x) { return std::tanh(x); }

/// e^x to 2 ulp. e^x = 2^n e^r with n = round(x / ln 2) and |r| <= ln 2 / 2.
SINKHORN_HD inline float exp(float x) {
#ifdef __CUDA_ARCH__
  return ::expf(x);
#else
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
#endif
}

/// tanh(x) to 7 ulp: x P(x^2) / Q(x^2), the rational function of least maximal error on |x| <= 9.1; +-1 beyond.
SINKHORN_HD inline float tanh(float x) {
#ifdef __CUDA_ARCH__
  return ::tanhf(x);
#else
  constexpr float kEnd = 9.1f;
  const float c = x > kEnd ? kEnd : x < -kEnd ? -kEnd : x, t = c * c;  // a NaN stays a NaN
  const float p = detail::polynomial(t, 0.999999978f, 0.1337420249f, 0.00348746721f, 2.047472506e-5f, 1.316707627e-8f);
  const float q = detail::polynomial(t, 1.0f, 0.4670751681f, 0.02584613244f, 0.0003272323126f, 7.700085085e-7f);
  return std::abs(x) >= kEnd ? std::copysign(1.0f, x) : c * p / q;
#endif
}

/// 1 / (1 + e^-x) to 4 ulp; 0 where that is below 1.2e-38.
template <class R>
SINKHORN_HD inline R sigmoid(R x) {
  return 1 / (1 + math::exp(-x));
}

namespace detail {
/// e^x for x <= 0; a GPU has an instruction for 2^x, which gives it to 2 + 1.2 |x| ulp, and 0 below 1.2e-38.
SINKHORN_HD inline float falling_exp(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
#else
  return math::exp(x);
#endif
}
/// a / b for a b from 2^-126 to 2^126; a GPU has an instruction for 1 / b, by which the quotient is good to 2 ulp.
SINKHORN_HD inline float quick_quotient(float a, float b) {
#ifdef __CUDA_ARCH__
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
  return a * inverse;
#else
  return a / b;
#endif
}
}  // namespace detail

/// N(0, 1) at x: the probability of less than x, and the density.
template <class R>
struct Normal {
  R cdf, pdf;
};
SINKHORN_HD inline Normal<double> normal(double x) {
  return {0.5 * std::erfc(-0.70710678118654752 * x), 0.39894228040143268 * std::exp(-0.5 * x * x)};
}
/// To 2e-7. The tail beyond |x| is the density times Mills' ratio, here the rational function of least maximal error on
/// 0 .. 14.5, beyond which the density vanishes.
SINKHORN_HD inline Normal<float> normal(float x) {
  const float pdf = 0.398942280f * detail::falling_exp(-0.5f * x * x), size = std::abs(x);
  const float t = size < 14.5f ? size : 14.5f;  // also of a NaN, which the density then is
  const float p = detail::polynomial(t, 1.253314144f, 1.09839439f, 0.4591032092f, 0.1017807408f, 0.01030607862f);
  const float q = detail::polynomial(t, 1.0f, 1.674276885f, 1.202186413f, 0.4692592429f, 0.1017871979f, 0.01030595872f);
  const float tail = detail::quick_quotient(pdf * p, q);
  return {x < 0 ? tail : 1 - tail, pdf};
}

/// x P(N(0, 1) < x) (Hendrycks & Gimpel 2016, the exact form), and its derivative.
template <class R>
SINKHORN_HD inline R gelu(R x) {
  return x * normal(x).cdf;
}
template <class R>
SINKHORN_HD inline R gelu_slope(R x) {
  const Normal<R> at = normal(x);
  return at.cdf + x * at.pdf;
}

}  // namespace sinkhorn::math
