// The best of many scored things, the lowest of equals: for selections that must not depend on who looks first.
#pragma once
#include <cstdint>

#include "cuda/launch.h"

namespace sinkhorn::cuda {

/// A thing and its score; -1 is none.
template <class R>
struct Best {
  R value;
  std::int32_t column;
};
struct Better {
  template <class R>
  SINKHORN_DEVICE Best<R> operator()(Best<R> a, Best<R> b) const {
    if (a.value != b.value) return a.value > b.value ? a : b;
    return b.column < 0 || (a.column >= 0 && a.column < b.column) ? a : b;
  }
};

}  // namespace sinkhorn::cuda
