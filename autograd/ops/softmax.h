// Softmax and its relatives along the last axis, computed in f32 or better whatever the storage type.
#pragma once
#include "autograd/tape.h"

namespace sinkhorn {
namespace kernels {

/// A tensor seen as `count` rows of its last axis.
struct Rows {
  explicit Rows(const Shape& shape) : width(shape[-1]), count(shape.product(0, shape.rank() - 1)) {}
  Rows(std::int64_t count, std::int64_t width) : width(width), count(count) {}
  std::int64_t width, count;
};

template <class T>
struct Softmax {
  static void forward(Cpu, Rows rows, const T* x, const bool* allowed, T* y);
  static void forward(Cuda, Rows rows, const T* x, const bool* allowed, T* y);
  static void backward(Cpu, Rows rows, const T* y, const T* dy, T* dx);
  static void backward(Cuda, Rows rows, const T* y, const T* dy, T* dx);
};

template <class T>
struct LogSoftmax {
  static void forward(Cpu, Rows rows, const T* x, T* y);
  static void forward(Cuda, Rows rows, const T* x, T* y);
  static void backward(Cpu, Rows rows, const T* y, const T* dy, T* dx);
  static void backward(Cuda, Rows rows, const T* y, const T* dy, T* dx);
};

template <class T>
struct LogSumExp {
  static void forward(Cpu, Rows rows, const T* x, const bool* allowed, T* y);
  static void forward(Cuda, Rows rows, const T* x, const bool* allowed, T* y);
  static void backward(Cpu, Rows rows, const T* x, const bool* allowed, const T* dy, T* dx);
  static void backward(Cuda, Rows rows, const T* x, const bool* allowed, const T* dy, T* dx);
};

}  // namespace kernels

namespace ops {

/// y = softmax(x) along the last axis, over the entries that the optional second input allows (bool, the shape of x); a
/// row without an allowed entry is 0.      dx = y * (dy - <dy, y>)
struct Softmax {
  static constexpr std::string_view name = "softmax";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Softmax>> cases();
};

/// y = x - log_sum_exp(x).      dx = dy - exp(y) sum(dy)
struct LogSoftmax {
  static constexpr std::string_view name = "log_softmax";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<LogSoftmax>> cases();
};

/// y = log sum exp(x) along the last axis, over the entries that the optional second input allows.
///   dx = dy softmax(x)
struct LogSumExp {
  static constexpr std::string_view name = "log_sum_exp";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<LogSumExp>> cases();
};

}  // namespace ops

/// softmax(x) along the last axis. `allowed`, if given, is bool of x's shape: the others get exactly 0, and so does
/// every entry of a row that allows none.
Var softmax(const Var& x, const Tensor& allowed = {});

/// log softmax(x) along the last axis, without taking a logarithm of 0. A row of -inf stays one.
Var log_softmax(const Var& x);

/// x (..., width) -> (...): log of the sum of exp along the last axis, over what `allowed` (bool, the shape of x)
/// allows if given. A row that allows nothing is -inf, with zero gradient.
Var log_sum_exp(const Var& x, const Tensor& allowed = {});

}  // namespace sinkhorn
