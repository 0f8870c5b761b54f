// Attention of one head, and its gradient: what the exercise is to write. All tensors are f64.
#pragma once
#include "autograd/tensor.h"

namespace sinkhorn::lesson {

/// y (T, e): row t is the mean of the rows of v (S, e), weighted with
/// softmax over j of <q_t, k_j> / sqrt(d), for q (T, d) and k (S, d).
/// `causal` (then T = S): query t sees keys 0 .. t and gives no share to the others.
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, bool causal);

struct AttentionGradients {
  Tensor dq, dk, dv;  // (T, d), (S, d), (S, e)
};
/// The gradients by queries, keys and values, given the gradient dy (T, e) of whatever is computed from y.
AttentionGradients attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& dy, bool causal);

}  // namespace sinkhorn::lesson
