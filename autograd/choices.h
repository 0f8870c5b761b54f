// Masks that a model makes for itself: which buckets may be chosen, and which hold a token.
#pragma once
#include "autograd/dispatch.h"

namespace sinkhorn {

/// A causal sort net's choices: for each query bucket `n_top` nulls, then `buckets` key buckets of `bucket` tokens. The
/// second half of the heads sees the sequence rotated left by bucket - 1 (behaviour 2.9).
struct ChoiceShape {
  std::int64_t batch, heads, buckets, bucket, n_top;

  std::int64_t columns() const { return n_top + buckets; }
};

namespace kernels {

struct Choices {
  /// open (B, h, N, n + N): every null, and of the buckets before u those with a real token; of `mask` (B, N * bucket),
  /// null: all are real.
  static void causal(Cpu, const ChoiceShape& shape, const bool* mask, bool* open);
  static void causal(Cuda, const ChoiceShape& shape, const bool* mask, bool* open);
  /// some_i: whether one of mask's elements i * bucket .. (i + 1) * bucket - 1 is true
  static void with_tokens(Cpu, std::int64_t count, std::int64_t bucket, const bool* mask, bool* some);
  static void with_tokens(Cuda, std::int64_t count, std::int64_t bucket, const bool* mask, bool* some);
  /// y_i = a_i and b_i
  static void both(Cpu, std::int64_t count, const bool* a, const bool* b, bool* y);
  static void both(Cuda, std::int64_t count, const bool* a, const bool* b, bool* y);
};

}  // namespace kernels
}  // namespace sinkhorn
