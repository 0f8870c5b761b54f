// Sinkhorn normalisation in log space, and its gradient: what the exercise is to write. All tensors are f64.
#pragma once
#include "autograd/tensor.h"

namespace sinkhorn::lesson {

/// exp(Z) for log_scores (N, M), where Z = log_scores and then, `iterations` (at least 1) times:
/// from each row of Z its log-sum-exp is subtracted, then from each column its own.
Tensor normalise(const Tensor& log_scores, std::int64_t iterations);

/// The gradient (N, M) by log_scores, given the gradient dy (N, M) of whatever is computed from normalise().
Tensor normalise_backward(const Tensor& log_scores, std::int64_t iterations, const Tensor& dy);

}  // namespace sinkhorn::lesson
