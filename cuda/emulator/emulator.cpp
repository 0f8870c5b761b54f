#include "cuda/emulator/emulator.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cuda/emulator/fiber.h"
#include "cuda/launch.h"

namespace sinkhorn::emulator {
namespace {

using cuda::kWarp;

std::mutex launching;  // one stream: launches of several threads come one after the other
std::string running_op;
std::int64_t running_index = -1;  // of for_each; -1 in a grid

// What the lanes of one warp asked for: the sectors of each lane's first access, of each lane's second, ...
class Requests {
 public:
  void begin() {
    sectors_.clear();
    taken_.fill(0);
  }
  void touch(int lane, std::uintptr_t at, std::size_t bytes) {
    const std::size_t request = taken_[std::size_t(lane)]++;
    if (request >= sectors_.size()) sectors_.resize(request + 1);
    std::vector<std::uintptr_t>& seen = sectors_[request];
    for (std::uintptr_t sector = at / kSector; sector <= (at + bytes - 1) / kSector; ++sector) {
      if (std::find(seen.begin(), seen.end(), sector) != seen.end()) continue;
      seen.push_back(sector);
      ++detail::now.sectors;
    }
  }

 private:
  static constexpr std::uintptr_t kSector = 32;
  std::vector<std::vector<std::uintptr_t>> sectors_;
  std::array<std::size_t, kWarp> taken_{};
};

// The block at work.
class Block {
 public:
  void run(std::int64_t block, int threads, std::size_t shared_bytes, const void* kernel,
           void (*body)(const void*, std::int64_t, int)) {
    kernel_ = kernel;
    body_ = body;
    block_ = block;
    while (int(threads_.size()) < threads) threads_.push_back(std::make_unique<State>(*this, int(threads_.size())));
    count_ = live_ = threads;
    shared_.resize(shared_bytes);
    std::fill(shared_.begin(), shared_.end(), std::byte{0xff});  // NaN until written
    words_.assign((shared_bytes + 3) / 4, {});
    phase_ = 1;
    requests_.resize(std::size_t(threads / kWarp));
    for (Requests& warp : requests_) warp.begin();
    for (int i = 0; i < count_; ++i) {
      State& thread = *threads_[i];
      thread.waits = Waits::no;
      thread.shuffles = 0;
      thread.fiber.begin([](void* of) { static_cast<State*>(of)->run(); }, &thread);
    }
    while (live_ > 0) advance();
    current_ = nullptr;
  }

  void sync(const char* file, int line) {
    State& me = *current_;
    me.file = file;
    me.line = line;
    wait(Waits::barrier);
  }

  void exchange(const void* give, void* take, std::size_t bytes, int from_lane) {
    State& me = *current_;
    const int first = me.index / kWarp * kWarp, slot = me.shuffles++ % 2;
    std::memcpy(me.given[slot], give, bytes);
    // Two slots: no lane gives for the next shuffle but one before all have taken of this one.
    int here = 0;
    for (int lane = first; lane < first + kWarp; ++lane)
      here += lane == me.index || (threads_[lane]->waits == Waits::shuffle && threads_[lane]->shuffles == me.shuffles);
    if (here == kWarp) {
      for (int lane = first; lane < first + kWarp; ++lane) threads_[lane]->waits = Waits::no;
      ++detail::now.shuffles;
    } else {
      wait(Waits::shuffle);
    }
    std::memcpy(take, threads_[first + from_lane]->given[slot], bytes);
  }

  void touch_sectors(std::uintptr_t at, std::size_t bytes) {
    if (running_index >= 0) {  // a plain loop: its indices are the lanes of one warp after the other
      const int lane = int(running_index % kWarp);
      requests_.resize(1);
      if (running_index / kWarp != flat_warp_) requests_[0].begin();
      flat_warp_ = running_index / kWarp;
      requests_[0].touch(lane, at, bytes);
    } else if (current_) {
      requests_[std::size_t(current_->index / kWarp)].touch(current_->index % kWarp, at, bytes);
    }
  }
  void begin_flat() { flat_warp_ = -1; }

