#include "autograd/ops/movement.h"
#include "cuda/strided.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// Word i of the blocks; pitches and size in words.
template <class Word>
struct CopiedWord {
  std::int64_t size, from_pitch, to_pitch;
  Global<const Word> from;
  Global<Word> to;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t block = quotient(i, size), word = i - block * size;
    to[block * to_pitch + word] = from[block * from_pitch + word];
  }
};

template <class T>
struct AddedBlocks {
  std::int64_t size, pitch;
  Global<const T> from;
  Global<T> to;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t block = quotient(i, size), at = block * pitch + i - block * size;
    const T before = to[at], term = from[i];
    to[at] = Real<T>(before) + Real<T>(term);
  }
};

template <class T>
struct Gathered {
  StridedLoop<1> loop;
  Global<const T> x;
  Global<T> y;
  template <int N>
  SINKHORN_DEVICE void operator()(std::int64_t i, Width<N>) const {
    const std::int64_t stride = loop.rank > 0 ? loop.strides[0][loop.rank - 1] : 1;
    y.store(i, load_along<N>(x, offsets(loop, i).at[0], stride));
  }
};

struct alignas(16) Word16 {
  std::uint64_t halves[2];
};

}  // namespace

// In the largest words that everything is a multiple of.
void CopyBlocks::forward(Cuda, std::int64_t count, std::int64_t bytes, const std::byte* from, std::int64_t from_pitch,
                         std::byte* to, std::int64_t to_pitch) {
  const auto copy = [&]<class Word>(Word) {
    constexpr auto width = std::int64_t(sizeof(Word));
    const auto address = reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to);
    if ((std::uint64_t(address) | std::uint64_t(bytes | from_pitch | to_pitch)) % width != 0) return false;
    for_each("copy", count * (bytes / width),
             CopiedWord<Word>{bytes / width, from_pitch / width, to_pitch / width, reinterpret_cast<const Word*>(from),
                              reinterpret_cast<Word*>(to)});
    return true;
  };
  copy(Word16{}) || copy(std::uint64_t{}) || copy(std::uint32_t{}) || copy(std::uint16_t{}) || copy(std::uint8_t{});
}

template <class T>
void AddBlocks<T>::forward(Cuda, std::int64_t count, std::int64_t size, const T* from, T* to, std::int64_t pitch) {
  for_each("add_blocks", count * size, AddedBlocks<T>{size, pitch, from, to});
}

template <class T>
void Gather<T>::forward(Cuda, const StridedLoop<1>& loop, const T* x, T* y) {
  constexpr int N = pack_width<T>();
  for_each_pack<N>("gather", loop.count, has_packs<N>(loop) && is_aligned<N>(x) && is_aligned<N>(y),
                   Gathered<T>{loop, x, y});
}

template struct AddBlocks<float>;
template struct AddBlocks<double>;
template struct AddBlocks<bf16>;

template struct Gather<float>;
template struct Gather<double>;
template struct Gather<bf16>;
template struct Gather<std::int32_t>;
template struct Gather<bool>;

}  // namespace sinkhorn::kernels
