// The linear map with GELU behind it: the first half of a feed-forward.
#pragma once
#include "autograd/ops/matmul.h"

namespace sinkhorn {
namespace kernels {

/// Activations in T, the gradient of the bias in P, as Linear has them.
template <class T, class P>
struct LinearGelu {
  /// dh = dy gelu'(h), all (rows, out), and the sum of its rows, in one pass; dh may be dy.
  static void backward(Cpu, const LinearShape& s, const T* h, const T* dy, T* dh, Flow<P> dbias);
  static void backward(Cuda, const LinearShape& s, const T* h, const T* dy, T* dh, Flow<P> dbias);
};

}  // namespace kernels

namespace ops {

/// y = gelu(h), h = x W^T + b, inputs x, W, b; b may be empty. Backward makes dh = dy gelu'(h) and the sum of its rows,
/// db, in one pass; the rest is the linear map's. Beside y it returns h, if anybody wants a gradient.
struct LinearGelu {
  static constexpr std::string_view name = "linear_gelu";
  RoundedLinear rounded = {};
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, Tensor dy) const;
  static std::vector<Case<LinearGelu>> cases();
};

}  // namespace ops

/// gelu(linear(x, weight, bias, rounded)) as one op.
Var linear_gelu(const Var& x, const Var& weight, const Var& bias = {}, const RoundedLinear& rounded = {});

}  // namespace sinkhorn
