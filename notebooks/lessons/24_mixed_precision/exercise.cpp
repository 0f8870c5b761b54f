// bf16 by hand. Edit this file, then: sinkhorn lesson verify 24
//
// f32: 1 bit of sign, 8 of exponent, 23 of fraction. bf16: the first 16 of these.
#include "notebooks/lessons/24_mixed_precision/exercise.h"

#include <bit>

namespace sinkhorn::lesson {

// As it stands it cuts off the lower half: every number moves towards 0, and some NaNs become infinite.
std::uint16_t to_bf16(float x) { return std::uint16_t(std::bit_cast<std::uint32_t>(x) >> 16); }

// As it stands it takes the bits for a whole number.
float from_bf16(std::uint16_t bits) { return float(bits); }

// As it stands the sum is rounded to bf16 after every term. It stalls.
float dot(std::span<const std::uint16_t> a, std::span<const std::uint16_t> b) {
  std::uint16_t sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum = to_bf16(from_bf16(sum) + from_bf16(a[i]) * from_bf16(b[i]));
  return from_bf16(sum);
}

// As it stands the rounded weights are updated, and what rounding took is gone; momentum and master are not used.
void step(const Weights& w, std::span<const std::uint16_t> gradients, float rate, float beta) {
  (void)beta;  // yours to use
  for (std::size_t i = 0; i < gradients.size(); ++i)
    w.weights[i] = to_bf16(from_bf16(w.weights[i]) - rate * from_bf16(gradients[i]));
}

}  // namespace sinkhorn::lesson
