#include "cuda/emulator/arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>

#include "cuda/emulator/emulator.h"

namespace sinkhorn::emulator {
namespace {

// Device memory: one stretch of memory mapped at two places, of which tensors know the one that nobody may touch.
class Arena {
 public:
  Arena() {
    const int file = memfd_create("sinkhorn-emulated-gpu", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, off_t(kBytes)) != 0) fail<DeviceError>("emulator: no memory for the device");
    void* device = mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void* real = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    close(file);
    if (device == MAP_FAILED || real == MAP_FAILED) fail<DeviceError>("emulator: no addresses for the device's memory");
    device_ = static_cast<std::byte*>(device);
    begin_ = reinterpret_cast<std::uintptr_t>(device);
    detail::shift = std::ptrdiff_t(reinterpret_cast<std::uintptr_t>(real) - begin_);
    free_[begin_] = begin_ + kBytes;
  }

  static Arena& the() {
    static Arena* arena = new Arena;  // outlives every tensor
    return *arena;
  }

  void* allocate(std::size_t bytes) {
    std::lock_guard lock(mutex_);
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes > limit_ || lent_ > limit_ - bytes) return nullptr;
    for (auto& [begin, end] : free_) {
      if (end - begin < bytes) continue;
      const std::uintptr_t block = begin, rest = end;
      free_.erase(block);
      if (block + bytes < rest) free_[block + bytes] = rest;
      blocks_[block] = bytes;
      lent_ += bytes;
      return device_ + (block - begin_);
    }
    return nullptr;
  }

  void release(void* pointer) {
    std::lock_guard lock(mutex_);
    const auto block = reinterpret_cast<std::uintptr_t>(pointer);
    const auto found = blocks_.find(block);
    if (found == blocks_.end()) fail<DeviceError>("emulator: a block is given back that was never lent");
    std::uintptr_t end = block + found->second;
    lent_ -= found->second;
    blocks_.erase(found);
    claimed_.erase(block);
    if (const auto next = free_.find(end); next != free_.end()) {
      end = next->second;
      free_.erase(next);
    }
    auto before = free_.lower_bound(block);
    if (before != free_.begin() && (--before)->second == block)
      before->second = end;
    else
      free_[block] = end;
  }

  void claim(void* pointer, std::size_t bytes) {
    std::lock_guard lock(mutex_);
    const auto block = reinterpret_cast<std::uintptr_t>(pointer);
    if (bytes == 0)
      claimed_.erase(block);
    else
      claimed_[block] = block + bytes;
  }

  detail::Extent extent_of(const void* pointer) {
    std::lock_guard lock(mutex_);
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    auto found = claimed_.upper_bound(address);
    if (found != claimed_.begin() && address <= (--found)->second) return {found->first, found->second};
    // An empty tensor's buffer claims nothing; no element of it can be touched.
    if (address >= begin_ && address < begin_ + kBytes) return {address, address};
    fail<KernelFault>("emulator: a kernel was given host memory; move the tensor with to(cuda)");
  }

  void set_limit(std::size_t bytes) { limit_ = bytes; }

 private:
  static constexpr std::size_t kBytes = std::size_t(16) << 30, kAlignment = 256;
  std::mutex mutex_;
  std::byte* device_ = nullptr;
  std::uintptr_t begin_ = 0;  // its address
  std::size_t limit_ = std::size_t(4) << 30, lent_ = 0;
  std::map<std::uintptr_t, std::uintptr_t> free_, claimed_;  // begin -> end
  std::map<std::uintptr_t, std::size_t> blocks_;
};

}  // namespace

void set_memory(std::size_t bytes) { Arena::the().set_limit(bytes); }

void* allocate(std::size_t bytes) { return Arena::the().allocate(bytes); }
void release(void* block) { Arena::the().release(block); }
void claim(void* block, std::size_t bytes) { Arena::the().claim(block, bytes); }

namespace detail {
std::ptrdiff_t shift = 0;
Extent extent_of(const void* address) { return Arena::the().extent_of(address); }
}  // namespace detail

}  // namespace sinkhorn::emulator
