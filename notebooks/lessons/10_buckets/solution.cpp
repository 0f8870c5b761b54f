// Local attention within buckets: copy the neighbours together, mask what is missing or in the future, attend.
#include <algorithm>
#include <cmath>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/softmax.h"
#include "notebooks/lessons/10_buckets/exercise.h"

namespace sinkhorn::lesson {

// Slots 0 .. J-1 of bucket u hold the tokens from (u - 1) * bucket on.
Tensor neighbours(const Tensor& x, std::int64_t bucket, bool causal) {
  const std::int64_t length = x.shape()[0], width = x.shape()[1], slots = (causal ? 2 : 3) * bucket;
  Tensor around = Tensor::zeros({length / bucket, slots, width}, DType::f64);
  for (std::int64_t u = 0; u < length / bucket; ++u) {
    const std::int64_t first = (u - 1) * bucket, begin = std::max<std::int64_t>(first, 0),
                       end = std::min(first + slots, length);
    std::copy(x.data<double>() + begin * width, x.data<double>() + end * width,
              around.data<double>() + (u * slots + begin - first) * width);
  }
  return around;
}

Tensor visible(std::int64_t length, std::int64_t bucket, bool causal) {
  const std::int64_t slots = (causal ? 2 : 3) * bucket;
  Tensor allowed({length / bucket, bucket, slots}, DType::boolean);
  for (std::int64_t query = 0; query < length; ++query)
    for (std::int64_t j = 0; j < slots; ++j) {
      const std::int64_t key = (query / bucket - 1) * bucket + j;
      allowed.data<bool>()[query * slots + j] = key >= 0 && key < length && (!causal || key <= query);
    }
  return allowed;
}

Tensor local_attention(const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t bucket, bool causal) {
  const std::int64_t length = q.shape()[0], width = q.shape()[1];
  const Var queries = q.reshape({length / bucket, bucket, width});
  const Var scores = scale(matmul(queries, neighbours(k, bucket, causal), false, true), 1 / std::sqrt(double(width)));
  const Var shares = softmax(scores, visible(length, bucket, causal));
  return matmul(shares, neighbours(v, bucket, causal)).value.reshape({length, width});
}

}  // namespace sinkhorn::lesson
