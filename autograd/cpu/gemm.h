// Matrix products on the CPU: C = alpha op(A) op(B) + beta C, row-major, op = transpose or nothing.
#pragma once
#include <algorithm>
#include <cstdint>

#include "autograd/dtype.h"
#include "autograd/parallel.h"

namespace sinkhorn::cpu {

/// On the calling thread, for kernels that are themselves cut into chunks. op(A) is (m, k), op(B) is (k, n), C is (m,
/// n); lda, ldb, ldc are the distances of rows as stored. With beta = 0, C is written without being read. Through CBLAS
/// if the build has it, else gemm_plain; bf16 through f32. C is T, or f32 where T is bf16.
template <class T, class C>
void gemm_serial(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, Real<T> alpha,
                 const T* a, std::int64_t lda, const T* b, std::int64_t ldb, Real<T> beta, C* c, std::int64_t ldc);

/// The same as a blocked loop; T is float or double.
template <class T>
void gemm_plain(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha, const T* a,
                std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc);

/// Calls body(row, rows, column, columns) for blocks that cover an (m, n) product over k, on several threads. The
/// blocks follow from (m, n, k) alone, so the same bits come out for any number of threads: at most 256 rows, and at
/// least four blocks where that leaves 64 rows or 128 columns in each.
template <class Body>
void for_each_block(std::int64_t m, std::int64_t n, std::int64_t k, Body body) {
  constexpr std::int64_t kSmall = 1 << 17;  // multiplications that are not worth waking a thread for
  auto pieces = [](std::int64_t extent, std::int64_t piece) { return (extent + piece - 1) / piece; };
  std::int64_t row_blocks = 1, column_blocks = 1;
  if (m * n * k > kSmall) {
    row_blocks = pieces(m, std::clamp<std::int64_t>(m / 4, 64, 256));
    if (row_blocks < 4) column_blocks = std::clamp<std::int64_t>(n / 128, 1, pieces(4, row_blocks));
  }
  const std::int64_t rows = pieces(m, row_blocks), columns = pieces(n, column_blocks);
  parallel_for(row_blocks * column_blocks, 1, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t row = block / column_blocks * rows, column = block % column_blocks * columns;
      if (row < m && column < n) body(row, std::min(rows, m - row), column, std::min(columns, n - column));
    }
  });
}

/// On all threads.
template <class T, class C>
void gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, Real<T> alpha, const T* a,
          std::int64_t lda, const T* b, std::int64_t ldb, Real<T> beta, C* c, std::int64_t ldc) {
  for_each_block(m, n, k, [=](std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
    gemm_serial(transpose_a, transpose_b, rows, columns, k, alpha, a + row * (transpose_a ? 1 : lda), lda,
                b + column * (transpose_b ? ldb : 1), ldb, beta, c + row * ldc + column, ldc);
  });
}

}  // namespace sinkhorn::cpu
