// What one attention layer keeps of sequences that grow token by token, so that a new token costs no more than its own
// attention.
#pragma once
#include "autograd/cached_attention.h"

namespace sinkhorn {

/// Which tokens a batch (R, T, ...) adds to cached sequences: entry r continues row rows[r], from position begin[r] on,
/// by lengths[r] <= T tokens; the rest is padding. i32 (R) each, on the CPU; the rows are distinct.
struct NewTokens {
  Tensor rows, begin, lengths;

  NewTokens to(Device device) const { return {rows.to(device), begin.to(device), lengths.to(device)}; }
  kernels::Placement placed(std::int64_t length) const {
    return {rows.count(), length, rows.data<std::int32_t>(), begin.data<std::int32_t>(), lengths.data<std::int32_t>()};
  }
};

/// Keys, values, running sums, summaries of finished buckets, and the routing of the bucket in progress. Of fixed size:
/// nothing moves or grows. Adding position 0 begins a row anew.
class AttentionCache {
 public:
  AttentionCache(const CacheShape& shape, double temperature, DType dtype, Device device);

  /// Adds tokens with queries, keys and values qkv (R, T, 3, H, d). `table` (1, h, 2d, columns): that of the simple
  /// sort net, if it is the one.
  void remember(const NewTokens& tokens, const Tensor& qkv, const Tensor& table) const;
  /// (R, 1, H, d): the attention of the last token of each entry, with its query in qkv (R, 1, 3, H, d) and null blocks
  /// (h, 1, d).
  Tensor attend(const NewTokens& tokens, const Tensor& qkv, const Tensor& null_keys, const Tensor& null_values) const;

 private:
  template <class T>
  typename kernels::CachedAttention<T>::Memory memory() const;

  CacheShape shape_;
  double temperature_;
  Tensor keys_, values_, query_sums_, key_sums_, mean_sums_, summaries_, weights_, picks_;  // see CachedAttention
};

}  // namespace sinkhorn
