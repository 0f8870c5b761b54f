// Matrix products on the device: cuBLAS on a GPU; on the emulated one the CPU's, since cuBLAS is no kernel of ours.
#pragma once
#include <cstdint>
#include <string_view>

#include "autograd/dtype.h"

namespace sinkhorn::cuda {

/// For i = 0 .. batch-1: C_i = op(A_i) op(B_i) + beta C_i, compact row-major matrices, op(A) (m, k), op(B) (k, n), C
/// (m, n); matrix i lies i times the step behind the first. C is T, or f32 where T is bf16. In f32 without TF32 unless
/// allowed; bf16 with sums in f32. Same bits in every run.
template <class T, class C>
void gemm(std::string_view op, std::int64_t batch, std::int64_t m, std::int64_t n, std::int64_t k, bool transpose_a,
          bool transpose_b, const T* a, std::int64_t a_step, const T* b, std::int64_t b_step, Real<T> beta, C* c,
          std::int64_t c_step);

/// Whether f32 products may round their operands to TF32 (10 bits of mantissa) on a GPU's tensor cores, from here on.
void allow_tf32(bool allowed);

}  // namespace sinkhorn::cuda
