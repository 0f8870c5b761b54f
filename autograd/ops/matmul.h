// Matrix products and the linear map.
#pragma once
#include <functional>

#include "autograd/residual.h"
#include "autograd/tape.h"

namespace sinkhorn {
namespace kernels {

/// `batch` products C = op(A) op(B) of compact row-major matrices, op(A) (m, k) and op(B) (k, n). Product i uses the
/// matrices at i times the step; a step of 0 is one matrix for all, and a C of all is their sum.
struct Products {
  std::int64_t batch, m, n, k;
  bool transpose_a, transpose_b;
  std::int64_t a_step, b_step, c_step;
};

template <class T>
struct Matmul {
  static void forward(Cpu, const Products& products, const T* a, const T* b, T* c);
  static void forward(Cuda, const Products& products, const T* a, const T* b, T* c);
};

/// x (rows, in), weight (out, in), bias (out), y (rows, out)
struct LinearShape {
  std::int64_t rows, in, out;
};

/// Activations in T; parameters, their gradients and the residual stream in P, which is T, or f32 where T is bf16. The
/// weight is rounded to T already.
template <class T, class P>
struct Linear {
  /// y = x weight^T + bias; no bias if null.
  static void forward(Cpu, const LinearShape& s, const T* x, const T* weight, const T* bias, T* y);
  static void forward(Cuda, const LinearShape& s, const T* x, const T* weight, const T* bias, T* y);
  /// y = onto + sign (x weight^T + bias) for a sign of 1 or -1; y may be `onto`.
  static void add(Cpu, const LinearShape& s, double sign, const T* x, const T* weight, const P* bias, const P* onto,
                  P* y);
  static void add(Cuda, const LinearShape& s, double sign, const T* x, const T* weight, const P* bias, const P* onto,
                  P* y);
  static void backward(Cpu, const LinearShape& s, const T* x, const T* weight, const T* dy, Flow<T> dx, Flow<P> dweight,
                       Flow<P> dbias);
  static void backward(Cuda, const LinearShape& s, const T* x, const T* weight, const T* dy, Flow<T> dx,
                       Flow<P> dweight, Flow<P> dbias);
};

}  // namespace kernels

/// Makes a tensor again in backward, with the same bits, out of what the tape keeps anyway: then it need not be kept.
using Remake = std::function<Tensor()>;

/// The parameters of a linear map in bf16, if there are such copies.
struct RoundedLinear {
  Tensor weight = {}, bias = {};
};

namespace ops {

/// The parameters of a linear map as its product takes them: in the type of x.
struct LinearOperands {
  /// The copies in `rounded` where x is bf16 and the parameters are f32, else the parameters themselves, or what they
  /// are rounded to here. An Error in the name of `op` if extents or dtypes do not fit x (..., in).
  LinearOperands(std::string_view op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                 const RoundedLinear& rounded, bool takes_bias = true);
  Tensor weight, bias;
  kernels::LinearShape sizes;
};

/// y = op(a) op(b).      d op(a) = dy op(b)^T,  d op(b) = op(a)^T dy
struct Matmul {
  static constexpr std::string_view name = "matmul";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Matmul>> cases();

  bool transpose_a = false, transpose_b = false;
};

/// y = r + x W^T + b, inputs x, W, b, r; b and r may be empty. Further inputs are weights whose rows follow those of W:
/// several linear maps of one x in one product, read where they are if they lie behind each other in memory.
///     dx = dy W,  dW = dy^T x,  db = sum of dy over rows,  dr = dy
/// Mixed precision: with x in bf16, W and b may be f32 master parameters. The product takes both in bf16, from
/// `rounded` or rounded here; dW and db stay f32. A residual r has the parameters' type, and y has it then, too.
struct Linear {
  static constexpr std::string_view name = "linear";
  RoundedLinear rounded = {};
  bool undo = false, in_place = false;  // autograd/residual.h
  Remake x_again = {};                  // if there: x, which is not kept
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Linear>> cases();
};

}  // namespace ops

/// op(a) op(b): (..., m, k) x (..., k, n) -> (..., m, n), where op swaps the last two axes if asked to. The leading
/// axes are equal, or b is one matrix for all. An Error if extents or dtypes differ otherwise.
Var matmul(const Var& a, const Var& b, bool transpose_a = false, bool transpose_b = false);

/// x (..., in), weight (out, in), bias (out) or nothing -> (..., out) in x's dtype. The parameters have that dtype, or
/// f32 where x is bf16; `rounded` are then the parameters in bf16, if there are copies. With a residual, which has the
/// result's shape and the parameters' dtype, the result is added to it and has its dtype. An Error if extents or dtypes
/// differ. With `x_again` x is not kept for backward but made anew there.
Var linear(const Var& x, const Var& weight, const Var& bias = {}, const RoundedLinear& rounded = {},
           const Residual& residual = {}, const Remake& x_again = {});

/// Linear maps of one x without biases, in one product: x (..., in), weights (out_i, in) -> (..., sum of out_i), the
/// results beside each other in the order of the weights. `rounded`: all weights in bf16, one behind the other, if
/// there is such a copy. Otherwise as linear().
Var linear(const Var& x, std::span<const Var> weights, const Tensor& rounded = {});

}  // namespace sinkhorn