  std::byte* shared_memory(std::int64_t offset, std::int64_t bytes) {
    if (offset + bytes > std::int64_t(shared_.size()))
      fault("asks for ", offset + bytes, " bytes of shared memory, launched with ", shared_.size());
    return shared_.data() + offset;
  }

  void touch(const std::byte* at, std::size_t bytes, bool writes) {
    Traffic& traffic = writes ? detail::now.shared_writes : detail::now.shared_reads;
    ++traffic.accesses;
    traffic.bytes += std::int64_t(bytes);
    const std::size_t begin = std::size_t(at - shared_.data()) / 4;
    for (std::size_t w = begin; w < begin + bytes / 4; ++w) {
      Word& word = words_[w];
      const int me = current_->index;
      const bool written = word.write_phase == phase_ && word.writer != me;
      const bool read = writes && word.read_phase == phase_ && word.reader != me;
      if (written || read)
        fault(writes ? "writes" : "reads", " shared word ", w, " that ",
              !written && word.reader == kSeveral ? "others"
                                                  : "thread " + std::to_string(written ? word.writer : word.reader),
              written ? " wrote" : " read", " since the last barrier: a race");
      if (writes) {
        word.write_phase = phase_;
        word.writer = me;
      } else {
        word.reader = word.read_phase == phase_ && word.reader != me ? kSeveral : me;
        word.read_phase = phase_;
      }
    }
  }

  /// Throws, naming op, block and thread; without a running thread, the op alone.
  template <class... Parts>
  [[noreturn]] void fault(const Parts&... parts) const {
    if (running_index >= 0) fail<KernelFault>(running_op, ": index ", running_index, " ", parts...);
    if (current_) fail<KernelFault>(running_op, ": block ", block_, ", thread ", current_->index, " ", parts...);
    fail<KernelFault>(running_op, ": a kernel argument ", parts...);
  }

 private:
  enum class Waits { no, barrier, shuffle, ended };
  static constexpr int kSeveral = -1;

  struct State {
    State(Block& block, int index) : block(block), index(index) {}
    void run() {
      try {
        block.body_(block.kernel_, block.block_, index);
      } catch (...) {
        block.error_ = std::current_exception();
      }
    }
    Block& block;
    const int index;
    Fiber fiber;
    Waits waits = Waits::no;
    int shuffles = 0;
    alignas(16) std::byte given[2][16];
    const char* file = "";
    int line = 0;
  };
  struct Word {
    std::int64_t write_phase = 0, read_phase = 0;
    int writer = 0, reader = 0;
  };

  void wait(Waits what) {
    current_->waits = what;
    current_->fiber.suspend();
  }

  // Lets every thread that does not wait run on; opens the barrier when all that is left waits there.
  void advance() {
    bool any = false;
    for (int i = 0; i < count_; ++i) {
      State& thread = *threads_[i];
      if (thread.waits != Waits::no) continue;
      any = true;
      current_ = &thread;
      if (thread.fiber.resume()) {
        thread.waits = Waits::ended;
        --live_;
      }
      if (error_) {
        threads_.clear();  // their bodies will never return
        current_ = nullptr;
        std::rethrow_exception(std::exchange(error_, nullptr));
      }
    }
    if (any || live_ == 0) return;
    const State& first = *threads_[0];
    const auto differs = [&](const std::unique_ptr<State>& other) {
      return other->waits != first.waits || other->line != first.line || std::strcmp(other->file, first.file) != 0;
    };
    const auto other = std::find_if(threads_.begin(), threads_.begin() + count_, differs);
    if (other != threads_.begin() + count_ || first.waits != Waits::barrier) {
      const State& stray = **(other == threads_.begin() + count_ ? threads_.begin() : other);
      const std::string message = "block " + std::to_string(block_) + ": thread 0 " + whereabouts(first) + ", thread " +
                                  std::to_string(stray.index) + " " + whereabouts(stray) +
                                  ": not all threads reach one barrier";
      threads_.clear();
      current_ = nullptr;
      fail<KernelFault>(running_op, ": ", message);
    }
    for (int i = 0; i < count_; ++i) threads_[i]->waits = Waits::no;
    ++phase_;
    ++detail::now.barriers;
  }

