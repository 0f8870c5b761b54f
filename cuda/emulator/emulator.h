// The emulated GPU of builds without CUDA: its grid runs on the CPU, counts what kernels do and finds their mistakes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "autograd/error.h"

namespace sinkhorn::emulator {

/// A kernel did what no kernel may: touched memory outside its buffers, raced in shared memory, or let some threads of
/// a block miss a barrier. The message names the op, the block and the threads.
struct KernelFault : Error {
  using Error::Error;
};

struct Traffic {
  std::int64_t accesses = 0, bytes = 0;
};

/// What kernels did since the last reset_counters(). A barrier counts once per block, a shuffle once per warp.
struct Counters {
  std::int64_t launches = 0, blocks = 0, threads = 0, barriers = 0, shuffles = 0;
  Traffic global_reads, global_writes, shared_reads, shared_writes;
  /// 32-byte sectors of global memory that warps asked for: a GPU moves nothing smaller. The n-th accesses of a warp's
  /// 32 lanes count as one request, as they are on a GPU while no lane takes another branch. Only under
  /// count_sectors().
  std::int64_t sectors = 0;
};
Counters counters();
void reset_counters();
/// Whether sectors are counted from here on; it slows every access.
void count_sectors(bool on);

/// How much memory the device has, 4 GiB at first: what is lent already stays.
void set_memory(std::size_t bytes);

// --- what launch.h's Thread, Global and Shared are made of ----------------------------------------------------------

namespace detail {

/// The running totals, without a function call in between.
extern Counters now;

/// The part of device memory that kernels may touch through a pointer into it: the buffer that holds `address`. A fault
/// if there is none. Device memory has two addresses: the one that tensors know cannot be touched (so that host code
/// which tries is stopped by the processor); `shift` bytes further the elements really are.
struct Extent {
  std::uintptr_t begin = 0, end = 0;
};
Extent extent_of(const void* address);
extern std::ptrdiff_t shift;
template <class T>
T* on_host(T* device) {
  using Byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(device) + shift);
}

[[noreturn]] void outside_global(std::uintptr_t address, std::size_t bytes, Extent extent);
[[noreturn]] void misaligned(std::uintptr_t address, std::size_t alignment, Extent extent);

extern bool counts_sectors;
void touch_sectors(const void* at, std::size_t bytes);

/// Shared memory of the running block, from a byte offset on.
std::byte* shared_memory(std::int64_t offset, std::int64_t bytes);
[[noreturn]] void outside_shared(std::int64_t index, std::int64_t count);
/// Notes that the running thread touches these bytes; a fault if another did so since the last barrier and one wrote.
void touch_shared(const std::byte* at, std::size_t bytes, bool writes);

/// The running thread waits for the other threads of its block.
void sync(const char* file, int line);
/// Gives `bytes` (at most 16) of this lane and takes those of another, once all lanes of the warp are here.
void exchange(const void* give, void* take, std::size_t bytes, int from_lane);

/// What a thread that records a graph has asked for so far; null: it records none, and launches run at once.
using Launches = std::vector<std::function<void()>>;
extern constinit thread_local Launches* recording;  // constinit: no wrapper, which UBSan takes for a null pointer
/// Does what `work` does to device memory: now, or whenever the graph that is being recorded is launched.
template <class Work>
void run_or_record(Work work) {
  if (recording)
    recording->push_back(std::move(work));
  else
    work();
}

/// Runs body(kernel, block, thread) for every thread of every block.
void run_grid(std::string_view op, std::int64_t blocks, int threads, std::size_t shared_bytes, const void* kernel,
              void (*body)(const void* kernel, std::int64_t block, int thread));
/// Notes a launch whose threads are run by the caller as a plain loop.
void count_flat(std::string_view op, std::int64_t count);
void set_index(std::int64_t index);

}  // namespace detail
}  // namespace sinkhorn::emulator
