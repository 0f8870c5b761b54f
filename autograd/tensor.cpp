#include "autograd/tensor.h"

#include <algorithm>
#include <limits>

#include "autograd/dispatch.h"
#include "autograd/pool.h"

namespace sinkhorn {

Shape::Shape(std::span<const std::int64_t> extents) {
  if (extents.size() > kMaxRank) fail("shape: rank ", extents.size(), " exceeds ", kMaxRank);
  for (auto extent : extents) extents_[rank_++] = extent;
}

int Shape::normal(int axis) const {
  const int front = axis < 0 ? rank_ + axis : axis;
  if (front < 0 || front >= rank_) fail("shape: axis ", axis, " does not exist in ", *this);
  return front;
}

std::int64_t Shape::product(int begin, int end) const {
  std::int64_t product = 1;
  for (int axis = begin; axis < end; ++axis) product *= extents_[axis];
  return product;
}

Shape Shape::with(int axis, std::int64_t extent) const {
  Shape other = *this;
  other[axis] = extent;
  return other;
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '(';
  for (int axis = 0; axis < shape.rank(); ++axis) out << (axis ? ", " : "") << shape[axis];
  return out << ')';
}

namespace {

// Bytes of a tensor, or an Error: no extent may be negative and the product must fit in 63 bits.
std::size_t checked_bytes(const Shape& shape, DType dtype) {
  std::int64_t bytes = std::int64_t(size_of(dtype));
  for (auto extent : shape.extents()) {
    if (extent < 0) fail("tensor: negative extent in shape ", shape);
    if (__builtin_mul_overflow(bytes, extent, &bytes))
      fail<OutOfMemory>("tensor: shape ", shape, " exceeds 2^63 bytes");
  }
  return std::size_t(bytes);
}

}  // namespace

Tensor::Tensor(Shape shape, DType dtype, Device device)
    : shape_(shape), dtype_(dtype), device_(device), buffer_(Pool::of(device).allocate(checked_bytes(shape, dtype))) {}

Tensor Tensor::zeros(Shape shape, DType dtype, Device device) {
  Tensor result(shape, dtype, device);
  std::fill_n(result.raw(), result.bytes(), std::byte{0});
  return result;
}

Tensor Tensor::full(Shape shape, double value, DType dtype, Device device) {
  Tensor result(shape, dtype, device);
  dispatch_any(result, [&]<class T>(auto) { std::fill_n(result.data<T>(), result.count(), T(value)); });
  return result;
}

Tensor Tensor::reshape(Shape shape) const {
  const auto extents = shape.extents();
  if (auto unknown = std::find(extents.begin(), extents.end(), -1); unknown != extents.end()) {
    const std::int64_t known = -shape.count();
    if (known > 0 && count() % known == 0) shape[int(unknown - extents.begin())] = count() / known;
  }
  if (shape.count() != count()) fail("reshape: ", shape_, " has ", count(), " elements, ", shape, " does not");
  Tensor result = *this;
  result.shape_ = shape;
  return result;
}

Tensor Tensor::slice(std::int64_t begin, std::int64_t end) const {
  if (shape_.rank() == 0 || begin < 0 || begin > end || end > shape_[0])
    fail("slice: ", begin, " .. ", end, " is outside axis 0 of ", shape_);
  Tensor result = *this;
  result.offset_ += std::size_t(begin * shape_.product(1, shape_.rank())) * size_of(dtype_);
  result.shape_[0] = end - begin;
  return result;
}

Tensor Tensor::clone() const {
  Tensor result = like();
  std::copy_n(raw(), bytes(), result.raw());
  return result;
}

Tensor Tensor::to(DType dtype) const {
  Tensor result(shape_, dtype, device_);
  dispatch_any(*this, [&]<class From>(auto) {
    dispatch_any(result, [&]<class To>(auto) {
      std::transform(data<From>(), data<From>() + count(), result.data<To>(),
                     [](From x) { return static_cast<To>(x); });
    });
  });
  return result;
}

double Tensor::item() const {
  if (count() != 1) fail("item: expected one element, got shape ", shape_);
  return to_vector()[0];
}

std::vector<double> Tensor::to_vector() const {
  std::vector<double> values(static_cast<std::size_t>(count()));
  dispatch_any(*this, [&]<class T>(auto) {
    std::transform(data<T>(), data<T>() + count(), values.begin(), [](T x) { return static_cast<double>(x); });
  });
  return values;
}

bool equal_bits(const Tensor& a, const Tensor& b) {
  if (!a || !b) return !a && !b;
  return a.shape() == b.shape() && a.dtype() == b.dtype() && std::equal(a.raw(), a.raw() + a.bytes(), b.raw());
}

}  // namespace sinkhorn
