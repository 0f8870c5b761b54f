// An array in the emulated GPU's memory, for kernels that are run without tensors: in lessons, in any build.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cuda/emulator/arena.h"
#include "cuda/launch.h"

namespace sinkhorn::emulator {

/// Elements on the emulated device, copied there and back whole. Kernels take `on_device()`.
template <class T>
class Array {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit Array(const std::vector<T>& host) : count_(std::int64_t(host.size())) {
    const std::size_t bytes = host.size() * sizeof(T);
    memory_ = static_cast<T*>(allocate(std::max<std::size_t>(bytes, 1)));
    if (!memory_) fail<OutOfMemory>("emulator: no memory left for ", count_, " elements");
    claim(memory_, bytes);
    if (!host.empty()) std::copy_n(host.data(), host.size(), detail::on_host(memory_));
  }
  explicit Array(std::int64_t count, T value = {}) : Array(std::vector<T>(std::size_t(count), value)) {}
  ~Array() { release(memory_); }
  Array(const Array&) = delete;

  std::int64_t count() const { return count_; }
  cuda::Global<T> on_device() const { return memory_; }
  std::vector<T> to_host() const {
    const T* begin = detail::on_host(memory_);
    return std::vector<T>(begin, begin + count_);
  }

 private:
  T* memory_ = nullptr;
  std::int64_t count_ = 0;
};

}  // namespace sinkhorn::emulator
