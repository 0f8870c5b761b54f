// Thread, Global, Shared, launch and for_each of cuda/launch.h on the emulated grid.
#pragma once
#include <cstring>
#include <string>
#include <type_traits>

#include "cuda/emulator/emulator.h"

#define SINKHORN_DEVICE

namespace sinkhorn::cuda {
inline namespace emulated {  // in a CUDA build, where lessons use the emulator too, other names than the GPU's

template <class T>
class Global {
 public:
  using Value = std::remove_const_t<T>;

  /// One element on the way from or into memory.
  class Element {
   public:
    explicit Element(T* at) : at_(at) {}
    Element(const Element&) = default;
    operator Value() const {
      count(emulator::detail::now.global_reads);
      if (emulator::detail::counts_sectors) emulator::detail::touch_sectors(at_, sizeof(T));
      return *at_;
    }
    Element& operator=(const Value& value) {
      count(emulator::detail::now.global_writes);
      if (emulator::detail::counts_sectors) emulator::detail::touch_sectors(at_, sizeof(T));
      *at_ = value;
      return *this;
    }
    // NOLINTNEXTLINE(bugprone-unhandled-self-assignment)
    Element& operator=(const Element& other) { return *this = Value(other); }

   private:
    static void count(emulator::Traffic& traffic) {
      ++traffic.accesses;
      traffic.bytes += std::int64_t(sizeof(T));
    }
    T* at_;
  };

  Global(T* pointer = nullptr) : pointer_(pointer) {
    if (pointer) extent_ = emulator::detail::extent_of(pointer);
  }
  template <class U>
  requires(std::is_same_v<const U, T>) Global(const Global<U>& other)
      : pointer_(other.pointer_), extent_(other.extent_) {}

  explicit operator bool() const { return pointer_ != nullptr; }
  Global operator+(std::int64_t offset) const {
    Global moved;
    moved.pointer_ = pointer_ + offset;
    moved.extent_ = extent_;
    return moved;
  }
  auto operator[](std::int64_t i) const {
    const Element element(checked<T>(i));
    if constexpr (std::is_const_v<T>)
      return Value(element);
    else
      return element;
  }

  template <int N>
  bool is_aligned() const {
    return cuda::is_aligned<N>(pointer_);
  }
  template <int N>
  Pack<Value, N> load(std::int64_t i) const {
    return typename Global<const Pack<Value, N>>::Element(checked<const Pack<Value, N>>(i));
  }
  template <int N>
  void store(std::int64_t i, const Pack<T, N>& pack) const {
    typename Global<Pack<T, N>>::Element(checked<Pack<T, N>>(i)) = pack;
  }

 private:
  template <class>
  friend class Global;

  // Where the host finds what begins at element i; a fault unless all of it lies in the buffer and is aligned.
  template <class Item>
  Item* checked(std::int64_t i) const {
    const auto at = reinterpret_cast<std::uintptr_t>(pointer_ + i);
    if (at < extent_.begin || at + sizeof(Item) > extent_.end)
      emulator::detail::outside_global(at, sizeof(Item), extent_);
    if (at % alignof(Item) != 0) emulator::detail::misaligned(at, alignof(Item), extent_);
    return emulator::detail::on_host(reinterpret_cast<Item*>(pointer_ + i));
  }

  T* pointer_;
  emulator::detail::Extent extent_;
};

/// Elements of 4 bytes or multiples, since races are watched word by word.
template <class T>
class Shared {
  static_assert(sizeof(T) % 4 == 0);

 public:
  class Element {
   public:
    explicit Element(T* at) : at_(at) {}
    Element(const Element&) = default;
    operator T() const {
      emulator::detail::touch_shared(reinterpret_cast<const std::byte*>(at_), sizeof(T), false);
      return *at_;
    }
    Element& operator=(const T& value) {
      emulator::detail::touch_shared(reinterpret_cast<const std::byte*>(at_), sizeof(T), true);
      *at_ = value;
      return *this;
    }
    Element& operator=(const Element& other) { return *this = T(other); }  // NOLINT(bugprone-unhandled-self-assignment)
    Element& operator+=(const T& term) { return *this = T(*this) + term; }

   private:
    T* at_;
  };

  Shared(T* memory, std::int64_t count) : memory_(memory), count_(count) {}
  Element operator[](std::int64_t i) const {
    if (i < 0 || i >= count_) emulator::detail::outside_shared(i, count_);
    return Element(memory_ + i);
  }

 private:
  T* memory_;
  std::int64_t count_;
};

class Thread {
 public:
  Thread(std::int64_t block, int index, int size) : block_(block), index_(index), size_(size) {}

  std::int64_t block() const { return block_; }
  int index() const { return index_; }
  int size() const { return size_; }
  int lane() const { return index_ % kWarp; }
  int warp() const { return index_ / kWarp; }
  int warps() const { return size_ / kWarp; }

  void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    emulator::detail::sync(file, line);
  }
  template <class T>
  T shuffle_xor(T value, int mask) const {
    static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
    T other;
    emulator::detail::exchange(&value, &other, sizeof(T), lane() ^ mask);
    return other;
  }
  template <class T>
  Shared<T> shared(std::int64_t count) {
    const std::int64_t bytes = (count * std::int64_t(sizeof(T)) + 15) / 16 * 16;
    auto* memory = reinterpret_cast<T*>(emulator::detail::shared_memory(shared_, bytes));
    shared_ += bytes;
    return {memory, count};
  }

 private:
  std::int64_t block_;
  int index_, size_;
  std::int64_t shared_ = 0;  // bytes handed out
};

template <class Kernel>
void launch(std::string_view op, std::int64_t blocks, int threads, std::size_t shared_bytes, const Kernel& kernel) {
  struct Work {
    Kernel kernel;
    int threads;
  };
  emulator::detail::run_or_record([name = std::string(op), blocks, shared_bytes, work = Work{kernel, threads}] {
    emulator::detail::run_grid(name, blocks, work.threads, shared_bytes, &work,
                               [](const void* of, std::int64_t block, int index) {
                                 const Work& mine = *static_cast<const Work*>(of);
                                 Thread thread(block, index, mine.threads);
                                 mine.kernel(thread);
                               });
  });
}

template <class F>
void for_each(std::string_view op, std::int64_t count, const F& f) {
  emulator::detail::run_or_record([name = std::string(op), count, f] {
    emulator::detail::count_flat(name, count);
    for (std::int64_t i = 0; i < count; ++i) {
      emulator::detail::set_index(i);
      f(i);
    }
  });
}

template <int N, class F>
void for_each_pack(std::string_view op, std::int64_t count, bool aligned, const F& f) {
  const std::int64_t packs = aligned ? count / N : 0, singles = count - packs * N;
  emulator::detail::run_or_record([name = std::string(op), packs, singles, f] {
    emulator::detail::count_flat(name, packs + singles);
    for (std::int64_t i = 0; i < packs; ++i) {
      emulator::detail::set_index(i);
      f(i * N, Width<N>{});
    }
    for (std::int64_t i = 0; i < singles; ++i) {
      emulator::detail::set_index(packs + i);
      f(packs * N + i, Width<1>{});
    }
  });
}

}  // namespace emulated
}  // namespace sinkhorn::cuda
