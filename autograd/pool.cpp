#include "autograd/pool.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace sinkhorn {
namespace {

constexpr std::size_t kAlignment = 64;

// Eight classes per power of two: at most an eighth is wasted, and shapes that differ a little share buffers.
std::size_t size_class(std::size_t bytes) {
  const std::size_t step = std::max(kAlignment, std::bit_floor(std::max<std::size_t>(bytes, 1)) / 8);
  return (std::max<std::size_t>(bytes, 1) + step - 1) / step * step;
}

/// Memory from the system, or null. Linux promises more than it has and later kills who uses it, so large requests are
/// compared with what there is.
void* system_allocate(std::size_t size) {
  constexpr std::size_t large = 1 << 20;
  if (size >= large && size > available_memory()) return nullptr;
  return std::aligned_alloc(kAlignment, size);
}

}  // namespace

std::size_t available_memory() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  std::size_t kib = 0;
  while (file >> name >> kib) {
    if (name == "MemAvailable:") return kib * 1024;
    file.ignore(64, '\n');
  }
  return std::numeric_limits<std::size_t>::max();
}

struct Pool::State {
  std::mutex mutex;
  std::map<std::size_t, std::vector<void*>> free;
  PoolStats stats;

  void release() {
    for (auto& [size, buffers] : free) {
      for (void* buffer : buffers) std::free(buffer);
      stats.reserved -= size * buffers.size();
    }
    free.clear();
  }
  ~State() { release(); }
};

Pool::Pool() : state_(std::make_shared<State>()) {}

Pool& Pool::of(Device device) {
  if (device != Device::cpu)
    fail<DeviceError>("pool: this build has no memory on device ", device, "; use --device cpu");
  static Pool cpu;
  return cpu;
}

std::shared_ptr<std::byte> Pool::allocate(std::size_t bytes) {
  if (bytes > (std::size_t(1) << 62)) fail<OutOfMemory>("out of memory: ", bytes, " bytes asked");
  const std::size_t size = size_class(bytes);
  std::lock_guard lock(state_->mutex);
  PoolStats& stats = state_->stats;
  void* buffer = nullptr;
  if (auto list = state_->free.find(size); list != state_->free.end() && !list->second.empty()) {
    buffer = list->second.back();
    list->second.pop_back();
  } else {
    buffer = system_allocate(size);
    if (!buffer) {
      state_->release();
      buffer = system_allocate(size);
    }
    if (!buffer)
      fail<OutOfMemory>("out of memory: ", size, " bytes asked, ", stats.in_use,
                        " in use; lower batch_size or seq_len, raise ff_chunks, or set reversible");
    stats.reserved += size;
    ++stats.system_allocations;
  }
  stats.in_use += size;
  stats.peak = std::max(stats.peak, stats.in_use);
  auto give_back = [state = state_, size](std::byte* freed) {
    std::lock_guard guard(state->mutex);
    state->free[size].push_back(freed);
    state->stats.in_use -= size;
  };
  return {static_cast<std::byte*>(buffer), give_back};
}

PoolStats Pool::stats() const {
  std::lock_guard lock(state_->mutex);
  return state_->stats;
}

void Pool::reset_peak() {
  std::lock_guard lock(state_->mutex);
  state_->stats.peak = state_->stats.in_use;
}

void Pool::release() {
  std::lock_guard lock(state_->mutex);
  state_->release();
}

}  // namespace sinkhorn
