// Bucketed attention on tensor cores. Its scalar twin, for every other type, width and card, is in
// bucketed_attention.cu; both read the pattern from attention_pattern.h.
#pragma once
#include "autograd/ops/bucketed_attention.h"

namespace sinkhorn::cuda {

/// Forward and backward of kernels::BucketedAttention<T>, T bf16 or float, with the same results but for rounding. In
/// bf16 probabilities and the gradients of scores enter their products rounded, sums are kept in f32. In f32 all
/// operands do in planes of bf16 (cuda/gpu/mma.h): with 24 bits, or 16 where TF32 is allowed (cuda/blas.h). Equal from
/// run to run.
template <class T>
struct TensorCoreAttention {
  using Op = kernels::BucketedAttention<T>;
  using Arguments = typename Op::Arguments;
  using Results = typename Op::Results;
  using Flows = typename Op::Flows;
  /// Whether this card has them (compute capability 8.0) and the shared memory that they need, and the width of a head
  /// is a multiple of 8, up to 128.
  static bool takes(const AttentionShape& shape);
  static void forward(const Arguments& in, const Results& out);
  static void backward(const Arguments& in, const Results& out, const T* dy, const Flows& flows);
};

}  // namespace sinkhorn::cuda
