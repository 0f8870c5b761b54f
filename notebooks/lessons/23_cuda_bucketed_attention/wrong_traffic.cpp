// Wrong: each thread reads keys and values from global memory itself: right values, and the traffic of all queries.
#include <algorithm>
#include <cmath>
#include <limits>

#include "notebooks/lessons/23_cuda_bucketed_attention/exercise.h"

namespace sinkhorn::lesson {

void BucketAttention::operator()(Thread& t) const {
  const std::int64_t u = t.block(), row = (u * bucket + t.index()) * width;
  const bool has_query = t.index() < bucket;
  const float scale = 1 / std::sqrt(float(width));
  float query[kMaxWidth], sum[kMaxWidth] = {}, total = 0, largest = -std::numeric_limits<float>::infinity();
  for (std::int64_t e = 0; has_query && e < width; ++e) query[e] = scale * q[row + e];
  for (std::int64_t c = 0; c <= n_top; ++c) {
    const bool own = c == n_top;
    const std::int64_t source = own ? u : picks[u * n_top + c];
    if (source < 0) continue;  // for all threads alike: nobody misses a barrier
    const float w = own ? 1.0f : weights[u * n_top + c];
    const auto keys = k + source * bucket * width, values = v + source * bucket * width;
    const std::int64_t seen = !has_query ? 0 : own ? t.index() + 1 : bucket;
    for (std::int64_t j = 0; j < seen; ++j) {
      float score = 0;
      for (std::int64_t e = 0; e < width; ++e) score += query[e] * keys[j * width + e];
      score *= w;
      const float above = std::max(largest, score);
      const float rescale = std::exp(largest - above), share = std::exp(score - above);
      total = total * rescale + share;
      for (std::int64_t e = 0; e < width; ++e) sum[e] = sum[e] * rescale + share * w * values[j * width + e];
      largest = above;
    }
  }
  if (!has_query) return;
  for (std::int64_t e = 0; e < width; ++e) y[row + e] = sum[e] / total;
  log_sum_exp[u * bucket + t.index()] = largest + std::log(total);
}

}  // namespace sinkhorn::lesson
