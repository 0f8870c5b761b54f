// Softmax of rows, its gradient, and log-sum-exp: what the exercise is to write. All tensors are f64.
#pragma once
#include "autograd/tensor.h"

namespace sinkhorn::lesson {

/// y (rows, width) = softmax of each row of x (rows, width).
Tensor softmax(const Tensor& x);

/// dx (rows, width) from y = softmax(x) and the gradient dy of whatever is computed from y.
Tensor softmax_backward(const Tensor& y, const Tensor& dy);

/// y (rows) = log sum_j exp(x_j) of each row.
Tensor log_sum_exp(const Tensor& x);

}  // namespace sinkhorn::lesson
