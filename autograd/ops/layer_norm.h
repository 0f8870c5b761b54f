// Layer normalisation along the last axis (Ba et al. 2016).
#pragma once
#include <optional>

#include "autograd/tape.h"

namespace sinkhorn {
namespace kernels {

/// The result in Y: T, or bf16 where T is f32.
template <class T, class Y>
struct LayerNorm {
  /// x, y (rows, width); mean and the reciprocal of the deviation, rstd, per row.
  static void forward(Cpu, std::int64_t rows, std::int64_t width, Real<T> eps, const T* x, const T* gamma,
                      const T* beta, Y* y, Real<T>* mean, Real<T>* rstd);
  static void forward(Cuda, std::int64_t rows, std::int64_t width, Real<T> eps, const T* x, const T* gamma,
                      const T* beta, Y* y, Real<T>* mean, Real<T>* rstd);
  /// All three flows are wanted.
  static void backward(Cpu, std::int64_t rows, std::int64_t width, const T* x, const T* gamma, const Real<T>* mean,
                       const Real<T>* rstd, const Y* dy, Flow<T> dx, Flow<T> dgamma, Flow<T> dbeta);
  static void backward(Cuda, std::int64_t rows, std::int64_t width, const T* x, const T* gamma, const Real<T>* mean,
                       const Real<T>* rstd, const Y* dy, Flow<T> dx, Flow<T> dgamma, Flow<T> dbeta);
};

}  // namespace kernels

namespace ops {

/// y = gamma z + beta,  z = (x - mean) rstd,  rstd = 1 / sqrt(variance + eps), variance without Bessel's correction.
/// With g = gamma dy:  dx = rstd (g - mean(g) - z mean(g z)),  dgamma = sum of dy z and dbeta = sum of dy over rows.
struct LayerNorm {
  static constexpr std::string_view name = "layer_norm";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<LayerNorm>> cases();

  double eps = 1e-5;
  std::optional<DType> stored = {};  // of y, if not x's: bf16 for an f32 x, in the same pass
};

}  // namespace ops

/// x (..., width), gamma and beta (width) -> the shape of x, in its dtype or as `stored` (bf16, for an f32 x).
/// Statistics in f32 or better. An Error if extents or dtypes differ.
Var layer_norm(const Var& x, const Var& gamma, const Var& beta, double eps = 1e-5, std::optional<DType> stored = {});

}  // namespace sinkhorn
