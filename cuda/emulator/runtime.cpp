#include "cuda/runtime.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <utility>

#include "autograd/graph.h"
#include "autograd/memory.h"
#include "cuda/emulator/arena.h"
#include "cuda/emulator/emulator.h"

namespace sinkhorn {
using emulator::detail::on_host;
using emulator::detail::run_or_record;

void* Memory::allocate(Cuda, std::size_t bytes) { return emulator::allocate(bytes); }
void Memory::release(Cuda, void* block) { emulator::release(block); }
void Memory::claim(Cuda, void* block, std::size_t bytes) { emulator::claim(block, bytes); }
void Memory::upload(Cuda, const std::byte* from, std::byte* device, std::size_t bytes) {
  Graph::require_not_recording("upload");
  std::copy_n(from, bytes, on_host(device));
}
void Memory::download(Cuda, const std::byte* device, std::byte* into, std::size_t bytes) {
  cuda::wait();
  std::copy_n(on_host(device), bytes, into);
}
void Memory::copy(Cuda, const std::byte* from, std::byte* to, std::size_t bytes) {
  run_or_record([=] { std::copy_n(on_host(from), bytes, on_host(to)); });
}

namespace cuda {

BadIndex* bad_index() {
  static BadIndex report{};
  return &report;
}

namespace {
std::atomic<std::int64_t> waits_so_far = 0;
}
Waits waits() { return {waits_so_far, 0}; }  // kernels have run when their launch returns

void wait() {
  Graph::require_not_recording("waiting for the device");
  ++waits_so_far;
  const BadIndex found = std::exchange(*bad_index(), {});
  if (found.what) fail(found.what, " ", found.value, " is outside ", found.low, " .. ", found.end - 1);
}

template <class T>
T read(const T* element) {
  ++Memory::transfers().downloads;
  wait();
  return *on_host(element);
}
template double read(const double*);
template std::int32_t read(const std::int32_t*);

void clear(void* block, std::size_t bytes) {
  run_or_record([=] { std::fill_n(on_host(static_cast<std::byte*>(block)), bytes, std::byte{0}); });
}

void sort_positions(std::int64_t count, std::int32_t, const std::int32_t* keys, std::int32_t* sorted,
                    std::int64_t* order) {
  run_or_record([=] {
    const std::int32_t* key = on_host(keys);
    std::int64_t* position = on_host(order);
    std::iota(position, position + count, std::int64_t(0));
    std::stable_sort(position, position + count, [=](std::int64_t a, std::int64_t b) { return key[a] < key[b]; });
    std::transform(position, position + count, on_host(sorted), [=](std::int64_t i) { return key[i]; });
  });
}

}  // namespace cuda
}  // namespace sinkhorn
