// Reductions along one axis, and running means over time. Sums are cut by shape, so their order is always the same.
#pragma once
#include "autograd/ops/strided.h"
#include "autograd/tape.h"

namespace sinkhorn {
namespace kernels {

/// x is (before, extent, after), y is (before, after).
template <class T>
struct Sum {
  static void forward(Cpu, Around shape, const T* x, T* y);
  static void forward(Cuda, Around shape, const T* x, T* y);
};

/// Also says where along the axis the largest stands, the first if there are several; backward writes all of dx.
template <class T>
struct Max {
  static void forward(Cpu, Around shape, const T* x, T* y, std::int32_t* index);
  static void forward(Cuda, Around shape, const T* x, T* y, std::int32_t* index);
  static void backward(Cpu, Around shape, const std::int32_t* index, const T* dy, T* dx);
  static void backward(Cuda, Around shape, const std::int32_t* index, const T* dy, T* dx);
};

/// x is (before, time, after), allowed (before, time) or null. Sums in f64.
template <class T>
struct CumulativeMean {
  static void forward(Cpu, Around shape, const T* x, const bool* allowed, T* y);
  static void forward(Cuda, Around shape, const T* x, const bool* allowed, T* y);
  static void backward(Cpu, Around shape, const bool* allowed, const T* dy, T* dx);
  static void backward(Cuda, Around shape, const bool* allowed, const T* dy, T* dx);
};

}  // namespace kernels

namespace ops {

/// y = sum of x along an axis, which stays with extent 1.      dx = dy, stretched
struct Sum {
  static constexpr std::string_view name = "sum";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Sum>> cases();
  int axis;
};

/// y = largest of x along an axis, which stays with extent 1.      dx = dy at the first largest, else 0
struct Max {
  static constexpr std::string_view name = "max";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Max>> cases();
  int axis;
};

/// y_t = sum_{s<=t} m_s x_s / c_t with c_t = max(1, sum_{s<=t} m_s), for x (..., T, d) and m (..., T).
/// dx_s = m_s sum_{t>=s} dy_t / c_t
struct CumulativeMean {
  static constexpr std::string_view name = "cumulative_mean";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<CumulativeMean>> cases();
};

}  // namespace ops

/// Sum, mean and largest of x along `axis`. The axis goes, or stays with extent 1 if `keep`. `mean` and `max` of an
/// empty axis are an Error; the gradient of `max` goes to the first of equals, and a NaN is the largest of all.
Var sum(const Var& x, int axis, bool keep = false);
Var mean(const Var& x, int axis, bool keep = false);
Var max(const Var& x, int axis, bool keep = false);

/// Sum and mean of all elements, of shape ().
Var sum(const Var& x);
Var mean(const Var& x);

/// Mean over time of the allowed rows of x (..., T, d), divided by their number, at least 1; gives (..., d). `allowed`
/// is bool (..., T); what stands in the other rows never matters.
Var masked_mean(const Var& x, const Tensor& allowed);

/// Mean over time up to each moment: y_t = mean of the allowed x_s with s <= t (0 before the first), for x (..., T, d).
/// `allowed`, if given, is bool (..., T). Summed in f64, so that long sequences keep their accuracy.
Var cumulative_mean(const Var& x, const Tensor& allowed = {});

/// x summed over the axes along which `shape` would be stretched to x's. Outside of the tape: the adjoint of
/// broadcasting, for ops.
Tensor sum_to(const Tensor& x, const Shape& shape);

}  // namespace sinkhorn
