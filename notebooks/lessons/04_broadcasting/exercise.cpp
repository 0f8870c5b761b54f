// Broadcasting and its way back. Edit this file, then: sinkhorn lesson verify 4
//
// Useful: shape.rank(), shape[axis] (axis -1 is the last, -2 the one before it), shape.count(),
// x.span<double>()[i], Tensor(shape, DType::f64), Tensor::zeros(shape, DType::f64), fail("text", a, b), which throws.
#include "notebooks/lessons/04_broadcasting/exercise.h"

#include <algorithm>

namespace sinkhorn::lesson {
namespace {

// For element i of a tensor of shape `to`: which element of a tensor of shape `from` is stretched to it? It is right
// for equal shapes only, where it is the same one. Yours to write; both stretch and sum_to can use it.
std::int64_t source(std::int64_t i, const Shape& to, const Shape& from) {
  (void)to;
  return i % from.count();
}

}  // namespace

Shape broadcast_shape(const Shape& a, const Shape& b) {
  return a.rank() >= b.rank() ? a : b;  // and the extents that are 1? and shapes that do not fit?
}

Tensor stretch(const Tensor& x, const Shape& shape) {
  Tensor y(shape, DType::f64);
  for (std::int64_t i = 0; i < shape.count(); ++i) y.span<double>()[i] = x.span<double>()[source(i, shape, x.shape())];
  return y;
}

Tensor sum_to(const Tensor& dy, const Shape& shape) {
  (void)dy;
  return Tensor::zeros(shape, DType::f64);  // yours to write
}

}  // namespace sinkhorn::lesson
