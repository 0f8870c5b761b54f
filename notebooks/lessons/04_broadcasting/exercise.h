// Broadcasting and its way back: what the exercise is to write. All tensors are f64, of any rank up to 4.
#pragma once
#include "autograd/tensor.h"

namespace sinkhorn::lesson {

/// The shape to which a and b both stretch: aligned at the last axis, two extents are equal, or one of them is 1 or
/// missing. Throws an Error if they do not fit.
Shape broadcast_shape(const Shape& a, const Shape& b);

/// y of that shape: x, repeated along each axis in which it has an extent of 1, or none, where `shape` has more.
Tensor stretch(const Tensor& x, const Shape& shape);

/// The way back: dx of `shape`, the sum of all the elements of dy into which each element was copied by stretching.
Tensor sum_to(const Tensor& dy, const Shape& shape);

}  // namespace sinkhorn::lesson
