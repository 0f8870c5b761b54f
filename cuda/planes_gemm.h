// f32 matrix products on Hopper's tensor cores; gemm (blas.h) chooses between them and cuBLAS.
#pragma once
#include "cuda/blas.h"

namespace sinkhorn::cuda {

/// gemm of f32 from operands in two planes of f16, each 23 bits of a number (gpu/planes_gemm.cu): every product of two
/// numbers is right to 2^-21 of its size and 2^-38 of that of the largest such product among 64 along k, so a result to
/// about what sums in f32 leave of it. A row of the result depends on its row of op(A) alone. A row or column with a
/// NaN or an infinity gives results that are not finite; so may rows and columns whose largest numbers multiply to more
/// than f32 holds, and where these multiply to less than 2^-120 nothing may be left. Same bits in every run.
struct PlanesGemm {
  using Product = Gemm<float, float>;
  /// Whether this GPU, and what was compiled for it, has the instructions.
  static bool is_here();
  /// Whether it should be faster than cuBLAS here. Of the shape alone.
  static bool pays(const Product& product);
  /// In how many pieces k is cut where one is not enough to keep the GPU busy. Of the shape alone.
  static std::int64_t pieces_of(const Product& product);
  /// batch = 1, k > 0; k is cut into `pieces`, at most one for every 64 of it.
  static void multiply(std::string_view op, const Product& product, std::int64_t pieces);
};

}  // namespace sinkhorn::cuda
