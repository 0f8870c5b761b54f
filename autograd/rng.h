// Random numbers as a pure function of (key, step, index): Philox4x32-10 (Salmon et al. 2011). Nothing is saved or
// advanced.
#pragma once
#include <array>
#include <cstdint>

#include "autograd/tensor.h"

namespace sinkhorn {

using Word4 = std::array<std::uint32_t, 4>;

/// Ten Philox rounds of one counter under one key.
SINKHORN_HD constexpr Word4 philox(Word4 counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = 0xD2511F53ull * counter[0], b = 0xCD9E8D57ull * counter[2];
    counter = {std::uint32_t(b >> 32) ^ counter[1] ^ key0, std::uint32_t(b), std::uint32_t(a >> 32) ^ counter[3] ^ key1,
               std::uint32_t(a)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The known answers of Random123, checked by the compiler.
static_assert(philox({0, 0, 0, 0}, 0, 0) == Word4{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
static_assert(philox({~0u, ~0u, ~0u, ~0u}, ~0u, ~0u) == Word4{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});

/// What a kernel needs of a stream: plain words.
struct RandomBits {
  std::uint64_t key = 0;
  std::uint32_t step = 0;
  /// The same word on Device::cuda, for kernels there; null: they take `step`.
  const std::int32_t* device_step = nullptr;

  /// Philox block `i` of the stream: its words 4 i .. 4 i + 3.
  SINKHORN_HD constexpr Word4 block(std::uint64_t i) const {
    return philox({std::uint32_t(i), std::uint32_t(i >> 32), step, 0}, std::uint32_t(key), std::uint32_t(key >> 32));
  }
  /// Word `i` of the stream.
  SINKHORN_HD constexpr std::uint32_t word(std::uint64_t i) const { return block(i / 4)[i % 4]; }
  /// A word as a number uniform in the open interval (0, 1): 23 bits and a half, so that neither end is reached in f32.
  template <class T = float>
  SINKHORN_HD static constexpr T to_uniform(std::uint32_t word) {
    return (T(word >> 9) + T(0.5)) / T(8388608);
  }
  /// Element `i` as such a number.
  template <class T = float>
  SINKHORN_HD constexpr T uniform(std::uint64_t i) const {
    return to_uniform<T>(word(i));
  }
};

/// A stream of random numbers, passed by value: a key that is fixed for a run and a step word read from memory, so that
/// forward and recomputation within one step draw the same bits. Copying a stream copies its future.
class Rng {
 public:
  Rng() = default;
  explicit Rng(std::uint64_t key) : key_(key) {}
  /// `step` is one i32 that the owner advances between steps; `device_step`, if given, the same word on Device::cuda,
  /// which kernels read when they run: a graph (autograd/graph.h) that holds them draws anew in every step.
  Rng(std::uint64_t key, Tensor step, Tensor device_step = {})
      : key_(key), step_(std::move(step)), device_step_(std::move(device_step)) {}

  /// An independent stream named by `tag`.
  Rng split(std::uint32_t tag) const {
    const Word4 word = philox({tag, 0, 0, 1}, std::uint32_t(key_), std::uint32_t(key_ >> 32));
    return {word[0] | std::uint64_t(word[1]) << 32, step_, device_step_};
  }
  std::uint64_t key() const { return key_; }
  /// The words as they stand now.
  RandomBits bits() const {
    return {key_, step_ ? std::uint32_t(*step_.data<std::int32_t>()) : 0, device_step_.data_or_null<std::int32_t>()};
  }

 private:
  std::uint64_t key_ = 0;
  Tensor step_, device_step_;
};

/// Element-wise U(low, high), and N(mean, stddev) by Box-Muller, from the stream; computed in f64 and rounded to
/// `dtype`.
Tensor uniform(Rng rng, Shape shape, double low, double high, DType dtype = DType::f32);
Tensor normal(Rng rng, Shape shape, double mean, double stddev, DType dtype = DType::f32);
/// Element-wise standard Gumbel noise -log(-log(U)), U = bits().uniform(i), which no end of (0, 1) makes infinite:
/// between -2.82 and 16.64. Computed in f64 for f64, else in f32, on the device.
Tensor gumbel(const Rng& rng, Shape shape, DType dtype = DType::f32, Device device = Device::cpu);
/// Integers 0 .. end-1 as i32.
Tensor integers(Rng rng, Shape shape, std::int32_t end);

}  // namespace sinkhorn
