// Routing by streaming: which key buckets each query bucket takes, and their weights, without the matrix of all scores.
#pragma once
#include "autograd/ops/routing.h"

namespace sinkhorn {
namespace kernels {

/// Queries (B, h, N, d), keys (B, h, M, d). The logits of query bucket u are `nulls` zeros, then
/// scale <query u, key j> for each key bucket j that is open to it: for all j, or if causal for j < u, unless `open`
/// (B, parts, M) says no. With two parts the second is that of the heads from h / 2 on.
struct BucketRoutes {
  std::int64_t batch, heads, rows, columns, width, nulls, parts;
  bool causal;
  int n;  // picks of a row
  double scale, temperature;

  SINKHORN_HD std::int64_t groups() const { return batch * heads; }
  SINKHORN_HD std::int64_t open_row(std::int64_t group) const {
    const std::int64_t sequence = group / heads, head = group - sequence * heads;
    return (sequence * parts + (parts == 2 && head >= heads / 2 ? 1 : 0)) * columns;
  }
  SINKHORN_HD bool is_open(std::int64_t row, std::int64_t column) const {
    return row < rows && column < columns && (!causal || column < row);
  }
};

template <class T>
struct RouteBuckets {
  /// weights and picks (B, h, N, n); chosen (B, h, N, n, 3): of each pick its logit, and shift and sum of the
  /// exponentials of what it was chosen among. `fixed`, if not null, holds the picks to use.
  static void forward(Cpu, const BucketRoutes& routes, const T* queries, const T* keys, const bool* open,
                      const std::int32_t* fixed, T* weights, std::int32_t* picks, Real<T>* chosen);
  static void forward(Cuda, const BucketRoutes& routes, const T* queries, const T* keys, const bool* open,
                      const std::int32_t* fixed, T* weights, std::int32_t* picks, Real<T>* chosen);
  /// Each of dqueries, dkeys only if not null.
  static void backward(Cpu, const BucketRoutes& routes, const T* queries, const T* keys, const bool* open,
                       const std::int32_t* picks, const Real<T>* chosen, const T* dweights, T* dqueries, T* dkeys);
  static void backward(Cuda, const BucketRoutes& routes, const T* queries, const T* keys, const bool* open,
                       const std::int32_t* picks, const Real<T>* chosen, const T* dweights, T* dqueries, T* dkeys);
};

}  // namespace kernels

namespace ops {

/// top_k (autograd/ops/routing.h) of logits that are made as they are looked at, and made again in backward. Inputs
/// queries, keys, open or none, and picks to use or none.
///     dlogit as in TopK;  dquery_u = scale sum_j dlogit_uj key_j,  dkey_j = scale sum_u dlogit_uj query_u
struct RouteBuckets {
  static constexpr std::string_view name = "route_buckets";
  std::int64_t n = 1;
  double temperature = 1;
  bool causal = true;
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<RouteBuckets>> cases();

 private:
  kernels::BucketRoutes routes(Inputs in) const;
};

}  // namespace ops

/// What a sort net chooses between.
struct BucketScores {
  Var queries, keys;  // (B, h, N, d), (B, h, M, d)
  Tensor open = {};   // bool (B, 1, M), or (B, 2, M) for the two halves of the heads; none: all are open
  bool causal = true;
};

/// Of every query bucket the n best, and their weights, by the differentiable top-k of <query, key> / sqrt(d): exactly
/// the picks of top_k, of equals the lowest column, in memory O(N + M) and time O(N M). Causal: column j < n is a null
/// of logit 0, n + j is key bucket j, open to the buckets behind it; else column j is key bucket j. n is at most
/// kMostStreamedPicks. `picks` (B, h, N, n) replays a choice. Weights (B, h, N, n) have the type of the queries.
TopK route_buckets(const BucketScores& scores, std::int64_t n, double temperature, const Tensor& picks = {});

}  // namespace sinkhorn
