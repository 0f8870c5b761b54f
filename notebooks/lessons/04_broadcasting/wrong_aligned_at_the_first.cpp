// Wrong: aligns shapes at the first axis instead of the last.
#include <algorithm>

#include "notebooks/lessons/04_broadcasting/exercise.h"

namespace sinkhorn::lesson {
namespace {

// The element of a tensor of shape `from` that is stretched to element i of a tensor of shape `to`.
std::int64_t source(std::int64_t i, const Shape& to, const Shape& from) {
  std::int64_t result = 0, inner = to.count();
  for (int axis = 0; axis < from.rank(); ++axis) {
    inner /= to[axis];
    const std::int64_t coordinate = i / inner % to[axis];
    result = result * from[axis] + (from[axis] == 1 ? 0 : coordinate % from[axis]);
  }
  return result;
}

}  // namespace

Shape broadcast_shape(const Shape& a, const Shape& b) {
  Shape shape = a.rank() >= b.rank() ? a : b;
  const Shape& other = a.rank() >= b.rank() ? b : a;
  for (int axis = -1; axis >= -other.rank(); --axis) {
    if (shape[axis] == 1) shape[axis] = other[axis];
    if (other[axis] != 1 && other[axis] != shape[axis]) fail("broadcast: ", a, " and ", b, " do not fit");
  }
  return shape;
}

Tensor stretch(const Tensor& x, const Shape& shape) {
  Tensor y(shape, DType::f64);
  for (std::int64_t i = 0; i < shape.count(); ++i) y.span<double>()[i] = x.span<double>()[source(i, shape, x.shape())];
  return y;
}

Tensor sum_to(const Tensor& dy, const Shape& shape) {
  Tensor dx = Tensor::zeros(shape, DType::f64);
  for (std::int64_t i = 0; i < dy.count(); ++i) dx.span<double>()[source(i, dy.shape(), shape)] += dy.span<double>()[i];
  return dx;
}

}  // namespace sinkhorn::lesson
