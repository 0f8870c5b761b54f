// What a cross-attention layer of a causal decoder keeps while its sequences grow: the context, and which of its
// buckets the bucket of queries in progress looks at.
#pragma once
#include "autograd/cached_cross_attention.h"
#include "nn/attention_cache.h"

namespace sinkhorn {

/// Keys, values and summaries of the context are computed once; running sums of the queries and the routing follow the
/// tokens. Adding position 0 begins a row anew, with the context that it has.
class CrossAttentionCache {
 public:
  /// kv (rows, S, 2, H, d) of the context; `mask` (rows, S) bool, true = real, or none.
  CrossAttentionCache(const CrossCacheShape& shape, double temperature, const Tensor& kv, const Tensor& mask);

  /// Adds the queries q (R, T, H, d).
  void remember(const NewTokens& tokens, const Tensor& q) const;
  /// (R, H, d): the attention of the last token of each entry, with its query in q (R, H, d).
  Tensor attend(const NewTokens& tokens, const Tensor& q) const;

  /// Keys and values (R, S, 2, H, d), and mask (R, S) or none, of the contexts of these rows.
  Tensor kv(const NewTokens& tokens) const;
  Tensor mask(const NewTokens& tokens) const;

 private:
  template <class T>
  typename kernels::CachedCrossAttention<T>::Memory memory() const;

  CrossCacheShape shape_;
  double temperature_;
  Tensor kv_, summaries_, mask_, query_sums_, weights_, picks_;  // see CachedCrossAttention
};

}  // namespace sinkhorn
