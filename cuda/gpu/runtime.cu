#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#include "autograd/graph.h"
#include "autograd/memory.h"
#include "cuda/gpu/check.h"
#include "cuda/runtime.h"

namespace sinkhorn {
namespace cuda {
namespace {

// Page-locked memory through which transfers pass: an upload copies into the next free part and goes on, so that it
// waits only where all parts are still on their way.
class Staging {
 public:
  static constexpr std::size_t kPart = 1 << 20;

  static Staging& the() {
    static Staging staging;
    return staging;
  }

  void upload(const std::byte* from, std::byte* to, std::size_t bytes) {
    std::lock_guard lock(mutex_);
    for (std::size_t done = 0; done < bytes; done += kPart) {
      Part& part = next();
      const std::size_t size = std::min(kPart, bytes - done);
      check("upload", cudaEventSynchronize(part.free));
      std::memcpy(part.memory, from + done, size);
      check("upload", cudaMemcpyAsync(to + done, part.memory, size, cudaMemcpyHostToDevice, stream()));
      check("upload", cudaEventRecord(part.free, stream()));
    }
  }

  // All parts are filled one after the other, and emptied in that order.
  void download(const std::byte* from, std::byte* to, std::size_t bytes) {
    std::lock_guard lock(mutex_);
    for (std::size_t done = 0; done < bytes; done += kParts * kPart) {
      std::size_t sizes[kParts];
      Part* used[kParts];
      int count = 0;
      for (std::size_t at = done; at < bytes && count < kParts; at += kPart, ++count) {
        used[count] = &next();
        sizes[count] = std::min(kPart, bytes - at);
        check("download",
              cudaMemcpyAsync(used[count]->memory, from + at, sizes[count], cudaMemcpyDeviceToHost, stream()));
        check("download", cudaEventRecord(used[count]->free, stream()));
      }
      for (int i = 0; i < count; ++i) {
        check("download", cudaEventSynchronize(used[i]->free));
        std::memcpy(to + done + std::size_t(i) * kPart, used[i]->memory, sizes[i]);
      }
    }
  }

 private:
  static constexpr int kParts = 8;
  struct Part {
    void* memory = nullptr;
    cudaEvent_t free = nullptr;
  };

  Staging() {
    stream();
    for (Part& part : parts_) {
      check("page-locked memory", cudaHostAlloc(&part.memory, kPart, cudaHostAllocDefault));
      check("page-locked memory", cudaEventCreateWithFlags(&part.free, cudaEventDisableTiming));
    }
  }
  ~Staging() {
    for (Part& part : parts_) {
      cudaEventDestroy(part.free);
      cudaFreeHost(part.memory);
    }
  }
  Part& next() { return parts_[next_++ % kParts]; }

  std::mutex mutex_;
  Part parts_[kParts];
  std::size_t next_ = 0;
};

}  // namespace

namespace {
thread_local cudaStream_t in_place_of_the_one = nullptr;
}
OnStream::OnStream(cudaStream_t stream) : before_(std::exchange(in_place_of_the_one, stream)) {}
OnStream::~OnStream() { in_place_of_the_one = before_; }

cudaStream_t stream() {
  if (in_place_of_the_one) return in_place_of_the_one;
  static const cudaStream_t one = [] {
    // Read when cuBLAS makes its first handle: one fixed workspace, so that its sums are cut the same in every run.
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
    cudaStream_t made = nullptr;
    check("the first call of CUDA", cudaSetDevice(0));
    check("the first call of CUDA", cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    return made;
  }();
  return one;
}

void check(std::string_view op, cudaError_t result) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // said once
  if (result == cudaErrorMemoryAllocation)
    fail<OutOfMemory>(op, ": out of memory on device cuda; lower batch_size or seq_len");
  fail<DeviceError>(op, ": CUDA says: ", cudaGetErrorString(result), " (", cudaGetErrorName(result), ")");
}

int attribute(std::string_view op, cudaDeviceAttr which) {
  int value = 0;
  check(op, cudaDeviceGetAttribute(&value, which, 0));
  return value;
}

void check_launch(std::string_view op) {
  static const bool waits = [] {
    const char* value = std::getenv("SINKHORN_CUDA_WAIT");
    return value && std::string_view(value) == "1";
  }();
  check(op, cudaGetLastError());
  if (waits) check(op, cudaStreamSynchronize(stream()));
}

BadIndex* bad_index() {
  struct Report {
    Report() {
      void* memory = nullptr;
      stream();
      check("page-locked memory", cudaHostAlloc(&memory, sizeof(BadIndex), cudaHostAllocMapped));
      place = new (memory) BadIndex{};
    }
    ~Report() { cudaFreeHost(place); }
    BadIndex* place = nullptr;
  };
  static const Report report;
  return report.place;
}

namespace {
std::atomic<std::int64_t> waits_so_far = 0, nanoseconds_waited = 0;
}
Waits waits() { return {waits_so_far, 1e-6 * double(nanoseconds_waited)}; }

void wait() {
  using Clock = std::chrono::steady_clock;
  Graph::require_not_recording("waiting for the device");
  const Clock::time_point start = Clock::now();
  check("waiting for the device", cudaStreamSynchronize(stream()));
  ++waits_so_far;
  nanoseconds_waited += std::chrono::nanoseconds(Clock::now() - start).count();
  const BadIndex found = std::exchange(*bad_index(), {});
  if (found.what) fail(found.what, " ", found.value, " is outside ", found.low, " .. ", found.end - 1);
}

template <class T>
T read(const T* element) {
  T value;
  ++Memory::transfers().downloads;
  Memory::download(Cuda{}, reinterpret_cast<const std::byte*>(element), reinterpret_cast<std::byte*>(&value),
                   sizeof(T));
  return value;
}
template double read(const double*);
template std::int32_t read(const std::int32_t*);

void clear(void* block, std::size_t bytes) {
  if (bytes > 0) check("clear", cudaMemsetAsync(block, 0, bytes, stream()));
}

}  // namespace cuda

// The pool keeps what it once has, so this is rare.
void* Memory::allocate(Cuda, std::size_t bytes) {
  void* block = nullptr;
  cuda::stream();
  const cudaError_t result = cudaMalloc(&block, bytes);
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  cuda::check("memory", result);
  return block;
}
void Memory::release(Cuda, void* block) { cudaFree(block); }  // at exit the driver may be gone, which is no error
void Memory::claim(Cuda, void*, std::size_t) {}

void Memory::upload(Cuda, const std::byte* host, std::byte* device, std::size_t bytes) {
  Graph::require_not_recording("upload");
  cuda::Staging::the().upload(host, device, bytes);
}
void Memory::download(Cuda, const std::byte* device, std::byte* host, std::size_t bytes) {
  Graph::require_not_recording("download");
  cuda::Staging::the().download(device, host, bytes);
  cuda::wait();
}
void Memory::copy(Cuda, const std::byte* from, std::byte* to, std::size_t bytes) {
  if (bytes > 0) cuda::check("copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda::stream()));
}

}  // namespace sinkhorn
