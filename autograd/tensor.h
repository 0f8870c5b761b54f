// A tensor is a value: a shape, a type, a device, and a share of one buffer of contiguous row-major elements.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <ostream>
#include <span>
#include <vector>

#include "autograd/dtype.h"

namespace sinkhorn {

/// Extents of up to six axes; a negative axis counts from the end.
class Shape {
 public:
  static constexpr int kMaxRank = 6;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents) : Shape(std::span(extents.begin(), extents.size())) {}
  explicit Shape(std::span<const std::int64_t> extents);

  int rank() const { return rank_; }
  std::int64_t operator[](int axis) const { return extents_[normal(axis)]; }
  std::int64_t& operator[](int axis) { return extents_[normal(axis)]; }
  /// `axis` counted from the front; an Error if there is no such axis.
  int normal(int axis) const;
  std::int64_t count() const { return product(0, rank_); }
  /// Product of the extents of axes begin .. end-1.
  std::int64_t product(int begin, int end) const;
  Shape with(int axis, std::int64_t extent) const;
  std::span<const std::int64_t> extents() const { return {extents_.data(), std::size_t(rank_)}; }
  bool operator==(const Shape&) const = default;
  friend std::ostream& operator<<(std::ostream& out, const Shape& shape);

 private:
  std::array<std::int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

/// Copying shares the buffer; `reshape` and `slice` share too; everything else copies. There are no strides, so a
/// kernel takes (T*, extents). Ops never write into their inputs.
class Tensor {
 public:
  Tensor() = default;
  /// Uninitialised elements.
  explicit Tensor(Shape shape, DType dtype = DType::f32, Device device = Device::cpu);
  static Tensor zeros(Shape shape, DType dtype = DType::f32, Device device = Device::cpu);
  static Tensor full(Shape shape, double value, DType dtype = DType::f32, Device device = Device::cpu);
  template <class T>
  static Tensor from(std::span<const T> values, Shape shape);
  template <class T>
  static Tensor from(const std::vector<T>& values, Shape shape) {
    return from(std::span<const T>(values), shape);
  }

  /// An uninitialised tensor of this one's dtype and device.
  Tensor like(Shape shape) const { return Tensor(shape, dtype_, device_); }
  Tensor like() const { return like(shape_); }

  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  std::int64_t count() const { return shape_.count(); }
  std::size_t bytes() const { return std::size_t(count()) * size_of(dtype_); }
  explicit operator bool() const { return buffer_ != nullptr; }
  /// True if no other handle shares the buffer, so that it may be written in place.
  bool is_sole_owner() const { return buffer_.use_count() == 1; }

  /// Where the elements are, which only kernels of the device may read; an Error if T is not the dtype.
  template <class T>
  T* data() const {
    if (dtype_of<T> != dtype_) fail("tensor: ", dtype_, " elements read as ", dtype_of<T>);
    return reinterpret_cast<T*>(raw());
  }
  /// The same, or null where there is no tensor: what kernels take for an operand that may be missing.
  template <class T>
  T* data_or_null() const {
    return *this ? data<T>() : nullptr;
  }
  /// The elements, for the host; an Error if T is not the dtype or they lie on another device.
  template <class T>
  std::span<T> span() const {
    if (device_ != Device::cpu) fail("tensor: the host cannot reach elements on device ", device_, "; use to(cpu)");
    return {data<T>(), std::size_t(count())};
  }
  std::byte* raw() const { return buffer_.get() + offset_; }

  /// The same elements under another shape; one extent may be -1.
  Tensor reshape(Shape shape) const;
  /// Elements begin .. end-1 of axis 0, sharing the buffer.
  Tensor slice(std::int64_t begin, std::int64_t end) const;
  /// Tensors that lie behind each other in one buffer as one tensor, one after the other along axis 0: the reverse of
  /// `slice`. Empty where they do not lie so.
  static Tensor adjoining(std::span<const Tensor> parts);
  Tensor clone() const;
  /// A copy with every element converted (rounded to nearest).
  Tensor to(DType dtype) const;
  /// The tensor on a device: itself if it is there, else a copy.
  Tensor to(Device device) const;
  /// Takes over the elements of a tensor of the same shape and dtype, from any device.
  void assign(const Tensor& from) const;
  /// Sets every element.
  void fill(double value) const;
  /// The element of a tensor that has one.
  double item() const;
  /// All elements as f64.
  std::vector<double> to_vector() const;

 private:
  Shape shape_;
  DType dtype_ = DType::f32;
  Device device_ = Device::cpu;
  std::size_t offset_ = 0;  // bytes
  std::shared_ptr<std::byte> buffer_;
};

using Tensors = std::vector<Tensor>;

template <class T>
Tensor Tensor::from(std::span<const T> values, Shape shape) {
  if (std::int64_t(values.size()) != shape.count())
    fail("tensor: ", values.size(), " values for shape ", shape, " of ", shape.count(), " elements");
  Tensor result(shape, dtype_of<T>);
  if (!values.empty()) std::memcpy(result.raw(), values.data(), values.size_bytes());
  return result;
}

/// True if both have the same shape, dtype and bits, on whatever devices.
bool equal_bits(const Tensor& a, const Tensor& b);

}  // namespace sinkhorn
