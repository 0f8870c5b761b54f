#include "nn/cross_attention_cache.h"

#include "autograd/ops.h"

namespace sinkhorn {
namespace {

// Elements `rows` of axis 0.
Tensor take(const Tensor& x, const Tensor& rows) {
  std::vector<Var> parts;
  for (const std::int32_t row : rows.span<std::int32_t>()) parts.emplace_back(x.slice(row, row + 1));
  return concat(parts, 0).value;
}

}  // namespace

CrossAttentionCache::CrossAttentionCache(const CrossCacheShape& s, double temperature, const Tensor& kv,
                                         const Tensor& mask)
    : shape_(s), temperature_(temperature), kv_(kv), mask_(mask) {
  const Shape expected{s.rows, s.context_length, 2, s.heads, s.width}, chosen{s.rows, s.heads, s.n_top};
  if (kv.shape() != expected) fail("cross-attention cache: expected kv ", expected, ", got ", kv.shape());
  if (mask && mask.shape() != Shape{s.rows, s.context_length})
    fail("cross-attention cache: the mask ", mask.shape(), " does not fit contexts (", s.rows, ", ", s.context_length,
         ")");
  summaries_ = bucket_summary(kv, Summary::mean, s.key_bucket, 0, 0, mask, false).value;
  query_sums_ = Tensor({s.rows, s.heads, s.width}, DType::f64, kv.device());
  weights_ = kv.like(chosen);
  picks_ = Tensor(chosen, DType::i32, kv.device());
}

template <class T>
typename kernels::CachedCrossAttention<T>::Memory CrossAttentionCache::memory() const {
  return {shape_,
          temperature_,
          kv_.data<T>(),
          summaries_.data<T>(),
          mask_.data_or_null<bool>(),
          query_sums_.data<double>(),
          weights_.data<T>(),
          picks_.data<std::int32_t>()};
}

void CrossAttentionCache::remember(const NewTokens& tokens, const Tensor& q) const {
  const CrossCacheShape& s = shape_;
  const std::int64_t count = tokens.rows.count(), length = q.shape().rank() == 4 ? q.shape()[1] : 0;
  if (q.shape() != Shape{count, length, s.heads, s.width})
    fail("cross-attention cache: expected q (R, T, H, d) of ", count, " entries, ", s.heads, " heads and width ",
         s.width, ", got ", q.shape());
  const NewTokens there = tokens.to(q.device());
  dispatch(q, [&]<class T>(auto space) {
    kernels::CachedCrossAttention<T>::remember(space, memory<T>(), there.placed(length), q.data<T>());
  });
}

Tensor CrossAttentionCache::attend(const NewTokens& tokens, const Tensor& q) const {
  const Shape expected{tokens.rows.count(), shape_.heads, shape_.width};
  if (q.shape() != expected) fail("cross-attention cache: expected q (R, H, d) = ", expected, ", got ", q.shape());
  Tensor y = q.like();
  const NewTokens there = tokens.to(q.device());
  dispatch(q, [&]<class T>(auto space) {
    kernels::CachedCrossAttention<T>::attend(space, memory<T>(), there.placed(1), q.data<T>(), y.data<T>());
  });
  return y;
}

Tensor CrossAttentionCache::kv(const NewTokens& tokens) const { return take(kv_, tokens.rows); }

Tensor CrossAttentionCache::mask(const NewTokens& tokens) const { return mask_ ? take(mask_, tokens.rows) : Tensor(); }

}  // namespace sinkhorn
