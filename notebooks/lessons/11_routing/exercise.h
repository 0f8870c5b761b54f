// Routing by index: differentiable top-k, and the gather of the chosen buckets. All tensors are f64; picks are i32.
#pragma once
#include "autograd/tensor.h"

namespace sinkhorn::lesson {

struct Chosen {
  Tensor weights;  // (rows, n)
  Tensor picks;    // i32 (rows, n); -1, with weight 0, where nothing was left to choose
};
/// In each row of logits (rows, columns), n times: the largest logit among those left is picked (of equal ones the
/// lowest column), its weight is its share in softmax(logits / temperature) over those left, and it is left out.
/// A logit of -infinity is never picked.
Chosen top_k(const Tensor& logits, std::int64_t n, double temperature);

/// dlogits (rows, columns) from the gradient dweights (rows, n), for the picks that top_k made.
Tensor top_k_backward(const Tensor& logits, const Tensor& picks, const Tensor& dweights, double temperature);

/// y (N, n c, d) from buckets x (M, c, d), weights (N, n) and picks i32 (N, n): block i of row u is
/// weights[u, i] times bucket picks[u, i]; zeros where the pick is -1.
Tensor gather(const Tensor& x, const Tensor& weights, const Tensor& picks);

struct GatherGradients {
  Tensor dx, dweights;  // (M, c, d), (N, n)
};
GatherGradients gather_backward(const Tensor& x, const Tensor& weights, const Tensor& picks, const Tensor& dy);

}  // namespace sinkhorn::lesson
