// SortCut attention of one head: what the exercise is to write. All tensors are f64.
#pragma once
#include "autograd/tensor.h"

namespace sinkhorn::lesson {

/// The first `kept` rows of a sorting matrix (rows, M), applied to the M buckets of x (M c, d), c = key_bucket:
/// (kept c, d), where slot i of block u is sum_v matrix[u, v] x[v c + i]. `kept` may be more than there are rows; then
/// all rows are kept.
Tensor sorted_blocks(const Tensor& matrix, const Tensor& x, std::int64_t key_bucket, std::int64_t kept);

struct BlocksGradients {
  Tensor dmatrix, dx;  // (rows, M), (M c, d)
};
/// The gradients of sorted_blocks(), given the gradient dblocks (kept c, d) of whatever is computed from it.
BlocksGradients sorted_blocks_backward(const Tensor& matrix, const Tensor& x, std::int64_t key_bucket,
                                       std::int64_t kept, const Tensor& dblocks);

/// Attention of queries, keys and values (T, d): every query sees the sorted blocks of keys and values, and after them
/// the `bucket` tokens of its own bucket. Scores are divided by sqrt(d). Gives (T, d).
Tensor sort_cut_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& matrix, std::int64_t bucket,
                          std::int64_t key_bucket, std::int64_t kept);

}  // namespace sinkhorn::lesson
