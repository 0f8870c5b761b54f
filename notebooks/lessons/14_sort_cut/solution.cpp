// SortCut attention of one head: blend the first buckets of the sorted sequence once, and let every query see them.
#include <algorithm>
#include <cmath>
#include <vector>

#include "notebooks/lessons/14_sort_cut/exercise.h"

namespace sinkhorn::lesson {

Tensor sorted_blocks(const Tensor& matrix, const Tensor& x, std::int64_t key_bucket, std::int64_t kept) {
  const std::int64_t blocks = std::min(kept, matrix.shape()[0]), sources = matrix.shape()[1], width = x.shape()[1],
                     size = key_bucket * width;
  Tensor y = Tensor::zeros({blocks * key_bucket, width}, DType::f64);
  for (std::int64_t u = 0; u < blocks; ++u)
    for (std::int64_t v = 0; v < sources; ++v)
      for (std::int64_t i = 0; i < size; ++i)
        y.span<double>()[u * size + i] += matrix.span<double>()[u * sources + v] * x.span<double>()[v * size + i];
  return y;
}

// dmatrix[u, v] = <dblock_u, bucket_v>,  dbucket_v = sum_u matrix[u, v] dblock_u
BlocksGradients sorted_blocks_backward(const Tensor& matrix, const Tensor& x, std::int64_t key_bucket,
                                       std::int64_t kept, const Tensor& dblocks) {
  const std::int64_t blocks = std::min(kept, matrix.shape()[0]), sources = matrix.shape()[1],
                     size = key_bucket * x.shape()[1];
  BlocksGradients flow{Tensor::zeros(matrix.shape(), DType::f64), Tensor::zeros(x.shape(), DType::f64)};
  for (std::int64_t u = 0; u < blocks; ++u)
    for (std::int64_t v = 0; v < sources; ++v)
      for (std::int64_t i = 0; i < size; ++i) {
        const double incoming = dblocks.span<double>()[u * size + i];
        flow.dmatrix.span<double>()[u * sources + v] += incoming * x.span<double>()[v * size + i];
        flow.dx.span<double>()[v * size + i] += matrix.span<double>()[u * sources + v] * incoming;
      }
  return flow;
}

Tensor sort_cut_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& matrix, std::int64_t bucket,
                          std::int64_t key_bucket, std::int64_t kept) {
  const std::int64_t length = q.shape()[0], width = q.shape()[1];
  const Tensor sorted_keys = sorted_blocks(matrix, k, key_bucket, kept),
               sorted_values = sorted_blocks(matrix, v, key_bucket, kept);
  const std::int64_t slots = sorted_keys.shape()[0], seen = slots + bucket;
  Tensor y = Tensor::zeros({length, width}, DType::f64);
  std::vector<double> share(static_cast<std::size_t>(seen));
  for (std::int64_t t = 0; t < length; ++t) {
    const std::int64_t own = t / bucket * bucket;  // where the own bucket begins
    auto row = [&](const Tensor& sorted, const Tensor& tokens, std::int64_t j) {
      return j < slots ? sorted.data<double>() + j * width : tokens.data<double>() + (own + j - slots) * width;
    };
    for (std::int64_t j = 0; j < seen; ++j) {
      const double *key = row(sorted_keys, k, j), *query = q.data<double>() + t * width;
      double dot = 0;
      for (std::int64_t c = 0; c < width; ++c) dot += query[c] * key[c];
      share[j] = dot / std::sqrt(double(width));
    }
    const double largest = *std::max_element(share.begin(), share.end());
    double sum = 0;
    for (double& s : share) sum += s = std::exp(s - largest);
    for (std::int64_t j = 0; j < seen; ++j) {
      const double* value = row(sorted_values, v, j);
      for (std::int64_t c = 0; c < width; ++c) y.span<double>()[t * width + c] += share[j] / sum * value[c];
    }
  }
  return y;
}

}  // namespace sinkhorn::lesson
