// Attention for sequences that grow token by token: what a layer remembers of them, and the attention of the newest
// token. The numbers are those of bucket_summary, top_k and bucketed_attention on the whole sequence.
#pragma once
#include "autograd/dispatch.h"

namespace sinkhorn {

/// The memory of one causal attention layer for `rows` sequences of up to `capacity` tokens, a multiple of `bucket`.
/// The first `local` heads see their own window and the one before; the others `n_top` chosen blocks and their own
/// bucket. The buckets of the second half of these begin at token bucket - 1, and the tokens before it see only each
/// other (behaviour 2.9: the slots that wrap around).
struct CacheShape {
  std::int64_t rows, capacity, heads, local, width, bucket, n_top;

  std::int64_t sorting() const { return heads - local; }
  std::int64_t buckets() const { return capacity / bucket; }
  /// The token at which the first bucket of sorting head `s` begins.
  std::int64_t shift(std::int64_t s) const { return s >= sorting() / 2 ? bucket - 1 : 0; }
};

namespace kernels {

/// Where new tokens belong: entry r of a batch of `count` holds the tokens begin[r] .. begin[r] + lengths[r] - 1 of row
/// rows[r] of the memory, and then padding up to `length`.
struct Placement {
  std::int64_t count, length;
  const std::int32_t *rows, *begin, *lengths;
};

template <class T>
struct CachedAttention {
  struct Memory {
    CacheShape shape;
    double temperature;
    T *keys, *values;               // (rows, H, capacity, d)
    double *query_sums, *key_sums;  // (rows, h, d): over all tokens from `shift` on
    double* mean_sums;              // (rows, h, d): running means of the keys, summed over the bucket in progress
    T* summaries;                   // (rows, h, buckets, d): those sums for the buckets before it
    T* weights;                     // (rows, h, n): of the blocks that the bucket in progress looks at
    std::int32_t* picks;            // (rows, h, n): j < n a null, n + j bucket j
  };
  /// Adds tokens with queries, keys and values qkv (R, T, 3, H, d), and routes the buckets that the last of them are
  /// in. `table` (h, 2d, columns) is that of the simple sort net; null: the attention sort net.
  static void remember(Cpu, const Memory& memory, const Placement& tokens, const T* qkv, const T* table,
                       std::int64_t columns);
  static void remember(Cuda, const Memory& memory, const Placement& tokens, const T* qkv, const T* table,
                       std::int64_t columns);
  /// y (R, H, d): what the last token of each entry sees, for its query in qkv (R, 3, H, d); null blocks are (h, 1, d).
  static void attend(Cpu, const Memory& memory, const Placement& tokens, const T* qkv, const T* null_keys,
                     const T* null_values, T* y);
  static void attend(Cuda, const Memory& memory, const Placement& tokens, const T* qkv, const T* null_keys,
                     const T* null_values, T* y);
};

}  // namespace kernels
}  // namespace sinkhorn
