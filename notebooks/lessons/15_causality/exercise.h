// Causal attention over sorted buckets, one sequence at a time: what the exercise is to mend. All tensors are f64.
#pragma once
#include "autograd/tensor.h"

namespace sinkhorn::lesson {

/// One sequence of T tokens in h sorting heads, the second half of which (from h / 2 on) are rotated.
struct Layer {
  Tensor q, k, v;               // (h, T, d)
  Tensor null_key, null_value;  // (h, d): stands in all b slots of the null block
  std::int64_t bucket = 1;      // b; T is a multiple of it
  double temperature = 1;       // of the choice among buckets
};

/// y (h, T, d). Every bucket of queries chooses one block, the null block or an earlier bucket, and sees it together
/// with what lies behind in its own bucket. Row t depends on rows 0 .. t of q, k and v alone, to the last bit.
Tensor causal_attention(const Layer& layer);

}  // namespace sinkhorn::lesson