  static std::string whereabouts(const State& thread) {
    if (thread.waits == Waits::ended) return "has ended";
    if (thread.waits == Waits::shuffle) return "waits for a shuffle";
    return "waits at the barrier in line " + std::to_string(thread.line);
  }

  const void* kernel_ = nullptr;
  void (*body_)(const void*, std::int64_t, int) = nullptr;
  std::int64_t block_ = 0;
  std::vector<std::unique_ptr<State>> threads_;
  int count_ = 0, live_ = 0;
  State* current_ = nullptr;
  std::exception_ptr error_;
  std::vector<std::byte> shared_;
  std::vector<Word> words_;
  std::int64_t phase_ = 1;
  std::vector<Requests> requests_;  // one a warp
  std::int64_t flat_warp_ = -1;
};

Block& running_block() {
  static Block block;
  return block;
}

}  // namespace

Counters counters() { return detail::now; }
void reset_counters() { detail::now = {}; }
void count_sectors(bool on) { detail::counts_sectors = on; }

namespace detail {

constinit thread_local Launches* recording = nullptr;
Counters now;
bool counts_sectors = false;

void outside_global(std::uintptr_t address, std::size_t bytes, Extent extent) {
  const auto distance = std::int64_t(address - extent.begin);
  running_block().fault("touches bytes ", distance, " .. ", distance + std::int64_t(bytes) - 1, " of a buffer of ",
                        extent.end - extent.begin, " bytes");
}
void misaligned(std::uintptr_t address, std::size_t alignment, Extent extent) {
  running_block().fault("touches a pack at byte ", address - extent.begin, " of a buffer, which is no multiple of ",
                        alignment);
}
void outside_shared(std::int64_t index, std::int64_t count) {
  running_block().fault("touches element ", index, " of ", count, " in shared memory");
}
void touch_sectors(const void* at, std::size_t bytes) {
  running_block().touch_sectors(reinterpret_cast<std::uintptr_t>(at), bytes);
}
std::byte* shared_memory(std::int64_t offset, std::int64_t bytes) {
  return running_block().shared_memory(offset, bytes);
}
void touch_shared(const std::byte* at, std::size_t bytes, bool writes) { running_block().touch(at, bytes, writes); }
void sync(const char* file, int line) { running_block().sync(file, line); }
void exchange(const void* give, void* take, std::size_t bytes, int from_lane) {
  running_block().exchange(give, take, bytes, from_lane);
}

void run_grid(std::string_view op, std::int64_t blocks, int threads, std::size_t shared_bytes, const void* kernel,
              void (*body)(const void*, std::int64_t, int)) {
  std::lock_guard lock(launching);
  running_op = op;
  running_index = -1;
  if (threads < kWarp || threads % kWarp != 0 || threads > cuda::kMaxThreads)
    fail<KernelFault>(op, ": ", threads, " threads per block; a block is a multiple of 32 of them, at most ",
                      cuda::kMaxThreads);
  ++now.launches;
  now.blocks += blocks;
  now.threads += blocks * threads;
  for (std::int64_t block = 0; block < blocks; ++block) running_block().run(block, threads, shared_bytes, kernel, body);
}

void count_flat(std::string_view op, std::int64_t count) {
  running_block().begin_flat();
  running_op = op;
  ++now.launches;
  now.threads += count;
  now.blocks += cuda::pieces(count, cuda::kMaxThreads);
}
void set_index(std::int64_t index) { running_index = index; }

}  // namespace detail
}  // namespace sinkhorn::emulator
