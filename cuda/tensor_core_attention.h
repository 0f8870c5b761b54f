// Bucketed attention in bf16 on tensor cores. Its scalar twin, for every other type, width and card, is in
// bucketed_attention.cu; both read the pattern from attention_pattern.h.
#pragma once
#include "autograd/ops/bucketed_attention.h"

namespace sinkhorn::cuda {

/// Forward and backward of kernels::BucketedAttention<bf16>, with the same results but for rounding: probabilities and
/// the gradients of scores enter their products in bf16, sums are kept in f32. Equal from run to run.
struct TensorCoreAttention {
  using Op = kernels::BucketedAttention<bf16>;
  /// Whether this card has them (compute capability 8.0), and the width of a head is 32 or 64.
  static bool takes(const AttentionShape& shape);
  static void forward(const Op::Arguments& in, const Op::Results& out);
  static void backward(const Op::Arguments& in, const Op::Results& out, const bf16* dy, const Op::Flows& flows);
};

}  // namespace sinkhorn::cuda
