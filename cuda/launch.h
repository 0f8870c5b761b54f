// How kernels are written and launched: one body for the GPU and for an emulated grid on the CPU.
//
// A kernel is a struct. Its members are its arguments, its operator() is what one thread of a block does:
//
//   template <class T>
//   struct ScaleRows {                       // y = x * factor of the row; one block per row
//     std::int64_t width;
//     Global<const T> x, factor;
//     Global<T> y;
//     SINKHORN_DEVICE void operator()(Thread& t) const {
//       for (std::int64_t i = t.index(); i < width; i += t.size())
//         y[t.block() * width + i] = Real<T>(x[t.block() * width + i]) * Real<T>(factor[t.block()]);
//     }
//   };
//   launch("scale_rows", rows, threads_for(width), 0, ScaleRows<T>{width, x, factor, y});
//
// nvcc makes of `Thread` the built-in indices, barriers and shuffles, of `Global` and `Shared` plain pointers, and of
// `launch` the only <<< >>> of the house. In a build without nvcc the same file is compiled by the host's compiler: a
// thread is then a fiber, `launch` runs block after block on the calling thread, every access through `Global` and
// `Shared` is checked against the ends of its buffer, counted, and in shared memory watched for races, and barriers and
// shuffles that not every thread reaches are errors (cuda/emulator/emulator.h). So a kernel touches device memory only
// through Global and Shared.
//
// A kernel whose threads have nothing to do with each other is a function of an index instead, operator()(int64), and
// is run by for_each(op, count, f). The emulator runs it as a plain loop.
//
// The common interface, whichever compiler reads it:
//
//   Global<T>      made from a T*, null too; x[i], x + i, and true if not null. Global<const T> from Global<T>.
//   Thread t       t.block(), and in it t.index() of t.size() threads; t.lane() of 32 in t.warp() of t.warps().
//                  t.sync(): barrier of the block.  t.shuffle_xor(value, mask): the value of lane ^ mask; all 32 lanes
//                  of a warp call it together.  t.shared<T>(count): the next `count` elements of shared memory, the
//                  same for all threads of a block if they ask in the same order.
//   launch(op, blocks, threads, shared_bytes, kernel)   threads: a multiple of 32, at most kMaxThreads
//   for_each(op, count, f)
//
// `op` is named by errors. All launches go to one stream, in order; none waits.
#pragma once
#include <cstdint>
#include <string_view>

#include "autograd/dtype.h"

namespace sinkhorn::cuda {

inline constexpr int kWarp = 32, kMaxThreads = 256;

/// Threads of a block that works on `items` things: one each, as far as that goes.
constexpr int threads_for(std::int64_t items) {
  int threads = kWarp;
  while (threads < kMaxThreads && threads < items) threads *= 2;
  return threads;
}

constexpr std::int64_t pieces(std::int64_t count, std::int64_t piece) { return (count + piece - 1) / piece; }

}  // namespace sinkhorn::cuda

#ifdef __CUDACC__
#include "cuda/gpu/thread.h"
#else
#include "cuda/emulator/thread.h"
#endif
