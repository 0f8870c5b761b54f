// Random numbers as a function of (key, step, index), and dropout that needs no stored mask: what the exercise is to
// write.
#pragma once
#include <array>
#include <cstdint>

#include "autograd/tensor.h"

namespace sinkhorn::lesson {

using Words = std::array<std::uint32_t, 4>;

/// Philox4x32-10: ten rounds on a counter of four words, under a key of two.
Words philox(Words counter, std::uint32_t key0, std::uint32_t key1);

/// A stream of random numbers. Copying one copies all it will ever give.
struct Stream {
  std::uint64_t key = 0;
  std::uint32_t step = 0;
};

/// Word i of a stream: word i % 4 of philox(block, block >> 32, step, 0) for block i / 4, under the low and the high
/// half of the key.
std::uint32_t word(const Stream& stream, std::uint64_t i);

/// An independent stream of the same step. Its key is the first two words (the low half first) of philox(tag, 0, 0, 1).
Stream split(const Stream& stream, std::uint32_t tag);

/// A word as an f32 strictly between 0 and 1: its upper 23 bits and a half, over 2^23.
float uniform(std::uint32_t word);

/// Dropout of a piece of a larger tensor. `x` (any shape, f32) holds the elements first, first + 1, ... of it. Element
/// i is kept if uniform(word i) >= p, and then multiplied by float(1 / (1 - p)); else it becomes 0.
Tensor dropout(const Tensor& x, std::uint64_t first, double p, const Stream& stream);

/// dx of the same piece from dy. There is no mask to read.
Tensor dropout_backward(const Tensor& dy, std::uint64_t first, double p, const Stream& stream);

}  // namespace sinkhorn::lesson
