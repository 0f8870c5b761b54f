// Attention within buckets, over the buckets that routing chose, without ever holding the scores of more than one
// bucket.
#pragma once
#include "autograd/tape.h"

namespace sinkhorn {

/// How the heads of one causal attention layer look at a sequence of `length` tokens. The first `local` heads see their
/// own window and the one before. The others see `n_top` chosen blocks (nulls or earlier buckets) and their own bucket;
/// the second half of them works on the sequence rotated left by bucket - 1 (behaviour 2.9, 2.10).
struct AttentionShape {
  std::int64_t batch, length, heads, local, width, bucket, n_top;

  std::int64_t sorting() const { return heads - local; }
  std::int64_t buckets() const { return length / bucket; }
  /// How far the sequence of sorting head `s` is rotated to the left.
  std::int64_t shift(std::int64_t s) const { return s >= sorting() / 2 ? bucket - 1 : 0; }
};

namespace kernels {

template <class T>
struct BucketedAttention {
  /// Everything both passes read. Rows of q are (B, T, H, d); of kv (B, T, 2, H, d).
  struct Arguments {
    AttentionShape shape;
    const T *q, *kv;
    const T* weights;                  // (B, h, N, n)
    const std::int32_t* picks;         // (B, h, N, n): -1 nothing, j < n a null, n + j bucket j
    const T *null_keys, *null_values;  // (h, 1, d)
    const bool* mask;                  // (B, T), true = real; null: all real
    double dropout;
    RandomBits local_bits, sorting_bits;  // element ((g * N + u) * b + i) * J + j of the probabilities (G, N, b, J)
  };
  struct Flows {
    T *q, *kv, *weights, *null_keys, *null_values;
  };
  static void forward(Cpu, const Arguments& in, T* y, Real<T>* log_sum_exp);
  static void forward(Cuda, const Arguments& in, T* y, Real<T>* log_sum_exp);
  static void backward(Cpu, const Arguments& in, const Real<T>* log_sum_exp, const T* dy, const Flows& d);
  static void backward(Cuda, const Arguments& in, const Real<T>* log_sum_exp, const T* dy, const Flows& d);
};

}  // namespace kernels

namespace ops {

/// Inputs q (B, T, H, d), kv (B, T, 2, H, d), weights (B, h, N, n), null_keys and null_values (h, 1, d), picks (B, h,
/// N, n) i32, optional mask (B, T) bool. Output (B, T, H, d); others: log-sum-exp (B, H, T) in f32 or better, slots in
/// rotated order. With S = w * q k' / sqrt(d) over the allowed keys:   P = softmax(S),  y = (P * w) v
///   dS = P * (dP - <dP, P>),  dq = dS (w k),  dk = w dS' q,  dv = w P' dy,  dw = <dS, q k'> + <P, dy v'>
struct BucketedAttention {
  static constexpr std::string_view name = "bucketed_attention";
  std::int64_t bucket = 1;
  std::int64_t local = 0;
  double dropout = 0;
  Rng rng = {};
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<BucketedAttention>> cases();
};

}  // namespace ops

/// The choices of causal routing: weights (B, h, N, n), differentiable, and picks (B, h, N, n) i32 (behaviour 2.8).
struct Routing {
  Var weights;
  Tensor picks;
};

/// Causal attention of all heads of a layer: q (B, T, H, d), kv (B, T, 2, H, d) with keys first. The first `local`
/// heads are local, the others use `routing` and the null keys and values (h, 1, d). Rows of padded queries, and rows
/// with nothing to attend to, are 0. `dropout` acts on the probabilities. Returns (B, T, H, d). Errors name the extents
/// that do not fit.
Var bucketed_attention(const Var& q, const Var& kv, const Routing& routing, const Var& null_keys,
                       const Var& null_values, std::int64_t bucket, std::int64_t local, const Tensor& mask = {},
                       double dropout = 0, Rng rng = {});

}  // namespace sinkhorn
