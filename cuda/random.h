// Streams of random numbers as kernels hold them.
#pragma once
#include "autograd/rng.h"
#include "cuda/launch.h"

namespace sinkhorn::cuda {

/// A kernel's copy of a stream. The step word is read when the kernel runs, if it lies on the device, so that a graph
/// which is launched again draws fresh noise.
class RandomStream {
 public:
  explicit RandomStream(const RandomBits& bits) : bits_(bits), step_(bits.device_step) {}

  SINKHORN_DEVICE RandomBits now() const {
    return {bits_.key, step_ ? std::uint32_t(std::int32_t(step_[0])) : bits_.step};
  }
  /// Words 4 * block .. 4 * block + 3.
  SINKHORN_DEVICE Word4 four_words(std::int64_t block) const { return now().block(std::uint64_t(block)); }

 private:
  RandomBits bits_;
  Global<const std::int32_t> step_;
};

}  // namespace sinkhorn::cuda
