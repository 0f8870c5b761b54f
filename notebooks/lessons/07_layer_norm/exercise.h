// Layer normalisation and its gradient: what the exercise is to write. All tensors are f64.
#pragma once
#include "autograd/tensor.h"

namespace sinkhorn::lesson {

struct Normalised {
  Tensor y;           // (rows, width)
  Tensor mean, rstd;  // (rows): what backward needs, see below
};
/// Each row of x (rows, width), moved and scaled so that its mean is 0 and its deviation about 1, then times gamma
/// (width) plus beta (width), element by element:
///   z = (x - mean) rstd,  rstd = 1 / sqrt(variance + eps),  y = gamma z + beta
/// where the variance is the mean of (x - mean)^2.
Normalised layer_norm(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps);

struct LayerNormGradients {
  Tensor dx;             // (rows, width)
  Tensor dgamma, dbeta;  // (width)
};
/// The gradients for dy (rows, width), with mean and rstd as forward gave them.
LayerNormGradients layer_norm_backward(const Tensor& x, const Tensor& gamma, const Tensor& mean, const Tensor& rstd,
                                       const Tensor& dy);

}  // namespace sinkhorn::lesson
