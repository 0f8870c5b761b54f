// Sinkhorn self-attention: local heads beside heads that attend to the buckets chosen by a sort net.
#pragma once
#include <optional>

#include "nn/attention_cache.h"
#include "nn/layers.h"
#include "nn/sort_net.h"

namespace sinkhorn {

struct AttentionOptions {
  std::int64_t dim, heads, width;  // D, H, d
  std::int64_t bucket, local, n_top, max_buckets;
  double temperature, dropout, output_dropout;
  bool simple_sort_net;
  bool composed = false;  // from small ops, instead of the fused op; the numbers agree
};

/// Causal self-attention of one layer (behaviour 2.9, 2.10): (B, T, D) -> (B, T, D), T a multiple of the bucket size.
struct SinkhornSelfAttention {
  SinkhornSelfAttention(const AttentionOptions& options, Initializer& init);

  Var operator()(const Scope& scope, const Var& x, const Tensor& mask) const;

  /// The same in inference, for new tokens of cached sequences, which it remembers: x (R, T, D) -> (R, T, D). With T =
  /// 1 they continue sequences of any length, and only what they see is read. With more, a multiple of the bucket size,
  /// they must begin at position 0; that is one full attention.
  Var operator()(const Scope& scope, const Var& x, const AttentionCache& cache, const NewTokens& tokens) const;
  AttentionCache cache(std::int64_t rows, std::int64_t capacity) const;

  template <class See>
  void visit(See&& see) {
    see("to_q", to_q);
    see("to_kv", to_kv);
    see("to_out", to_out);
    see("sinkhorn_attention.null_keys", null_keys);
    see("sinkhorn_attention.null_values", null_values);
    see("sinkhorn_attention", sort_net);
  }

  AttentionOptions options;
  Linear to_q, to_kv, to_out;
  Parameter null_keys, null_values;  // (h, 1, d)
  CausalSortNet sort_net;

 private:
  struct Projected {
    Var q, kv;  // (B, T, H, d), (B, T, 2, H, d)
  };
  Projected project(const Scope& scope, const Var& x) const;
  Var attend(const Scope& scope, const Projected& in, const Tensor& mask) const;
  Var merge(const Scope& scope, const Var& heads) const;
};

/// bucketed_attention() composed from small ops, as the lessons show it: bucket, gather, matmul, softmax, matmul. Equal
/// to it up to rounding, with dropout too; holds all scores (B, h, N, b, (n + 1) b) at once.
Var composed_attention(const Var& q, const Var& kv, const Routing& routing, const Var& null_keys,
                       const Var& null_values, std::int64_t bucket, std::int64_t local, const Tensor& mask = {},
                       double dropout = 0, Rng rng = {});

}  // namespace sinkhorn
