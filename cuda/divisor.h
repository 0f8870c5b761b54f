// Division of indices by a number that the host knows.
#pragma once
#include <cstdint>

#include "cuda/launch.h"

namespace sinkhorn::cuda {

/// x / value for 0 <= x < 2^31 by a multiplication and a shift, where a division takes some 25 instructions (Granlund
/// and Montgomery 1994, theorem 4.2, with one bit to spare). `value` is below 2^31; an empty extent, of which nothing
/// is divided, counts as 1.
class Divisor {
 public:
  explicit Divisor(std::int64_t value) : value_(std::uint32_t(value > 0 ? value : 1)) {
    while ((std::uint64_t(1) << (shift_ - 31)) < value_) ++shift_;
    factor_ = std::uint32_t((std::uint64_t(1) << shift_) / value_ + 1);
  }
  SINKHORN_HD int value() const { return int(value_); }
  SINKHORN_HD friend int operator/(int x, const Divisor& by) {
    int quotient = int(std::uint64_t(std::uint32_t(x)) * by.factor_ >> by.shift_);
#ifdef __CUDA_ARCH__
    asm("" : "+r"(quotient));  // else nvcc follows it into what depends on it, and attention spills 200 bytes a thread
#endif
    return quotient;
  }

 private:
  std::uint32_t value_, factor_;
  int shift_ = 31;
};

}  // namespace sinkhorn::cuda
