// The causal sort nets: which earlier buckets each bucket of queries looks at (behaviour 2.8).
#pragma once
#include "nn/module.h"

namespace sinkhorn {

/// Scores the buckets a query bucket may choose, and picks the best n by the differentiable top-k. Without `linear` it
/// is the attention sort net, which has no parameters; with it, the simple one.
struct CausalSortNet {
  /// Simple: a table (1, h, 2d, max_buckets + n) drawn from N(0, 1).
  static CausalSortNet simple(std::int64_t heads, std::int64_t width, std::int64_t max_buckets, std::int64_t n_top,
                              Initializer& init) {
    return {init.normal({1, heads, 2 * width, max_buckets + n_top}, 1, true)};
  }

  /// Routing of the heads from `local` on, from packed q (B, T, H, d) and kv (B, T, 2, H, d). Column j < n is a null, n
  /// + j key bucket j; a query bucket u may choose any null and the buckets before u that hold a real token. The
  /// sequence of the second half of the heads is rotated left by bucket - 1. `mask` (B, T) bool: true = real.
  Routing operator()(const Scope& scope, const Var& q, const Var& kv, std::int64_t bucket, std::int64_t local,
                     std::int64_t n_top, double temperature, const Tensor& mask) const;

  template <class See>
  void visit(See&& see) {
    see("sort_net.linear", linear);
  }

  Parameter linear = {};

 private:
  Var scores(const Scope& scope, const Var& q, const Var& kv, std::int64_t bucket, std::int64_t local,
             std::int64_t n_top, const Tensor& mask) const;
};

/// What causality and padding leave to choose: bool (B, h, N, n + N) on the CPU, true = may be chosen.
Tensor causal_choices(std::int64_t batch, std::int64_t heads, std::int64_t buckets, std::int64_t bucket,
                      std::int64_t n_top, const Tensor& mask);

}  // namespace sinkhorn
