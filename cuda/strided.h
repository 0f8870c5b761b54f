// Where the operands of a StridedLoop are read for one element of its result, and maps over such loops.
#pragma once
#include "autograd/ops/strided.h"
#include "cuda/elements.h"

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

/// What a map reads of one operand for the next elements along the innermost axis: neighbours, or one for all.
template <int N, class T>
SINKHORN_DEVICE Pack<T, N> load_along(const Global<const T>& x, std::int64_t at, std::int64_t stride) {
  if (stride == 1) return x.template load<N>(at);
  Pack<T, N> pack;
  for (int k = 0; k < N; ++k) pack[k] = x[at + k * stride];
  return pack;
}

/// Whether packs of N results end with the rows of the innermost axis, and are packs of each operand whose stride there
/// is 1.
template <int N, int K>
bool has_packs(const StridedLoop<K>& loop) {
  if (loop.rank == 0 || loop.extents[loop.rank - 1] % N != 0) return false;
  for (const auto& strides : loop.strides)
    for (int axis = 0; axis + 1 < loop.rank && strides[loop.rank - 1] == 1; ++axis)
      if (strides[axis] % N != 0) return false;
  return true;
}

template <class F, class Y, class A, class B>
struct MappedPairs {
  F f;
  StridedLoop<2> loop;
  Global<Y> y;
  Global<const A> a;
  Global<const B> b;
  template <int N>
  SINKHORN_DEVICE void operator()(std::int64_t i, Width<N>) const {
    const int inner = loop.rank > 0 ? loop.rank - 1 : 0;
    const auto from = offsets(loop, i);
    const auto x0 = load_along<N>(a, from.at[0], loop.strides[0][inner]);
    const auto x1 = load_along<N>(b, from.at[1], loop.strides[1][inner]);
    Pack<decltype(f(x0[0], x1[0])), N> out;
    for (int k = 0; k < N; ++k) out[k] = f(x0[k], x1[k]);
    y.store(i, rounded<Y>(out));
  }
};

/// y_i = f(a, b) of the operands' elements at i.
template <class F, class Y, class A, class B>
void map_strided(std::string_view op, const StridedLoop<2>& loop, const F& f, Y* y, const A* a, const B* b) {
  constexpr int N = pack_width<Y>();
  if (loop.rank <= 1 && loop.strides[0][0] == 1 && loop.strides[1][0] == 1)
    return map_elements(op, loop.count, f, y, a, b);
  for_each_pack<N>(op, loop.count, has_packs<N>(loop) && is_aligned<N>(y) && is_aligned<N>(a) && is_aligned<N>(b),
                   MappedPairs<F, Y, A, B>{f, loop, y, a, b});
}

}  // namespace sinkhorn::cuda
