// Attention as three kernels through memory and as one, for the walk-through; and the library's, to compare with.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "autograd/ops/bucketed_attention.h"
#include "cuda/launch.h"

namespace sinkhorn::lessons::lesson_23_cuda_bucketed_attention {

using cuda::Global;
using cuda::Shared;
using cuda::Thread;

// One causal head; tokens stand in buckets, and each query bucket has `n_top` picks. Columns of a query are the keys of
// its picked buckets, in order, and those of its own bucket.
struct Problem {
  std::int64_t bucket, width, n_top;
  Global<const float> q, k, v;       // (tokens, width)
  Global<const std::int32_t> picks;  // (buckets, n_top)
  Global<const float> weights;       // (buckets, n_top)

  std::int64_t columns() const { return (n_top + 1) * bucket; }
  std::int64_t source(std::int64_t u, std::int64_t c) const {
    return c == n_top ? u : std::int64_t(picks[u * n_top + c]);
  }
  float weight(std::int64_t u, std::int64_t c) const { return c == n_top ? 1.0f : weights[u * n_top + c]; }
};

// Kernel 1 of 3: scores (tokens, columns), -inf where a query does not see. One block a query.
struct WriteScores {
  Problem in;
  Global<float> scores;
  void operator()(Thread& t) const {
    const std::int64_t token = t.block(), u = token / in.bucket, i = token % in.bucket;
    for (std::int64_t column = t.index(); column < in.columns(); column += t.size()) {
      const std::int64_t c = column / in.bucket, j = column % in.bucket, source = in.source(u, c);
      float score = 0;
      for (std::int64_t e = 0; source >= 0 && e < in.width; ++e)
        score += in.q[token * in.width + e] * in.k[(source * in.bucket + j) * in.width + e];
      const bool seen = source >= 0 && (c < in.n_top || j <= i);
      scores[token * in.columns() + column] =
          seen ? in.weight(u, c) * score / std::sqrt(float(in.width)) : -std::numeric_limits<float>::infinity();
    }
  }
};

// Kernel 2 of 3: softmax of each row, in place. One warp a row.
struct SoftmaxInPlace {
  std::int64_t width;
  Global<float> x;
  void operator()(Thread& t) const {
    float largest = -std::numeric_limits<float>::infinity(), sum = 0;
    for (std::int64_t i = t.lane(); i < width; i += cuda::kWarp)
      largest = std::max(largest, float(x[t.block() * width + i]));
    for (int mask = 16; mask > 0; mask /= 2) largest = std::max(largest, t.shuffle_xor(largest, mask));
    for (std::int64_t i = t.lane(); i < width; i += cuda::kWarp)
      sum += std::exp(float(x[t.block() * width + i]) - largest);
    for (int mask = 16; mask > 0; mask /= 2) sum += t.shuffle_xor(sum, mask);
    for (std::int64_t i = t.lane(); i < width; i += cuda::kWarp)
      x[t.block() * width + i] = std::exp(float(x[t.block() * width + i]) - largest) / sum;
  }
};

// Kernel 3 of 3: y = shares times weighted values. One block a query.
struct WeightedValues {
  Problem in;
  Global<float> shares, y;
  void operator()(Thread& t) const {
    const std::int64_t token = t.block(), u = token / in.bucket;
    for (std::int64_t e = t.index(); e < in.width; e += t.size()) {
      float sum = 0;
      for (std::int64_t column = 0; column < in.columns(); ++column) {
        const std::int64_t c = column / in.bucket, source = in.source(u, c);
        if (source < 0) continue;
        const float share = shares[token * in.columns() + column];
        sum += share * in.weight(u, c) * in.v[(source * in.bucket + column % in.bucket) * in.width + e];
      }
      y[token * in.width + e] = sum;
    }
  }
};

// All of it in one kernel. One block a query bucket, a thread a query.
struct Fused {
  Problem in;
  Global<float> y, log_sum_exp;
  void operator()(Thread& t) const {
    constexpr std::int64_t kMaxWidth = 32;
    const std::int64_t elements = in.bucket * in.width, u = t.block(), token = u * in.bucket + t.index();
    const Shared<float> keys = t.shared<float>(elements), values = t.shared<float>(elements);
    const bool has_query = t.index() < in.bucket;
    float query[kMaxWidth], sum[kMaxWidth] = {}, total = 0, largest = -std::numeric_limits<float>::infinity();
    for (std::int64_t e = 0; has_query && e < in.width; ++e)
      query[e] = in.q[token * in.width + e] / std::sqrt(float(in.width));
    for (std::int64_t c = 0; c <= in.n_top; ++c) {
      const std::int64_t source = in.source(u, c);
      if (source < 0) continue;
      const float w = in.weight(u, c);
      for (std::int64_t at = t.index(); at < elements; at += t.size()) {
        keys[at] = in.k[source * elements + at];
        values[at] = in.v[source * elements + at];
      }
      t.sync();
      const std::int64_t seen = !has_query ? 0 : c == in.n_top ? t.index() + 1 : in.bucket;
      for (std::int64_t j = 0; j < seen; ++j) {
        float score = 0;
        for (std::int64_t e = 0; e < in.width; ++e) score += query[e] * keys[j * in.width + e];
        const float above = std::max(largest, w * score);
        const float rescale = std::exp(largest - above), share = std::exp(w * score - above);
        total = total * rescale + share;
        for (std::int64_t e = 0; e < in.width; ++e) sum[e] = sum[e] * rescale + share * w * values[j * in.width + e];
        largest = above;
      }
      t.sync();
    }
    if (!has_query) return;
    for (std::int64_t e = 0; e < in.width; ++e) y[token * in.width + e] = sum[e] / total;
    log_sum_exp[token] = largest + std::log(total);
  }
};

// --- the library's attention on the CPU, in the terms of this lesson ---

/// One head: q, k and v are (tokens, width), picks (buckets, n_top) i32 with -1 for nothing, weights (buckets, n_top).
struct Attended {
  Tensor q, k, v, picks, weights;
  std::int64_t bucket;
};
struct AttentionResult {
  Tensor y, log_sum_exp;  // (tokens, width) and (tokens)
};

/// The second half of an op's causal sorting heads works on a rotated sequence. So the op gets two heads, of which the
/// second attends to nothing but itself, and the first is the result. Its picks below n_top would be null blocks.
inline AttentionResult library_attention(const Attended& in) {
  const std::int64_t tokens = in.q.shape()[0], width = in.q.shape()[1];
  const std::int64_t buckets = in.picks.shape()[0], n_top = in.picks.shape()[1];
  const Tensor nothing = Tensor::zeros({tokens, width});
  const auto beside = [&](const Tensor& x) {  // (tokens, 2, width)
    const Tensor parts[] = {x, nothing};
    Tensor both({tokens, 2, width});
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t h = 0; h < 2; ++h)
        for (std::int64_t e = 0; e < width; ++e)
          both.span<float>()[(t * 2 + h) * width + e] = parts[h].span<float>()[t * width + e];
    return both;
  };
  const Tensor keys = beside(in.k), values = beside(in.v);
  Tensor kv({1, tokens, 2, 2, width});
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t at = 0; at < 2 * width; ++at) {
      kv.span<float>()[(t * 2 + 0) * 2 * width + at] = keys.span<float>()[t * 2 * width + at];
      kv.span<float>()[(t * 2 + 1) * 2 * width + at] = values.span<float>()[t * 2 * width + at];
    }
  Tensor picks = Tensor::full({1, 2, buckets, n_top}, -1, DType::i32), weights = Tensor::zeros({1, 2, buckets, n_top});
  for (std::int64_t i = 0; i < buckets * n_top; ++i) {
    const std::int32_t pick = in.picks.span<std::int32_t>()[i];
    picks.span<std::int32_t>()[i] = pick < 0 ? -1 : std::int32_t(n_top) + pick;
    weights.span<float>()[i] = in.weights.span<float>()[i];
  }
  const Tensor nulls = Tensor::zeros({2, 1, width});
  const ops::BucketedAttention op{{.bucket = in.bucket, .key_bucket = in.bucket}};
  const auto [y, others] =
      apply_all(op, {beside(in.q).reshape({1, tokens, 2, width}), kv, weights, nulls, nulls, picks, Var(), Var()});
  Tensor first({tokens, width});
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t e = 0; e < width; ++e)
      first.span<float>()[t * width + e] = y.value.span<float>()[t * 2 * width + e];
  return {first, others[0].reshape({2, tokens}).slice(0, 1).reshape({tokens}).clone()};
}

}  // namespace sinkhorn::lessons::lesson_23_cuda_bucketed_attention
