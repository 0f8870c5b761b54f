#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/launch.h"
#include "cuda/runtime.h"

namespace sinkhorn::cuda {
namespace {

struct Count {
  Global<std::int64_t> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { y[i] = i; }
};

}  // namespace

// A radix sort is stable: equal keys stay in order of position.
void sort_positions(std::int64_t count, std::int32_t end, const std::int32_t* keys, std::int32_t* sorted,
                    std::int64_t* order) {
  if (count == 0) return;
  const Tensor positions = workspace({count}, DType::f64);  // 8 bytes each
  auto* position = reinterpret_cast<std::int64_t*>(positions.data<double>());
  for_each("sort", count, Count{position});
  const int bits = std::bit_width(std::uint32_t(end > 0 ? end - 1 : 0));
  std::size_t bytes = 0;
  const auto sort = [&](void* memory) {
    check("sort", cub::DeviceRadixSort::SortPairs(memory, bytes, keys, sorted, position, order, count, 0,
                                                  std::max(bits, 1), stream()));
  };
  sort(nullptr);
  const Tensor memory = workspace({std::int64_t(bytes)}, DType::boolean);
  sort(memory.raw());
}

}  // namespace sinkhorn::cuda
