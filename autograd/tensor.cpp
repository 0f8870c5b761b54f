#include "autograd/tensor.h"

#include <algorithm>
#include <limits>

#include "autograd/memory.h"
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

Tensor Tensor::zeros(Shape shape, DType dtype, Device device) { return full(shape, 0, dtype, device); }

Tensor Tensor::full(Shape shape, double value, DType dtype, Device device) {
  Tensor result(shape, dtype, device);
  result.fill(value);
  return result;
}

void Tensor::fill(double value) const {
  dispatch_any(*this, [&]<class T>(auto space) { kernels::Fill<T>::forward(space, count(), T(value), data<T>()); });
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

Tensor Tensor::adjoining(std::span<const Tensor> parts) {
  if (parts.empty() || !parts[0] || parts[0].shape_.rank() == 0) return {};
  Tensor all = parts[0];
  for (const Tensor& part : parts.subspan(1)) {
    const bool follows = part.buffer_ == all.buffer_ && part.offset_ == all.offset_ + all.bytes();
    const bool fits = part.dtype_ == all.dtype_ && part.shape_.rank() == all.shape_.rank() &&
                      part.shape_.with(0, 0) == all.shape_.with(0, 0);
    if (!follows || !fits) return {};
    all.shape_[0] += part.shape_[0];
  }
  return all;
}

Tensor Tensor::clone() const {
  Tensor result = like();
  result.assign(*this);
  return result;
}

void Tensor::assign(const Tensor& from) const {
  if (from.shape_ != shape_ || from.dtype_ != dtype_)
    fail("assign: ", from.dtype_, " ", from.shape_, " does not fit into ", dtype_, " ", shape_);
  if (count() == 0) return;
  if (from.device_ == device_) {
    dispatch_device(*this, [&](auto space) { Memory::copy(space, from.raw(), raw(), bytes()); });
  } else if (from.device_ == Device::cpu) {
    ++Memory::transfers().uploads;
    dispatch_device(*this, [&](auto space) { Memory::upload(space, from.raw(), raw(), bytes()); });
  } else {
    ++Memory::transfers().downloads;
    dispatch_device(from, [&](auto space) { Memory::download(space, from.raw(), raw(), bytes()); });
  }
}

Tensor Tensor::to(Device device) const {
  if (device == device_) return *this;
  Tensor result(shape_, dtype_, device);
  result.assign(*this);
  return result;
}

Tensor Tensor::to(DType dtype) const {
  Tensor result(shape_, dtype, device_);
  dispatch_any(*this, [&]<class From>(auto space) {
    dispatch_any(result, [&]<class To>(auto) {
      kernels::Convert<From, To>::forward(space, count(), data<From>(), result.data<To>());
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
  const Tensor here = to(Device::cpu);
  dispatch_any(here, [&]<class T>(auto) {
    std::transform(here.data<T>(), here.data<T>() + count(), values.begin(),
                   [](T x) { return static_cast<double>(x); });
  });
  return values;
}

bool equal_bits(const Tensor& a, const Tensor& b) {
  if (!a || !b) return !a && !b;
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return false;
  const Tensor x = a.to(Device::cpu), y = b.to(Device::cpu);
  return std::equal(x.raw(), x.raw() + x.bytes(), y.raw());
}

}  // namespace sinkhorn
