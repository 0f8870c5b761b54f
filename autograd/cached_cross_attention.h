// Cross-attention for sequences that grow token by token: a context that stays, and the attention of the newest token.
// The numbers are those of the sort net and bucketed_attention on the whole sequence.
#pragma once
#include "autograd/cached_attention.h"

namespace sinkhorn {

/// The memory of one cross-attention layer of a causal decoder for `rows` sequences, each with a context of
/// `context_length` tokens in buckets of `key_bucket`. At its first token a bucket of `bucket` queries chooses `n_top`
/// of these for all its tokens; with `shared` the first bucket chooses for all (SortCut).
struct CrossCacheShape {
  std::int64_t rows, context_length, heads, width, bucket, key_bucket, n_top;
  bool shared;

  std::int64_t key_buckets() const { return context_length / key_bucket; }
};

namespace kernels {

template <class T>
struct CachedCrossAttention {
  struct Memory {
    CrossCacheShape shape;
    double temperature;
    const T* kv;          // (rows, S, 2, H, d)
    const T* summaries;   // (rows, H, M, d): means of the keys of each bucket
    const bool* mask;     // (rows, S), true = real; null: all real
    double* query_sums;   // (rows, H, d)
    T* weights;           // (rows, H, n): of the buckets that the bucket in progress looks at
    std::int32_t* picks;  // (rows, H, n); -1: none was left
  };
  /// Adds the queries q (R, T, H, d), and routes the buckets that the last of them are in.
  static void remember(Cpu, const Memory& memory, const Placement& tokens, const T* q);
  static void remember(Cuda, const Memory& memory, const Placement& tokens, const T* q);
  /// y (R, H, d): what the last token of each entry sees, for its query in q (R, H, d).
  static void attend(Cpu, const Memory& memory, const Placement& tokens, const T* q, T* y);
  static void attend(Cuda, const Memory& memory, const Placement& tokens, const T* q, T* y);
};

}  // namespace kernels
}  // namespace sinkhorn
