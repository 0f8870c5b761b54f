#include "autograd/ops/movement.h"

#include <cstring>

#include "autograd/cpu/strided.h"

namespace sinkhorn::kernels {

void CopyBlocks::forward(Cpu, std::int64_t count, std::int64_t bytes, const std::byte* from, std::int64_t from_pitch,
                         std::byte* to, std::int64_t to_pitch) {
  if (bytes == 0) return;
  // A long block is cut too, so that a single one is shared by the threads.
  constexpr std::int64_t kPiece = 1 << 17;
  const std::int64_t pieces = (bytes + kPiece - 1) / kPiece;
  parallel_for(count * pieces, std::max<std::int64_t>(kPiece / bytes, 1), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t block = i / pieces, start = i % pieces * kPiece;
      std::memcpy(to + block * to_pitch + start, from + block * from_pitch + start, std::min(kPiece, bytes - start));
    }
  });
}

template <class T>
void AddBlocks<T>::forward(Cpu, std::int64_t count, std::int64_t size, const T* from, T* to, std::int64_t pitch) {
  parallel_for(count, grain_for(size), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block)
      for (std::int64_t i = 0; i < size; ++i) {
        T& y = to[block * pitch + i];
        y = Real<T>(y) + Real<T>(from[block * size + i]);
      }
  });
}

template <class T>
void Gather<T>::forward(Cpu, const StridedLoop<1>& loop, const T* x, T* y) {
  cpu::for_runs(loop, [=](std::int64_t i, const auto& at, std::int64_t n, const auto& steps) {
    const T* const from = x + at[0];
    if (steps[0] == 1) {
      std::copy_n(from, n, y + i);
    } else if (steps[0] == 0) {
      std::fill_n(y + i, n, *from);
    } else {
      for (std::int64_t j = 0; j < n; ++j) y[i + j] = from[j * steps[0]];
    }
  });
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
