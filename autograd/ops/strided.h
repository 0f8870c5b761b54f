// Index arithmetic that kernels share: loops whose operands are read with strides, and tensors seen around one axis.
#pragma once
#include <string_view>

#include "autograd/tensor.h"

namespace sinkhorn {

/// A tensor seen around one axis: `before` blocks of `extent` rows of `after` elements.
struct Around {
  Around(const Shape& shape, int axis)
      : before(shape.product(0, shape.normal(axis))),
        extent(shape[axis]),
        after(shape.product(shape.normal(axis) + 1, shape.rank())) {}
  std::int64_t before, extent, after;
};

/// The loop over a row-major result whose N operands are read with strides (in elements; 0 where an operand is
/// stretched). Axes that run on in every operand are merged, so that equal shapes are one axis. A plain value: kernels
/// take it by copy.
template <int N>
struct StridedLoop {
  int rank = 0;
  std::int64_t count = 1;
  std::int64_t extents[Shape::kMaxRank] = {};
  std::int64_t strides[N][Shape::kMaxRank] = {};

  /// Adds an axis inside the others.
  void push(std::int64_t extent, const std::array<std::int64_t, N>& steps) {
    count *= extent;
    if (extent == 1) return;
    bool runs_on = rank > 0;
    for (int k = 0; k < N; ++k) runs_on = runs_on && strides[k][rank - 1] == extent * steps[k];
    if (!runs_on) extents[rank++] = 1;
    extents[rank - 1] *= extent;
    for (int k = 0; k < N; ++k) strides[k][rank - 1] = steps[k];
  }
};

/// The shape to which `a` and `b` stretch: aligned at the last axis, extents are equal or one of them is 1. An Error
/// that begins with `name` otherwise.
inline Shape broadcast_shape(std::string_view name, const Shape& a, const Shape& b) {
  Shape shape = a.rank() >= b.rank() ? a : b;
  const Shape& other = a.rank() >= b.rank() ? b : a;
  for (int axis = -1; axis >= -other.rank(); --axis) {
    if (shape[axis] == 1) shape[axis] = other[axis];
    if (other[axis] != shape[axis] && other[axis] != 1)
      fail(name, ": shapes ", a, " and ", b, " do not broadcast: axis ", axis, " has ", a[axis], " and ", b[axis]);
  }
  return shape;
}

/// The loop over `shape` in which each operand, of a shape that broadcasts to it, is stretched.
template <int N>
StridedLoop<N> broadcast_loop(const Shape& shape, const std::array<Shape, N>& operands) {
  StridedLoop<N> loop;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    std::array<std::int64_t, N> steps{};
    for (int k = 0; k < N; ++k) {
      const int own = axis - shape.rank() + operands[k].rank();
      if (own >= 0 && operands[k][own] != 1) steps[k] = operands[k].product(own + 1, operands[k].rank());
    }
    loop.push(shape[axis], steps);
  }
  return loop;
}

}  // namespace sinkhorn
