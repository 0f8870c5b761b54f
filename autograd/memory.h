// What the engine asks of a device that holds tensors: memory, and moves into, out of and within it.
#pragma once
#include "autograd/dispatch.h"

namespace sinkhorn {

/// One overload per device; those of CUDA lie in cuda/. Kernels and moves of a device happen in the order in which they
/// were asked for, so that memory given back may be lent again at once. Only `download` waits for what was asked
/// before.
struct Memory {
  /// A block aligned to 256 bytes, or null if the device has none left.
  static void* allocate(Cpu, std::size_t bytes);
  static void* allocate(Cuda, std::size_t bytes);
  static void release(Cpu, void* block);
  static void release(Cuda, void* block);
  /// Says how many bytes of a block are in use (0: the block lies in a free list), for tools that check accesses.
  static void claim(Cpu, void* block, std::size_t bytes);
  static void claim(Cuda, void* block, std::size_t bytes);

  static void upload(Cpu, const std::byte* host, std::byte* device, std::size_t bytes);
  static void upload(Cuda, const std::byte* host, std::byte* device, std::size_t bytes);
  static void download(Cpu, const std::byte* device, std::byte* host, std::size_t bytes);
  static void download(Cuda, const std::byte* device, std::byte* host, std::size_t bytes);
  static void copy(Cpu, const std::byte* from, std::byte* to, std::size_t bytes);
  static void copy(Cuda, const std::byte* from, std::byte* to, std::size_t bytes);

  /// How often a tensor or a result went to Device::cuda, and came from it, since the program started.
  struct Transfers {
    std::int64_t uploads = 0, downloads = 0;
  };
  static Transfers& transfers();
};

namespace kernels {

/// y_i = value
template <class T>
struct Fill {
  static void forward(Cpu, std::int64_t count, T value, T* y);
  static void forward(Cuda, std::int64_t count, T value, T* y);
};

/// y_i = x_i in another type, rounded to nearest
template <class From, class To>
struct Convert {
  static void forward(Cpu, std::int64_t count, const From* x, To* y);
  static void forward(Cuda, std::int64_t count, const From* x, To* y);
};

/// into_i += term_i; terms in T, or in bf16 where T is f32
template <class T, class Term = T>
struct Accumulate {
  static void forward(Cpu, std::int64_t count, const Term* term, T* into);
  static void forward(Cuda, std::int64_t count, const Term* term, T* into);
};

}  // namespace kernels
}  // namespace sinkhorn
