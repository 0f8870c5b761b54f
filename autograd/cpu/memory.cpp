#include "autograd/memory.h"

#include <algorithm>
#include <cstdlib>
#include <tuple>

#include "autograd/parallel.h"
#include "autograd/pool.h"

namespace sinkhorn {

// Linux promises more than it has and later kills who uses it, so large requests are compared with what there is.
void* Memory::allocate(Cpu, std::size_t bytes) {
  constexpr std::size_t large = 1 << 20, alignment = 256;
  if (bytes >= large && bytes > available_memory()) return nullptr;
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
Memory::Transfers& Memory::transfers() {
  static Transfers so_far;
  return so_far;
}
void Memory::release(Cpu, void* block) { std::free(block); }
void Memory::claim(Cpu, void*, std::size_t) {}

void Memory::upload(Cpu, const std::byte* host, std::byte* device, std::size_t bytes) {
  std::copy_n(host, bytes, device);
}
void Memory::download(Cpu, const std::byte* device, std::byte* host, std::size_t bytes) {
  std::copy_n(device, bytes, host);
}
void Memory::copy(Cpu, const std::byte* from, std::byte* to, std::size_t bytes) { std::copy_n(from, bytes, to); }

namespace kernels {

template <class T>
void Fill<T>::forward(Cpu, std::int64_t count, T value, T* y) {
  std::fill_n(y, count, value);
}

template <class From, class To>
void Convert<From, To>::forward(Cpu, std::int64_t count, const From* x, To* y) {
  parallel_for(count, grain_for(1), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) y[i] = static_cast<To>(x[i]);
  });
}

template <class T, class Term>
void Accumulate<T, Term>::forward(Cpu, std::int64_t count, const Term* term, T* into) {
  parallel_for(count, grain_for(1), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) into[i] = Real<T>(into[i]) + Real<T>(term[i]);
  });
}

template struct Accumulate<float>;
template struct Accumulate<double>;
template struct Accumulate<bf16>;
template struct Accumulate<float, bf16>;

// Names the kernels of every type, so that they are compiled here for the engine to link with.
template <class From, class... To>
constexpr auto conversions(TypeList<To...>) {
  return std::tuple(static_cast<void (*)(Cpu, std::int64_t, const From*, To*)>(&Convert<From, To>::forward)...);
}
template <class... T>
constexpr auto compiled(TypeList<T...> all) {
  return std::tuple(conversions<T>(all)..., static_cast<void (*)(Cpu, std::int64_t, T, T*)>(&Fill<T>::forward)...);
}
extern const auto kCompiledBuffers = compiled(TypeList<float, double, bf16, std::int32_t, bool>{});

}  // namespace kernels
}  // namespace sinkhorn
