// The library's attention on the CPU in the terms of this lesson: one causal head without rotation.
#pragma once
#include "autograd/ops/bucketed_attention.h"

namespace sinkhorn::lessons::lesson_23_cuda_bucketed_attention {

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
