#include "autograd/pool.h"

#include <algorithm>
#include <bit>
#include <fstream>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "autograd/memory.h"

namespace sinkhorn {
namespace {

constexpr std::size_t kAlignment = 64;

// What stands before and behind a guarded buffer, and in it at first: NaN in every floating type.
constexpr std::size_t kGuard = 256;
constexpr std::byte kPattern{0xff};

template <class Use>
auto on(Device device, Use use) {
  return device == Device::cpu ? use(Cpu{}) : use(Cuda{});
}

}  // namespace

// Eight classes per power of two.
std::size_t pooled_bytes(std::size_t bytes) {
  const std::size_t step = std::max(kAlignment, std::bit_floor(std::max<std::size_t>(bytes, 1)) / 8);
  return (std::max<std::size_t>(bytes, 1) + step - 1) / step * step;
}

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
  const Device device;
  std::mutex mutex;
  std::map<std::size_t, std::vector<std::byte*>> free;
  PoolStats stats;
  bool guarded = false;

  explicit State(Device device) : device(device) {}
  ~State() { release(); }

  void release() {
    for (auto& [size, blocks] : free) {
      for (std::byte* block : blocks) on(device, [&](auto space) { Memory::release(space, block); });
      stats.reserved -= size * blocks.size();
    }
    free.clear();
  }
  std::byte* from_device(std::size_t size) const {
    return static_cast<std::byte*>(on(device, [&](auto space) { return Memory::allocate(space, size); }));
  }
  std::byte* take(std::size_t size) {
    if (auto list = free.find(size); list != free.end() && !list->second.empty()) {
      std::byte* block = list->second.back();
      list->second.pop_back();
      return block;
    }
    std::byte* block = from_device(size);
    if (!block) {
      release();
      block = from_device(size);
    }
    if (!block)
      fail<OutOfMemory>("out of memory on device ", device, ": ", size, " bytes asked, ", stats.in_use,
                        " in use; lower batch_size or seq_len, raise ff_chunks or head_groups, or set reversible");
    stats.reserved += size;
    ++stats.system_allocations;
    return block;
  }
  void give_back(std::byte* block, std::size_t size) {
    std::lock_guard lock(mutex);
    note_return(block, size);
    free[size].push_back(block);
  }
  void note_return(std::byte* block, std::size_t size) {
    on(device, [&](auto space) { Memory::claim(space, block, 0); });
    stats.in_use -= size;
  }
  void paint(std::byte* block, std::size_t bytes) const {
    const std::vector<std::byte> pattern(bytes, kPattern);
    on(device, [&](auto space) { Memory::upload(space, pattern.data(), block, bytes); });
  }
  bool is_painted(const std::byte* guard) const {
    std::vector<std::byte> found(kGuard);
    on(device, [&](auto space) { Memory::download(space, guard, found.data(), kGuard); });
    return std::all_of(found.begin(), found.end(), [](std::byte b) { return b == kPattern; });
  }
};

// Under the pool's lock.
struct Arena::State {
  explicit State(std::shared_ptr<Pool::State> pool) : pool(std::move(pool)) {}
  ~State() {
    std::lock_guard lock(pool->mutex);
    for (auto& [size, blocks] : free) {
      std::vector<std::byte*>& there = pool->free[size];
      there.insert(there.end(), blocks.begin(), blocks.end());
    }
  }
  std::byte* take(std::size_t size) {
    std::vector<std::byte*>& list = free[size];
    std::byte* const block = list.empty() ? pool->take(size) : list.back();
    if (!list.empty()) list.pop_back();
    live += size;
    peak = std::max(peak, live);
    return block;
  }

  void give_back(std::byte* block, std::size_t size) {
    std::lock_guard lock(pool->mutex);
    pool->note_return(block, size);
    free[size].push_back(block);
    live -= size;
  }

  const std::shared_ptr<Pool::State> pool;
  std::map<std::size_t, std::vector<std::byte*>> free;
  std::size_t live = 0, peak = 0;

  static thread_local std::shared_ptr<State> in_use;  // by this thread
};
thread_local std::shared_ptr<Arena::State> Arena::State::in_use;

Arena::Arena(Device device) : state_(std::make_shared<State>(Pool::of(device).state_)) {}
Arena::~Arena() = default;

Arena::Use::Use(const Arena& arena) {
  if (State::in_use) fail("arena: another one is in use");
  State::in_use = arena.state_;
}
Arena::Use::~Use() { State::in_use.reset(); }
bool Arena::is_in_use() { return bool(State::in_use); }

std::size_t Arena::peak() const {
  std::lock_guard lock(state_->pool->mutex);
  return state_->peak;
}
void Arena::reset_peak() const {
  std::lock_guard lock(state_->pool->mutex);
  state_->peak = state_->live;
}
void Arena::repeat(std::size_t peak) const {
  std::lock_guard lock(state_->pool->mutex);
  PoolStats& stats = state_->pool->stats;
  stats.peak = std::max(stats.peak, stats.in_use - state_->live + std::max(state_->live, peak));
}

Pool::Pool(Device device) : state_(std::make_shared<State>(device)) {}

Pool& Pool::of(Device device) {
  static Pool cpu(Device::cpu), cuda(Device::cuda);
  return device == Device::cpu ? cpu : cuda;
}

std::shared_ptr<std::byte> Pool::allocate(std::size_t bytes) {
  if (bytes > (std::size_t(1) << 62)) fail<OutOfMemory>("out of memory: ", bytes, " bytes asked");
  const std::shared_ptr<Arena::State> arena =
      Arena::State::in_use && Arena::State::in_use->pool == state_ ? Arena::State::in_use : nullptr;
  std::lock_guard lock(state_->mutex);
  const bool guarded = state_->guarded && !arena;
  const std::size_t used = guarded ? bytes + 2 * kGuard : bytes, size = pooled_bytes(used);
  std::byte* const block = arena ? arena->take(size) : state_->take(size);
  PoolStats& stats = state_->stats;
  stats.in_use += size;
  stats.peak = std::max(stats.peak, stats.in_use);
  on(state_->device, [&](auto space) { Memory::claim(space, block, used); });
  if (arena) return {block, [arena, size](std::byte* freed) { arena->give_back(freed, size); }};
  if (!guarded) return {block, [state = state_, size](std::byte* freed) { state->give_back(freed, size); }};
  state_->paint(block, used);
  return {block + kGuard, [state = state_, size, bytes](std::byte* freed) {
            std::byte* const start = freed - kGuard;
            if (!state->is_painted(start) || !state->is_painted(freed + bytes)) ++state->stats.damaged;
            state->give_back(start, size);
          }};
}

void Pool::guard(bool on) {
  std::lock_guard lock(state_->mutex);
  state_->guarded = on;
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
