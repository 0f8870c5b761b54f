// What lies under the kernels: memory to work in, sorting, and what a kernel reports about its input. The GPU's side is
// in cuda/gpu, the emulated one's in cuda/emulator.
#pragma once
#include <string_view>

#include "autograd/tensor.h"

namespace sinkhorn::cuda {

/// An uninitialised tensor on the device.
inline Tensor workspace(Shape shape, DType dtype) { return Tensor(shape, dtype, sinkhorn::Device::cuda); }

/// Waits until all that was asked of the device is done. A DeviceError if something failed, an Error if a kernel met a
/// bad index.
void wait();
/// How often the host has waited in this process, wherever, and how long in all. A training step should do it once.
struct Waits {
  std::int64_t count = 0;
  double milliseconds = 0;
};
Waits waits();

/// Copies one element to the host; waits.
template <class T>
T read(const T* element);

/// The first `bytes` of a block become 0.
void clear(void* block, std::size_t bytes);

/// What a kernel that meets an index outside its range says. It lies in memory that both sides see; the host looks at
/// it when it next waits, and raises the error: a kernel cannot, and to look at once would mean to wait after each.
struct BadIndex {
  const char* what;  // string of the host: "embedding: id"; null: nothing to report
  std::int64_t value, low, end;
};
BadIndex* bad_index();

/// order (count) i64: the positions 0 .. count-1 sorted by key, equal keys in order of position; sorted (count): their
/// keys. Keys lie in 0 .. end-1.
void sort_positions(std::int64_t count, std::int32_t end, const std::int32_t* keys, std::int32_t* sorted,
                    std::int64_t* order);

}  // namespace sinkhorn::cuda
