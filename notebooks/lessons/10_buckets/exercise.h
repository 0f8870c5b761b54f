// Local attention within buckets: what the exercise is to write. All tensors are f64 but the mask, which is bool.
#pragma once
#include "autograd/tensor.h"

namespace sinkhorn::lesson {

/// What the queries of each bucket may look at: for x (T, d) the result is (N, J, d), N = T / bucket.
/// Causal, J = 2 bucket: the bucket before, then the bucket itself.
/// Otherwise, J = 3 bucket: the bucket before, the bucket itself, the bucket after.
/// Where there is no such bucket, zeros.
Tensor neighbours(const Tensor& x, std::int64_t bucket, bool causal);

/// bool (N, bucket, J), true where query i of bucket u may see slot j of what neighbours() gives.
Tensor visible(std::int64_t length, std::int64_t bucket, bool causal);

/// Attention of q, k and v, each (T, d), over what is visible: (T, d). Scores are divided by sqrt(d).
Tensor local_attention(const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t bucket, bool causal);

}  // namespace sinkhorn::lesson
