// bf16 by hand: conversions, a dot product, and an optimizer step with master weights. What the exercise is to write.
#pragma once
#include <cstdint>
#include <span>

namespace sinkhorn::lesson {

/// The bits of the bf16 nearest to x, ties to the one whose last bit is 0. Numbers beyond the largest bf16 round to
/// infinity as the format demands; infinities stay; a NaN stays a NaN.
std::uint16_t to_bf16(float x);

/// The number that the bits of a bf16 stand for: always exact.
float from_bf16(std::uint16_t bits);

/// sum_i a_i b_i of two vectors of bf16, of the same length, with a sum in f32.
float dot(std::span<const std::uint16_t> a, std::span<const std::uint16_t> b);

/// One step of gradient descent with momentum on weights that the model uses in bf16:
///   m = beta m + g,   master = master - rate m,   weight = master rounded to bf16
/// All four have the same length; gradients and weights are bf16, master and momentum f32.
struct Weights {
  std::span<float> master, momentum;
  std::span<std::uint16_t> weights;
};
void step(const Weights& w, std::span<const std::uint16_t> gradients, float rate, float beta);

}  // namespace sinkhorn::lesson
