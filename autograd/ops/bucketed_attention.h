// Attention within buckets, over the buckets that routing chose, without ever holding the scores of more than one
// bucket.
#pragma once
#include "autograd/tape.h"

namespace sinkhorn {

/// Who sees whom in one attention layer (behaviour 2.6, 2.9, 2.10; rules 7 and 8). The first `local` heads see their
/// own window of `bucket` tokens and the one before and, unless causal, the one after. The others see the key buckets
/// of `key_bucket` tokens that routing chose and, with `own`, their own bucket after them. Causal: of their own bucket
/// only what lies behind; and the second half of the sorting heads works on the sequence rotated left by bucket - 1.
struct AttentionPattern {
  std::int64_t bucket = 1, key_bucket = 1, local = 0;
  bool causal = true, own = true;
};

/// A pattern at work on queries of `length` and keys of `key_length` tokens. Each of `lists` rows of routing names
/// `n_top` blocks: one row for every query bucket, or one for all of them (SortCut). In a causal layer picks below
/// `nulls` = n_top are null blocks.
struct AttentionShape {
  AttentionPattern pattern;
  std::int64_t batch, length, key_length, heads, width, lists, n_top;
  bool packed = false;  // queries, keys and values of a token lie behind each other

  /// Elements from a token's queries, or keys, to those of the next. Its values lie heads * width behind its keys.
  std::int64_t query_stride() const { return (packed ? 3 : 1) * heads * width; }
  std::int64_t key_stride() const { return (packed ? 3 : 2) * heads * width; }
  std::int64_t sorting() const { return heads - pattern.local; }
  std::int64_t buckets() const { return length / pattern.bucket; }
  std::int64_t key_buckets() const { return key_length / pattern.key_bucket; }
  std::int64_t nulls() const { return pattern.causal ? n_top : 0; }
  /// How far the sequence of sorting head `s` is rotated to the left.
  std::int64_t shift(std::int64_t s) const { return pattern.causal && s >= sorting() / 2 ? pattern.bucket - 1 : 0; }
};

namespace kernels {

template <class T>
struct BucketedAttention {
  /// Everything both passes read. q is (B, T, H, d), kv (B, S, 2, H, d); or, packed, parts of one (B, T, 3, H, d).
  struct Arguments {
    AttentionShape shape;
    const T *q, *kv;
    const Real<T>* weights;            // (B, h, lists, n)
    const std::int32_t* picks;         // (B, h, lists, n): -1 nothing, j < nulls a null, nulls + j key bucket j
    const T *null_keys, *null_values;  // (h, 1, d); null where there are no null blocks
    const bool *mask, *key_mask;       // (B, T) and (B, S), true = real; null: all real
    double dropout;
    RandomBits local_bits, sorting_bits;  // element ((g * N + u) * b + i) * J + j of the probabilities (G, N, b, J)
  };
  /// y (B, T, H, d); rest (B, T, H, d) or null: what rounding to bf16 took from y, of which <dP, P> is made;
  /// log_sum_exp (B, H, T), slots in rotated order.
  struct Results {
    T *y, *rest;
    Real<T>* log_sum_exp;
  };
  struct Flows {
    T *q, *kv;  // laid out as q and kv are
    Real<T>* weights;
    T *null_keys, *null_values;
  };
  static void forward(Cpu, const Arguments& in, const Results& out);
  static void forward(Cuda, const Arguments& in, const Results& out);
  static void backward(Cpu, const Arguments& in, const Results& out, const T* dy, const Flows& d);
  static void backward(Cuda, const Arguments& in, const Results& out, const T* dy, const Flows& d);
};

}  // namespace kernels

namespace ops {

/// Inputs q (B, T, H, d), kv (B, S, 2, H, d), weights (B, h, lists, n) in f32 or better, null_keys and null_values
/// (h, 1, d) or none, picks (B, h, lists, n) i32, optional masks (B, T) and (B, S) bool. Or, with no kv, q is all three
/// packed, (B, T, 3, H, d), and so is its gradient. Output (B, T, H, d); others:
/// log-sum-exp (B, H, T) in f32 or better, slots in rotated order. With S = w * q k' / sqrt(d) over the allowed keys:
///   P = softmax(S),  y = (P * w) v
///   dS = P * (dP - <dP, P>),  dq = dS (w k),  dk = w dS' q,  dv = w P' dy,  dw = <dS, q k'> + <P, dy v'>
/// where <dP, P> = <dy, y> for each query (Dao et al. 2022, appendix B).
struct BucketedAttention {
  static constexpr std::string_view name = "bucketed_attention";
  AttentionPattern pattern = {};
  double dropout = 0;
  Rng rng = {};
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<BucketedAttention>> cases();
};

}  // namespace ops

/// The choices of a sort net by top-k: weights, differentiable, and picks i32, both (B, h, lists, n). In causal
/// self-attention a pick below n is a null, n + j is key bucket j; elsewhere j is key bucket j (behaviour 2.3, 2.8).
struct Routing {
  Var weights;
  Tensor picks;
};

/// One token that stands in every slot of a null block, for each sorting head: (h, 1, d) each. Causal layers have them.
struct NullBlock {
  Var keys, values;
};

/// Which queries (B, T) and keys (B, S) are real, bool; a missing mask means all.
struct AttentionMasks {
  Tensor queries, keys;
};

/// Dropout of attention probabilities, and its stream.
struct AttentionDropout {
  double rate = 0;
  Rng rng = {};
};

/// Attention of all heads of a layer: q (B, T, H, d), kv (B, S, 2, H, d) with keys first; or no kv, and q is queries,
/// keys and values packed, (B, T, 3, H, d). The first `local` heads are local, the others use `routing` and, if causal,
/// the null block. Rows of padded queries, and rows with nothing to attend to, are 0. Returns (B, T, H, d). Errors name
/// the extents that do not fit.
Var bucketed_attention(const Var& q, const Var& kv, const Routing& routing, const NullBlock& null,
                       const AttentionPattern& pattern, const AttentionMasks& masks = {},
                       const AttentionDropout& dropout = {});

}  // namespace sinkhorn
