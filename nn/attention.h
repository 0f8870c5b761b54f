// Sinkhorn self-attention: local heads beside heads that attend to the buckets chosen by a sort net.
#pragma once
#include <functional>
#include <optional>

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

struct SinkhornSelfAttention;
/// Computes the heads' outputs (B, T, H, d) of a layer in its place: for lessons and for checks of checks.
using AttentionTwin = std::function<Var(const SinkhornSelfAttention& layer, const Scope& scope, const Var& q,
                                        const Var& kv, const Tensor& mask)>;

/// Causal self-attention of one layer (behaviour 2.9, 2.10): (B, T, D) -> (B, T, D), T a multiple of the bucket size.
struct SinkhornSelfAttention {
  SinkhornSelfAttention(const AttentionOptions& options, Initializer& init);

  Var operator()(const Scope& scope, const Var& x, const Tensor& mask) const;
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
  AttentionTwin twin = {};

 private:
  Var heads(const Scope& scope, const Var& q, const Var& kv, const Tensor& mask) const;
};

/// bucketed_attention() composed from small ops, as the lessons show it: bucket, gather, matmul, softmax, matmul. Equal
/// to it up to rounding, with dropout too; holds all scores (B, h, N, b, (n + 1) b) at once.
Var composed_attention(const Var& q, const Var& kv, const Routing& routing, const Var& null_keys,
                       const Var& null_values, std::int64_t bucket, std::int64_t local, const Tensor& mask = {},
                       double dropout = 0, Rng rng = {});

}  // namespace sinkhorn
