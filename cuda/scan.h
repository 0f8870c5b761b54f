// Sums of what lies before, for scans over time that are cut into chunks.
#pragma once
#include "cuda/launch.h"

namespace sinkhorn::cuda {

/// sums (groups, chunks, after), index (group, column): each element becomes the sum of those before it in its column,
/// or of those behind it.
template <class T>
struct SumBefore {
  std::int64_t chunks, after;
  bool backwards;
  Global<T> sums;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t first = i / after * chunks * after + i % after;
    T total = 0;
    for (std::int64_t k = 0; k < chunks; ++k) {
      const std::int64_t at = first + (backwards ? chunks - 1 - k : k) * after;
      const T own = sums[at];
      sums[at] = total;
      total += own;
    }
  }
};

}  // namespace sinkhorn::cuda
