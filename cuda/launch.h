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
// Memory answers fastest when a thread asks for 16 bytes at once: a Pack of neighbours. for_each_pack(op, count,
// aligned, f) calls f(i, Width<N>{}) for the elements i .. i + N-1, which it may read and write as packs, and f(i,
// Width<1>{}) for each of those at the end that fill no pack; for all of them, if not `aligned`. cuda/elements.h has
// maps and sums made that way.
//
// The common interface, whichever compiler reads it:
//
//   Global<T>      made from a T*, null too; x[i], x + i, and true if not null. Global<const T> from Global<T>.
//                  x.load<N>(i) is the pack x[i] .. x[i + N-1], x.store(i, pack) writes one; `x + i` must be aligned to
//                  a pack (x.is_aligned<N>(), is_aligned<N>(pointers)), or to 16 bytes if that is less.
//   Thread t       t.block(), and in it t.index() of t.size() threads; t.lane() of 32 in t.warp() of t.warps().
//                  t.sync(): barrier of the block.  t.shuffle_xor(value, mask): the value of lane ^ mask; all 32 lanes
//                  of a warp call it together.  t.shared<T>(count): the next `count` elements of shared memory, the
//                  same for all threads of a block if they ask in the same order.
//   launch(op, blocks, threads, shared_bytes, kernel)   threads: a multiple of 32, at most kMaxThreads;
//                  a kernel that names its threads (Bounds in gpu/thread.h) may have more
//   for_each(op, count, f), for_each_pack<N>(op, count, aligned, f)
//
// `op` is named by errors. All launches go to one stream, in order; none waits.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string_view>
#include <type_traits>

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

/// i / by for i >= 0. Divisions of 32 bits are several times faster, so they are taken where they suffice.
SINKHORN_HD inline std::int64_t quotient(std::int64_t i, std::int64_t by) {
  return ((i | by) >> 32) == 0 ? std::int64_t(std::uint32_t(i) / std::uint32_t(by)) : i / by;
}

/// N elements side by side, which memory gives and takes in words of up to 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  static_assert(N > 0 && (N & (N - 1)) == 0, "a power of two");
  T at[N];
  SINKHORN_HD T& operator[](int k) { return at[k]; }
  SINKHORN_HD const T& operator[](int k) const { return at[k]; }
};

/// How many elements a call of for_each_pack works on.
template <int N>
using Width = std::integral_constant<int, N>;

/// How many elements of T make a pack of 16 bytes; of bytes 8, since what is computed with them is larger.
template <class T>
constexpr int pack_width() {
  return sizeof(T) == 1 ? 8 : int(16 / sizeof(T));
}

/// Whether packs of N elements may begin where each of these pointers points, null ones included.
template <int N, class... T>
bool is_aligned(const T*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % alignof(Pack<T, N>) == 0) && ...);
}

}  // namespace sinkhorn::cuda

#ifdef __CUDACC__
#include "cuda/gpu/thread.h"
#else
#include "cuda/emulator/thread.h"
#endif
