// Wrong: the dot product rounds its sum to bf16 after every term.
#include <bit>

#include "notebooks/lessons/24_mixed_precision/exercise.h"

namespace sinkhorn::lesson {

std::uint16_t to_bf16(float x) {
  const auto word = std::bit_cast<std::uint32_t>(x);
  if ((word & 0x7fffffffu) > 0x7f800000u) return std::uint16_t(word >> 16 | 0x40u);  // NaN: quiet, and still one
  return std::uint16_t((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}

float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t(bits) << 16); }

float dot(std::span<const std::uint16_t> a, std::span<const std::uint16_t> b) {
  float sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum = from_bf16(to_bf16(sum + from_bf16(a[i]) * from_bf16(b[i])));
  return sum;
}

void step(const Weights& w, std::span<const std::uint16_t> gradients, float rate, float beta) {
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    w.momentum[i] = beta * w.momentum[i] + from_bf16(gradients[i]);
    w.master[i] -= rate * w.momentum[i];
    w.weights[i] = to_bf16(w.master[i]);
  }
}

}  // namespace sinkhorn::lesson
