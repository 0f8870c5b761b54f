// Matrix products on the device: cuBLAS on a GPU; on the emulated one the CPU's, since cuBLAS is no kernel of ours.
#pragma once
#include <cstdint>
#include <string_view>

#include "autograd/dtype.h"

namespace sinkhorn::cuda {

/// For i = 0 .. batch-1: D_i = alpha op(A_i) op(B_i) + beta C_i + bias, compact row-major matrices, op(A) (m, k), op(B)
/// (k, n), C and D (m, n); matrix i lies i times the step behind the first. C is T, or f32 where T is bf16.
template <class T, class C>
struct Gemm {
  std::int64_t m, n, k;
  bool transpose_a, transpose_b;
  const T *a, *b;
  C* d;
  Real<T> alpha = 1, beta = 0;
  const C* c = nullptr;     // null: d, which may also be given; else it does not overlap d
  const C* bias = nullptr;  // (n), added to every row as it is; null: none
  std::int64_t batch = 1, a_step = 0, b_step = 0, d_step = 0;
};

/// In f32 without TF32 unless allowed, large ones by tensor cores where these can (planes_gemm.h); bf16 with sums in
/// f32. Same bits in every run.
template <class T, class C>
void gemm(std::string_view op, const Gemm<T, C>& product);

/// Products of f32 by cuBLAS, whatever their shape: what gemm is compared with.
void library_gemm(std::string_view op, const Gemm<float, float>& product);

/// Whether f32 products may round their operands to TF32 (10 bits of mantissa) on a GPU's tensor cores, from here on;
/// attention then rounds them to 16 bits.
void allow_tf32(bool allowed);
bool allows_tf32();

}  // namespace sinkhorn::cuda
