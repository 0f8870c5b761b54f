// Routing by index: differentiable top-k, the gather of the chosen buckets, and its dense twin.
#pragma once
#include "autograd/ops/softmax.h"

namespace sinkhorn {
namespace kernels {

template <class T>
struct TopK {
  /// Per row of logits: n picks and their weights. `fixed`, if not null, holds the picks to use.
  static void forward(Cpu, Rows rows, std::int64_t n, Real<T> temperature, const T* logits, const std::int32_t* fixed,
                      T* weights, std::int32_t* picks);
  static void forward(Cuda, Rows rows, std::int64_t n, Real<T> temperature, const T* logits, const std::int32_t* fixed,
                      T* weights, std::int32_t* picks);
  static void backward(Cpu, Rows rows, std::int64_t n, Real<T> temperature, const T* logits, const std::int32_t* picks,
                       const T* dweights, T* dlogits);
  static void backward(Cuda, Rows rows, std::int64_t n, Real<T> temperature, const T* logits, const std::int32_t* picks,
                       const T* dweights, T* dlogits);
};

/// x (groups, buckets, size), weights and picks (groups, rows); a bucket is seen as `size` numbers.
struct Routes {
  std::int64_t groups, buckets, size, rows;
};

template <class T>
struct GatherBuckets {
  static void forward(Cpu, const Routes& routes, const T* x, const T* weights, const std::int32_t* picks, T* y);
  static void forward(Cuda, const Routes& routes, const T* x, const T* weights, const std::int32_t* picks, T* y);
  /// Each of dx, dweights only if not null.
  static void backward(Cpu, const Routes& routes, const T* x, const T* weights, const std::int32_t* picks, const T* dy,
                       T* dx, T* dweights);
  static void backward(Cuda, const Routes& routes, const T* x, const T* weights, const std::int32_t* picks, const T* dy,
                       T* dx, T* dweights);
};

template <class T>
struct SortingMatrix {
  static void forward(Cpu, std::int64_t rows, std::int64_t columns, const T* weights, const std::int32_t* picks, T* y);
  static void forward(Cuda, std::int64_t rows, std::int64_t columns, const T* weights, const std::int32_t* picks, T* y);
  static void backward(Cpu, std::int64_t rows, std::int64_t columns, const std::int32_t* picks, const T* dy,
                       T* dweights);
  static void backward(Cuda, std::int64_t rows, std::int64_t columns, const std::int32_t* picks, const T* dy,
                       T* dweights);
};

}  // namespace kernels

namespace ops {

/// n times: p = softmax(logits / temperature) over the entries left, pick the largest logit j, emit the weight p_j and
/// leave j out. The second input may hold the picks.
///   dlogits += dweight p_j (delta_j - p) / temperature for each pick, over what it was chosen from
struct TopK {
  static constexpr std::string_view name = "top_k";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<TopK>> cases();

  std::int64_t n = 1;
  double temperature = 1;
};

/// Block i of row u is weights[u, i] x[picks[u, i]].      dx[v] = sum of weight dy where v was picked,
/// dweight = <dy block, x[pick]>
struct GatherBuckets {
  static constexpr std::string_view name = "gather_buckets";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<GatherBuckets>> cases();
};

/// y[u n + i, picks[u, i]] = weights[u, i], 0 elsewhere.      dweight = dy at the same place
struct SortingMatrix {
  static constexpr std::string_view name = "sorting_matrix";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<SortingMatrix>> cases();

  std::int64_t columns = 1;
};

}  // namespace ops

/// What top_k chose: weights (..., rows, n), and picks i32 of that shape, -1 (weight 0) where nothing was left.
struct TopK {
  Var weights;
  Tensor picks;
};

/// Differentiable top-k of logits (..., rows, columns): see ops::TopK. Of equal logits the lowest column wins; entries
/// of -inf are never chosen. `picks` (i32, -1 for none) replays a choice instead of searching. An Error if n < 1, if
/// temperature <= 0, or if a given pick is outside the columns.
/// Source: Tay et al. 2020, "Sparse Sinkhorn Attention", and the published package's `differentiable_topk`.
TopK top_k(const Var& logits, std::int64_t n, double temperature, const Tensor& picks = {});

/// x (G, M, c, d), weights (G, N, n), picks i32 (G, N, n) -> (G, N, n c, d): the n chosen buckets of each row one after
/// the other, each times its weight; 0 where the pick is -1. An Error names a pick outside 0 .. M-1.
Var gather_buckets(const Var& x, const Var& weights, const Tensor& picks);

/// weights and picks (G, N, n) -> (G, N n, columns), dense: gather_buckets(x, weights, picks) is the product of this
/// matrix and x as (G, columns, c d).
Var sorting_matrix(const Var& weights, const Tensor& picks, std::int64_t columns);

}  // namespace sinkhorn
