// Walks a StridedLoop on the CPU in runs along its last axis.
#pragma once
#include <algorithm>

#include "autograd/ops/strided.h"
#include "autograd/parallel.h"

namespace sinkhorn::cpu {

/// Calls body(i, at, n, steps) for runs of n elements from element i of the result on; operand k is read at
/// at[k] + j * steps[k] for j = 0 .. n-1. Runs are spread over the threads.
template <int N, class Body>
void for_runs(const StridedLoop<N>& loop, Body body) {
  const int last = std::max(loop.rank - 1, 0);
  const std::int64_t width = loop.rank ? loop.extents[last] : 1;
  std::array<std::int64_t, N> steps;
  for (int k = 0; k < N; ++k) steps[k] = loop.strides[k][last];
  parallel_for(loop.count, grain_for(1), [&](std::int64_t begin, std::int64_t end) {
    std::int64_t coordinates[Shape::kMaxRank] = {};
    for (std::int64_t axis = last - 1, rest = begin / width; axis >= 0; rest /= loop.extents[axis--])
      coordinates[axis] = rest % loop.extents[axis];
    for (std::int64_t i = begin, first = begin % width; i < end; first = 0) {
      std::array<std::int64_t, N> at;
      for (int k = 0; k < N; ++k) {
        at[k] = first * steps[k];
        for (int axis = 0; axis < last; ++axis) at[k] += coordinates[axis] * loop.strides[k][axis];
      }
      const std::int64_t n = std::min(width - first, end - i);
      body(i, at, n, steps);
      i += n;
      for (int axis = last - 1; axis >= 0 && ++coordinates[axis] == loop.extents[axis]; --axis) coordinates[axis] = 0;
    }
  });
}

}  // namespace sinkhorn::cpu
