// A matrix product and its two backward products: what the exercise is to write. All tensors are f64.
#pragma once
#include "autograd/tensor.h"

namespace sinkhorn::lesson {

/// y (B, m, n), of B products a_i b_i: a is (B, m, k), and b is (B, k, n), or (k, n): one matrix for all.
Tensor matmul(const Tensor& a, const Tensor& b);

struct MatmulGradients {
  Tensor da, db;  // of the shapes of a and b
};
/// The gradients of a and b, for the gradient dy (B, m, n) of the product.
MatmulGradients matmul_backward(const Tensor& a, const Tensor& b, const Tensor& dy);

}  // namespace sinkhorn::lesson
