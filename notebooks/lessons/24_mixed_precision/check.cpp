#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <vector>

#include "autograd/dtype.h"
#include "notebooks/kit/checks.h"
#include "notebooks/kit/drawing.h"
#include "notebooks/lessons/24_mixed_precision/exercise.h"

namespace sinkhorn::lesson {
namespace {

float of_bits(std::uint32_t word) { return std::bit_cast<float>(word); }

// The first number of a group that is not rounded as the library rounds it, as a sentence; empty if there is none.
std::string first_difference(const std::vector<float>& group) {
  for (const float x : group) {
    const std::uint16_t got = to_bf16(x), want = bf16(x).bits;
    if (std::isnan(x) ? (got & 0x7fff) > 0x7f80 : got == want) continue;
    return fmt::format("{} has bits {:08x}; expected {}, got {:04x}", drawing::number(x, 9),
                       std::bit_cast<std::uint32_t>(x), std::isnan(x) ? "a NaN" : fmt::format("{:04x}", want), got);
  }
  return {};
}

void check_rounding(lessons::Checks& checks, const std::string& name, const std::vector<float>& group) {
  checks.attempt(name, [&] {
    const std::string difference = first_difference(group);
    checks.that(name, difference.empty(), difference);
  });
}

// Upper halves of both signs and all exponents, each with the same lower half.
std::vector<float> with_lower_half(Rng rng, std::uint32_t low, bool is_odd) {
  std::vector<float> group;
  group.reserve(512);
  for (std::uint64_t i = 0; i < 512; ++i) {
    const std::uint32_t high = (rng.bits().word(i) & 0xfffe0000u) | (is_odd ? 0x10000u : 0);
    if ((high & 0x7f800000u) != 0x7f800000u) group.push_back(of_bits(high | low));
  }
  return group;
}

void check_to_bf16(lessons::Checks& checks, const Rng& rng) {
  check_rounding(checks, "to_bf16: just below the middle", with_lower_half(rng.split(0), 0x7fff, true));
  check_rounding(checks, "to_bf16: just above the middle", with_lower_half(rng.split(1), 0x8001, false));
  check_rounding(checks, "to_bf16: ties with an even last bit", with_lower_half(rng.split(2), 0x8000, false));
  check_rounding(checks, "to_bf16: ties with an odd last bit", with_lower_half(rng.split(3), 0x8000, true));
  std::vector<float> any, nans;
  any.reserve(4096);
  nans.reserve(256);
  for (std::uint64_t i = 0; i < 4096; ++i) {
    const float x = of_bits(rng.split(4).bits().word(i));
    if (!std::isnan(x)) any.push_back(x);
  }
  check_rounding(checks, "to_bf16: any bits that are a number", any);
  for (std::uint64_t i = 0; i < 256; ++i) {  // NaNs, half of them with nothing in the upper half of the fraction
    const std::uint32_t word = rng.split(5).bits().word(i);
    nans.push_back(of_bits((word & 0x80000000u) | 0x7f800000u | (word & (i % 2 ? 0xffffu : 0x7fffffu)) | 1u));
  }
  nans.push_back(of_bits(0x7fffffffu));
  nans.push_back(of_bits(0xffffffffu));
  check_rounding(checks, "to_bf16: NaN stays NaN", nans);
}

void check_ends(lessons::Checks& checks) {
  constexpr float infinity = std::numeric_limits<float>::infinity(), largest = std::numeric_limits<float>::max();
  check_rounding(checks, "to_bf16: zeros and infinities", {0.0f, -0.0f, infinity, -infinity});
  check_rounding(checks, "to_bf16: the largest numbers",
                 {largest, -largest, of_bits(0x7f7f7fffu), of_bits(0x7f7f8000u)});
  check_rounding(checks, "to_bf16: the smallest numbers",
                 {of_bits(1), of_bits(0x8000), of_bits(0x8001), of_bits(0x18000), of_bits(0x80007fffu)});
  checks.attempt("from_bf16: all 65536", [&] {
    std::int64_t wrong = 0, first = -1;
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
      if (std::bit_cast<std::uint32_t>(from_bf16(std::uint16_t(bits))) == bits << 16) continue;
      if (wrong++ == 0) first = bits;
    }
    checks.that("from_bf16: all 65536", wrong == 0, fmt::format("{} are wrong, the first {:04x}", wrong, first));
  });
}

std::vector<std::uint16_t> rounded(const Rng& rng, std::int64_t count, double low, double high) {
  const Tensor x = uniform(rng, {count}, low, high, DType::bf16);
  std::vector<std::uint16_t> bits;
  bits.reserve(std::size_t(count));
  for (const bf16 value : x.span<bf16>()) bits.push_back(value.bits);
  return bits;
}
// The library's widening, so that a wrong from_bf16 fails in its own check alone.
double widened(std::uint16_t bits) {
  bf16 value;
  value.bits = bits;
  return double(float(value));
}

void check_dot(lessons::Checks& checks, const Rng& rng) {
  const auto count = std::int64_t(500 + rng.bits().word(0) % 1500);
  const std::string name = fmt::format("dot of {} numbers, summed in f32", count);
  // Mostly of one sign, so that the sum grows and a sum in bf16 would stall.
  const auto a = rounded(rng.split(0), count, 0.2, 2), b = rounded(rng.split(1), count, -0.5, 2);
  double want = 0;
  for (std::size_t i = 0; i < a.size(); ++i) want += widened(a[i]) * widened(b[i]);
  checks.attempt(name, [&] { checks.near(name, double(dot(a, b)), want, 1e-5); });
  const std::vector<std::uint16_t> ones(std::size_t(count), bf16(1.0f).bits);
  const std::string stall = fmt::format("dot of {} ones with themselves", count);
  checks.attempt(stall, [&] { checks.near(stall, double(dot(ones, ones)), double(count), 0); });
}

void check_step(lessons::Checks& checks, const Rng& rng) {
  constexpr std::int64_t kCount = 37, kSteps = 300;
  constexpr float kRate = 1e-4f, kBeta = 0.75f;
  const Tensor start = uniform(rng.split(0), {kCount}, -2, 2);
  std::vector<float> master(start.span<float>().begin(), start.span<float>().end()),
      momentum(std::size_t(kCount), 0.0f);
  std::vector<std::uint16_t> weights;
  weights.reserve(master.size());
  for (const float x : master) weights.push_back(bf16(x).bits);
  std::vector<double> want_master(master.begin(), master.end()), want_momentum(std::size_t(kCount), 0.0);
  const std::string name = fmt::format("{} small steps", kSteps);
  checks.attempt(name, [&] {
    for (std::int64_t s = 0; s < kSteps; ++s) {
      const auto gradients = rounded(rng.split(std::uint32_t(10 + s)), kCount, 0.1, 1);
      step({master, momentum, weights}, gradients, kRate, kBeta);
      for (std::size_t i = 0; i < gradients.size(); ++i) {
        want_momentum[i] = double(kBeta) * want_momentum[i] + widened(gradients[i]);
        want_master[i] -= double(kRate) * want_momentum[i];
      }
    }
    checks.near(name + ": master weights", Tensor::from(master, {kCount}),
                Tensor::from(want_master, {kCount}).to(DType::f32), 1e-5);
    checks.near(name + ": momentum", Tensor::from(momentum, {kCount}),
                Tensor::from(want_momentum, {kCount}).to(DType::f32), 1e-5);
    std::vector<double> got;
    got.reserve(weights.size());
    for (const std::uint16_t bits : weights) got.push_back(widened(bits));
    // At most half a step of bf16 away from the exact weights: 2^-8 below 2.
    checks.near(name + ": weights in bf16", Tensor::from(got, {kCount}), Tensor::from(want_master, {kCount}),
                1.0 / 250);
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  check_ends(checks);
  for (const Rng& rng : checks.rounds()) {
    check_to_bf16(checks, rng.split(0));
    check_dot(checks, rng.split(1));
    check_step(checks, rng.split(2));
  }
}

}  // namespace sinkhorn::lesson
