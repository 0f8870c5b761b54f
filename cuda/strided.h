// Where the operands of a StridedLoop are read for one element of its result.
#pragma once
#include "autograd/ops/strided.h"
#include "cuda/launch.h"

namespace sinkhorn::cuda {

template <int N>
struct Offsets {
  std::int64_t at[N];
};

template <class Index, int N>
SINKHORN_DEVICE Offsets<N> offsets_as(const StridedLoop<N>& loop, Index i) {
  Offsets<N> offsets = {};
  for (int axis = loop.rank - 1; axis >= 0; --axis) {
    const Index extent = Index(loop.extents[axis]), rest = i / extent;
    const auto coordinate = std::int64_t(i - rest * extent);
    for (int k = 0; k < N; ++k) offsets.at[k] += coordinate * loop.strides[k][axis];
    i = rest;
  }
  return offsets;
}

/// Of element i. Divisions of 32 bits are several times faster, so they are taken where they suffice.
template <int N>
SINKHORN_DEVICE Offsets<N> offsets(const StridedLoop<N>& loop, std::int64_t i) {
  return loop.count <= 0xffffffffll ? offsets_as(loop, std::uint32_t(i)) : offsets_as(loop, std::uint64_t(i));
}

}  // namespace sinkhorn::cuda
