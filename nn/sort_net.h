// Sort nets: which key buckets each bucket of queries looks at (behaviour 2.2, 2.3, 2.5, 2.8).
#pragma once
#include "nn/module.h"

namespace sinkhorn {

/// Scores the buckets a query bucket may choose, and picks the best n by the differentiable top-k. Without `linear` it
/// is the attention sort net, which has no parameters; with it, the simple one. The attention sort net looks at its
/// scores as it makes them (route_buckets) and never holds all N x N; `composed`, or somebody who watches them, has
/// them made as a matrix, with the same picks.
struct CausalSortNet {
  /// Simple: a table (1, h, 2d, max_buckets + n) drawn from N(0, 1).
  static CausalSortNet simple(std::int64_t heads, std::int64_t width, std::int64_t max_buckets, std::int64_t n_top,
                              Initializer& init) {
    return {init.normal({1, heads, 2 * width, max_buckets + n_top}, 1, true)};
  }

  /// Routing of the heads from `local` on, from q (B, T, H, d) and kv (B, T, 2, H, d), or from both packed in q
  /// (B, T, 3, H, d) with no kv. Column j < n is a null, n + j key bucket j; a query bucket u may choose any null and
  /// the buckets before u that hold a real token. The sequence of the second half of the heads is rotated left by
  /// bucket - 1. `mask` (B, T) bool: true = real. Of a group's heads the numbers are those of the group.
  Routing operator()(const Scope& scope, const Var& q, const Var& kv, std::int64_t bucket, std::int64_t local,
                     std::int64_t n_top, double temperature, const Tensor& mask, bool composed = false,
                     const HeadGroup& group = {}) const;

  template <class See>
  void visit(See&& see) {
    see("sort_net.linear", linear);
  }

  Parameter linear = {};

 private:
  Var scores(const Scope& scope, const Var& q, const Var& kv, std::int64_t bucket, std::int64_t local,
             std::int64_t n_top, const Tensor& mask, const HeadGroup& group) const;
};

/// How a sort net that looks in both directions chooses.
struct SortOptions {
  AttentionPattern pattern;
  std::int64_t n_top = 1;    // picks of a query bucket
  std::int64_t sortcut = 0;  // buckets that all query buckets share; 0: each has its own
  double temperature = 1;
  std::int64_t iterations = 1;  // of Sinkhorn normalisation
  // Cross-attention of a causal decoder: a query bucket is known by its first token's past.
  bool causal_queries = false;
  bool composed = false;  // scores as a matrix, see CausalSortNet
  HeadGroup group = {};   // whose heads the others tell of
};

/// The sort net of non-causal self-attention and of all cross-attention. Every key bucket with a real token is open to
/// every query bucket. Without `linear` it compares mean queries and keys; with it (self-attention over one fixed
/// length) it maps the sums of a bucket to a score per key bucket.
struct SortNet {
  /// Simple: a table (1, h, 2d, max_buckets) drawn from N(0, 1).
  static SortNet simple(std::int64_t heads, std::int64_t width, std::int64_t max_buckets, Initializer& init) {
    return {init.normal({1, heads, 2 * width, max_buckets}, 1, true)};
  }

  /// Top-k: min(n_top, M) key buckets for each query bucket, (B, h, N, n); with SortCut one list of min(sortcut, M) for
  /// all, (B, h, 1, k). From q (B, T, H, d) and kv (B, S, 2, H, d), or packed as above.
  Routing route(const Scope& scope, const Var& q, const Var& kv, const SortOptions& options,
                const AttentionMasks& masks) const;
  /// Gumbel-Sinkhorn: the sorting matrix (B, h, N, M), with SortCut its first min(sortcut, M, N) rows. Columns sum to
  /// 1; that of a bucket without a real token is 0. Noise comes with training only (rule 10).
  Var sorting_matrix(const Scope& scope, const Var& q, const Var& kv, const SortOptions& options,
                     const AttentionMasks& masks) const;

  template <class See>
  void visit(See&& see) {
    see("sort_net.linear", linear);
  }

  Parameter linear = {};

 private:
  /// What the attention sort net compares.
  BucketScores compared(const Var& q, const Var& kv, const SortOptions& options, const AttentionMasks& masks,
                        bool one_row) const;
  Var scores(const Scope& scope, const Var& q, const Var& kv, const SortOptions& options, const AttentionMasks& masks,
             bool one_row) const;
};

/// What causality and padding leave to choose: bool (B, h, N, n + N), true = may be chosen.
Tensor causal_choices(std::int64_t batch, std::int64_t heads, std::int64_t buckets, std::int64_t bucket,
                      std::int64_t n_top, const Tensor& mask, Device device = Device::cpu);

/// Key buckets that hold a real token, for the heads before and from h / 2 on, which see the sequence rotated left by
/// bucket - 1: bool (B, 2, N), of `mask` (B, T); empty without a mask.
Tensor rotated_buckets_with_tokens(const Tensor& mask, std::int64_t bucket, Device device = Device::cpu);

/// Key buckets that hold a real token: bool (B, M), of `mask` (B, S). Without a mask all of them do.
Tensor buckets_with_tokens(std::int64_t batch, std::int64_t length, std::int64_t bucket, const Tensor& mask,
                           Device device = Device::cpu);

}  // namespace sinkhorn
