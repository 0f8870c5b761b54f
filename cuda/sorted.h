// Lists that are sorted by key.
#pragma once
#include "cuda/launch.h"

namespace sinkhorn::cuda {

/// begin[key] = the first place of `sorted` (count) whose key is not below `key`, or `count`: a flat kernel over keys.
template <class Index>
struct BeginOfKey {
  std::int64_t count;
  Global<const std::int32_t> sorted;
  Global<Index> begin;
  SINKHORN_DEVICE void operator()(std::int64_t key) const {
    std::int64_t low = 0, high = count;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (sorted[middle] < key)
        low = middle + 1;
      else
        high = middle;
    }
    begin[key] = Index(low);
  }
};

}  // namespace sinkhorn::cuda
