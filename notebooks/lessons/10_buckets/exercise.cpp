// Local attention within buckets. Edit this file, then: sinkhorn lesson verify 10
//
// The library's ops may help here: x.reshape({N, b, d}) is free, matmul(a, b, false, true) multiplies each of N
// matrices with the transposed of its partner, and softmax(scores, allowed) gives nothing to what is not allowed.
#include "notebooks/lessons/10_buckets/exercise.h"

#include <cmath>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/softmax.h"

namespace sinkhorn::lesson {

// (T, d) -> (N, 2 b, d) or (N, 3 b, d)
Tensor neighbours(const Tensor& x, std::int64_t bucket, bool causal) {
  const std::int64_t buckets = x.shape()[0] / bucket, width = x.shape()[1], slots = (causal ? 2 : 3) * bucket;
  return Tensor::zeros({buckets, slots, width}, DType::f64);  // yours to fill
}

// (N, b, 2 b) or (N, b, 3 b)
Tensor visible(std::int64_t length, std::int64_t bucket, bool causal) {
  Tensor allowed({length / bucket, bucket, (causal ? 2 : 3) * bucket}, DType::boolean);
  allowed.fill(1);  // everything, even what does not exist, and the future
  return allowed;
}

Tensor local_attention(const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t bucket, bool causal) {
  (void)q;  // yours to use
  (void)k;
  (void)bucket;
  (void)causal;
  return v.clone();
}

}  // namespace sinkhorn::lesson
