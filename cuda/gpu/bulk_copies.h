// Hopper's bulk copies: one thread asks for a contiguous piece of memory, and a barrier in shared memory counts its
// bytes in, while nobody waits who does not need them.
#pragma once
#include <cstdint>

#include "cuda/gpu/mma.h"

namespace sinkhorn::cuda {

#ifdef SINKHORN_HAS_WGMMA
/// A barrier in shared memory. A phase of it ends when as many threads have arrived as it was made for and as many
/// bytes have come as it was told of; phases are counted from 0.
class MemoryBarrier {
 public:
  /// By one thread, before all others see it (`show`).
  __device__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&word_)), "r"(arrivals) : "memory");
  }
  /// After the last init, before the barrier of the block behind which others use them.
  __device__ static void show() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
  __device__ void arrive() {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(shared_address(&word_))
                 : "memory");
  }
  /// Arrives, and lets this phase last until `bytes` have come.
  __device__ void arrive_and_expect(int bytes) {
    asm volatile(
        "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(shared_address(&word_)),
        "r"(bytes)
        : "memory");
  }
  /// Waits for the end of a phase; it may be over, but not by more than one.
  __device__ void await(int phase) const {
    asm volatile(
        "{ .reg .pred over;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
        "@!over bra again; }" ::"r"(shared_address(&word_)),
        "r"(phase & 1)
        : "memory");
  }
  /// Copies `bytes`, a multiple of 16 between such addresses, which then have come.
  __device__ void copy(void* shared, const void* global, int bytes) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(&word_))
                 : "memory");
  }

 private:
  std::uint64_t word_;
};
#endif

}  // namespace sinkhorn::cuda
