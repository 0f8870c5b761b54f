// Thread, Global, Shared, launch and for_each of cuda/launch.h on a GPU.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "cuda/gpu/check.h"

#define SINKHORN_DEVICE __device__

namespace sinkhorn::cuda {

template <class T>
class Global {
 public:
  __host__ __device__ Global(T* pointer = nullptr) : pointer_(pointer) {}
  template <class U>
  requires(std::is_same_v<const U, T>) __host__ __device__ Global(const Global<U>& other) : pointer_(other.pointer_) {}

  __device__ explicit operator bool() const { return pointer_ != nullptr; }
  __device__ Global operator+(std::int64_t offset) const { return pointer_ + offset; }
  __device__ T& operator[](std::int64_t i) const { return pointer_[i]; }

  template <int N>
  bool is_aligned() const {
    return cuda::is_aligned<N>(pointer_);
  }
  template <int N>
  __device__ Pack<std::remove_const_t<T>, N> load(std::int64_t i) const {
    return *reinterpret_cast<const Pack<std::remove_const_t<T>, N>*>(pointer_ + i);
  }
  template <int N>
  __device__ void store(std::int64_t i, const Pack<T, N>& pack) const {
    *reinterpret_cast<Pack<T, N>*>(pointer_ + i) = pack;
  }

 private:
  template <class>
  friend class Global;
  T* pointer_;
};

template <class T>
class Shared {
 public:
  __device__ explicit Shared(T* memory) : memory_(memory) {}
  __device__ T& operator[](std::int64_t i) const { return memory_[i]; }

 private:
  T* memory_;
};

class Thread {
 public:
  __device__ explicit Thread(std::int64_t block) : block_(block) {}

  __device__ std::int64_t block() const { return block_; }
  __device__ int index() const { return int(threadIdx.x); }
  __device__ int size() const { return int(blockDim.x); }
  __device__ int lane() const { return index() % kWarp; }
  __device__ int warp() const { return index() / kWarp; }
  __device__ int warps() const { return size() / kWarp; }

  __device__ void sync() const { __syncthreads(); }
  template <class T>
  __device__ T shuffle_xor(T value, int mask) const {
    static_assert(sizeof(T) % 4 == 0 && std::is_trivially_copyable_v<T>);
    unsigned words[sizeof(T) / 4];
    memcpy(words, &value, sizeof(T));
#pragma unroll
    for (unsigned& word : words) word = __shfl_xor_sync(0xffffffffu, word, mask);
    memcpy(&value, words, sizeof(T));
    return value;
  }
  template <class T>
  __device__ Shared<T> shared(std::int64_t count) {
    extern __shared__ __align__(1024) unsigned char memory[];
    T* own = reinterpret_cast<T*>(memory + shared_);
    shared_ += (count * std::int64_t(sizeof(T)) + 15) / 16 * 16;
    return Shared<T>(own);
  }

 private:
  std::int64_t block_, shared_ = 0;
};

// A kernel that wants several blocks at once on a multiprocessor, and so fewer registers, names them and its threads.
template <class Kernel>
struct Bounds {
  static constexpr int threads = kMaxThreads, blocks = 1;
};
template <class Kernel>
requires requires { Kernel::kBlocksOfMultiprocessor; }
struct Bounds<Kernel> {
  static constexpr int threads = Kernel::kThreads, blocks = Kernel::kBlocksOfMultiprocessor;
};

template <class Kernel>
__global__ void __launch_bounds__(Bounds<Kernel>::threads, Bounds<Kernel>::blocks)
    run_grid(const Kernel kernel, std::int64_t blocks) {
  for (std::int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    Thread thread(block);
    kernel(thread);
    if (block + gridDim.x < blocks) __syncthreads();  // the next block uses the shared memory anew
  }
}

template <class F>
__global__ void __launch_bounds__(kMaxThreads) run_flat(const F f, std::int64_t count) {
  const std::int64_t step = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) f(i);
}

// A function of packs in two parts, write(i, read(i)): two packs are then read before the first is written, since one a
// thread is too little to keep memory busy.
template <int N, class F>
concept ReadsAhead = requires(const F f, Width<N> n) {
  f.read(std::int64_t(0), n);
};

// The last elements, fewer than a pack, are second work for the first threads.
template <int N, class F>
__global__ void __launch_bounds__(kMaxThreads) run_packs(const F f, std::int64_t count) {
  constexpr Width<N> n;
  const std::int64_t first = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x, packs = count / N;
  const std::int64_t step = std::int64_t(gridDim.x) * blockDim.x;
  std::int64_t i = first;
  if constexpr (ReadsAhead<N, F>)
    for (; i + step < packs; i += 2 * step) {
      const auto one = f.read(i * N, n), other = f.read((i + step) * N, n);
      f.write(i * N, one, n);
      f.write((i + step) * N, other, n);
    }
  for (; i < packs; i += step) f(i * N, n);
  if (N > 1 && packs * N + first < count) f(packs * N + first, Width<1>{});
}

template <class Kernel>
void launch(std::string_view op, std::int64_t blocks, int threads, std::size_t shared_bytes, const Kernel& kernel) {
  constexpr std::size_t usual = 48 << 10;
  if (blocks <= 0) return;
  const auto grid = unsigned(std::min<std::int64_t>(blocks, 0x7fffffff));
  if (shared_bytes > usual)
    check(op, cudaFuncSetAttribute(run_grid<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  run_grid<<<grid, unsigned(threads), shared_bytes, stream()>>>(kernel, blocks);
  check_launch(op);
}

template <class F>
void for_each(std::string_view op, std::int64_t count, const F& f) {
  if (count <= 0) return;
  const auto grid = unsigned(std::min<std::int64_t>(pieces(count, kMaxThreads), 1 << 20));
  run_flat<<<grid, kMaxThreads, 0, stream()>>>(f, count);
  check_launch(op);
}

template <int N, class F>
void for_each_pack(std::string_view op, std::int64_t count, bool aligned, const F& f) {
  if (count <= 0) return;
  if constexpr (N > 1)
    if (!aligned) return for_each_pack<1>(op, count, true, f);
  const std::int64_t packs = count / N, threads = ReadsAhead<N, F> ? pieces(packs, 2) : packs;
  const auto grid = std::min<std::int64_t>(std::max<std::int64_t>(pieces(threads, kMaxThreads), 1), 1 << 20);
  run_packs<N><<<unsigned(grid), kMaxThreads, 0, stream()>>>(f, count);
  check_launch(op);
}

}  // namespace sinkhorn::cuda
