// Matrix products and the linear map.
#pragma once
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

/// Activations in T; parameters and their gradients in P, which is T, or f32 where T is bf16.
template <class T, class P>
struct Linear {
  /// y (rows, out) = x (rows, in) weight^T + bias; no bias if null. The weight is rounded to T already.
  static void forward(Cpu, std::int64_t rows, std::int64_t in, std::int64_t out, const T* x, const T* weight,
                      const P* bias, T* y);
  static void forward(Cuda, std::int64_t rows, std::int64_t in, std::int64_t out, const T* x, const T* weight,
                      const P* bias, T* y);
  /// Each of dx, dweight, dbias only if not null.
  static void backward(Cpu, std::int64_t rows, std::int64_t in, std::int64_t out, const T* x, const T* weight,
                       const T* dy, T* dx, P* dweight, P* dbias);
  static void backward(Cuda, std::int64_t rows, std::int64_t in, std::int64_t out, const T* x, const T* weight,
                       const T* dy, T* dx, P* dweight, P* dbias);
};

}  // namespace kernels

namespace ops {

/// y = op(a) op(b).      d op(a) = dy op(b)^T,  d op(b) = op(a)^T dy
struct Matmul {
  static constexpr std::string_view name = "matmul";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Matmul>> cases();

  bool transpose_a = false, transpose_b = false;
};

/// y = x W^T + b; the third input may be empty.      dx = dy W,  dW = dy^T x,  db = sum of dy over rows
/// Mixed precision: with x in bf16, W and b may be f32 master parameters. The product takes W in bf16, from `rounded`
/// or rounded here; dW and db stay f32.
struct Linear {
  static constexpr std::string_view name = "linear";
  Tensor rounded = {};  // W in bf16, if there is a copy already
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Linear>> cases();
};

}  // namespace ops

/// op(a) op(b): (..., m, k) x (..., k, n) -> (..., m, n), where op swaps the last two axes if asked to. The leading
/// axes are equal, or b is one matrix for all. An Error if extents or dtypes differ otherwise.
Var matmul(const Var& a, const Var& b, bool transpose_a = false, bool transpose_b = false);

/// x (..., in), weight (out, in), bias (out) or nothing -> (..., out) in x's dtype. The parameters have that dtype, or
/// f32 where x is bf16; `rounded` is then the weight in bf16, if there is a copy. An Error if extents or dtypes differ.
Var linear(const Var& x, const Var& weight, const Var& bias = {}, const Tensor& rounded = {});

}  // namespace sinkhorn
