// Product-key memory: a large table of values, of which every token reads the few whose keys fit its queries best.
#pragma once
#include "nn/layers.h"

namespace sinkhorn {

struct ProductKeyOptions {
  std::int64_t dim, heads, keys, half;  // D, heads, keys of a half, width of half a query
  std::int64_t topk;                    // values a head reads, at most `keys`
};

/// Stands where a feed-forward does: (..., D) -> (..., D), each token for itself (behaviour 2.13, rule 11). Every head
/// asks with two half queries, each under the one LayerNorm; value i keys + j has the score <q0, key i of the first
/// half> + <q1, key j of the second>. The sum of the best `topk` values of each head, weighted by softmax of the
/// scores. Source: Lample et al. 2019, "Large Memory Layers with Product Keys"; LayerNorm in place of BatchNorm, which
/// would let a token see later ones.
struct ProductKeyMemory {
  ProductKeyMemory(const ProductKeyOptions& options, Initializer& init);

  Var operator()(const Scope& scope, const Var& x) const;
  template <class See>
  void visit(See&& see) {
    see("to_queries", to_queries);
    see("norm", norm);
    see("keys", keys);
    see("values", values);
  }

  ProductKeyOptions options;
  Linear to_queries;  // its features: halves, then heads, then the width of a half
  LayerNorm norm;
  Parameter keys;    // (heads, keys, 2, half)
  Embedding values;  // (keys^2, D), one table for all heads
};

}  // namespace sinkhorn
