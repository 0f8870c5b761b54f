#include "autograd/cpu/gemm.h"

#include <cstdlib>
#include <string_view>
#include <vector>

#ifdef SINKHORN_WITH_BLAS
#include <cblas.h>
// Exported by OpenBLAS where it chooses its kernels at run time.
extern "C" {
[[gnu::weak]] void gotoblas_dynamic_init();
[[gnu::weak]] void gotoblas_dynamic_quit();
}
#endif

namespace sinkhorn::cpu {
namespace {

#ifdef SINKHORN_WITH_BLAS
// One thread, because ours call it. And where the processor is newer than the library, which then falls back to kernels
// of 2004 and a fifth of the speed: the newest kernels that the processor can run.
void set_up_blas() {
  const std::string_view chosen = openblas_get_corename();
  if (gotoblas_dynamic_init && gotoblas_dynamic_quit && (chosen == "Prescott" || chosen == "Core2") &&
      !std::getenv("OPENBLAS_CORETYPE")) {
#if defined(__x86_64__)
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx512 || avx2) {
      setenv("OPENBLAS_CORETYPE", avx512 ? "SkylakeX" : "Haswell", 0);
      gotoblas_dynamic_quit();
      gotoblas_dynamic_init();
      unsetenv("OPENBLAS_CORETYPE");
    }
#endif
  }
  openblas_set_num_threads(1);
}

int narrow(std::int64_t extent) {
  if (extent > 0x7fffffff) fail("gemm: extent ", extent, " exceeds the 2^31 - 1 of this BLAS; use a smaller batch");
  return int(extent);
}
CBLAS_TRANSPOSE flag(bool transpose) { return transpose ? CblasTrans : CblasNoTrans; }

void blas_gemm(bool ta, bool tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b, int ldb,
               float beta, float* c, int ldc) {
  cblas_sgemm(CblasRowMajor, flag(ta), flag(tb), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void blas_gemm(bool ta, bool tb, int m, int n, int k, double alpha, const double* a, int lda, const double* b, int ldb,
               double beta, double* c, int ldc) {
  cblas_dgemm(CblasRowMajor, flag(ta), flag(tb), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// c = alpha x op(B) + beta c for one row x.
void blas_gemv(bool tb, int n, int k, float alpha, const float* x, int step, const float* b, int ldb, float beta,
               float* c) {
  cblas_sgemv(CblasRowMajor, flag(!tb), tb ? n : k, tb ? k : n, alpha, b, ldb, x, step, beta, c, 1);
}
void blas_gemv(bool tb, int n, int k, double alpha, const double* x, int step, const double* b, int ldb, double beta,
               double* c) {
  cblas_dgemv(CblasRowMajor, flag(!tb), tb ? n : k, tb ? k : n, alpha, b, ldb, x, step, beta, c, 1);
}
#endif

// A (rows, columns) matrix of bf16 as compact f32.
template <class T>
std::vector<float> widened(const T* x, std::int64_t rows, std::int64_t columns, std::int64_t distance) {
  std::vector<float> wide;
  wide.reserve(std::size_t(rows * columns));
  for (std::int64_t r = 0; r < rows; ++r) wide.insert(wide.end(), x + r * distance, x + r * distance + columns);
  return wide;
}

}  // namespace

// Row i of C gathers alpha A(i, p) times row p of op(B): four p in one sweep over the row of C, and 128 p for all rows
// of C before the next, so that these rows of B stay in the cache.
template <class T>
void gemm_plain(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha, const T* a,
                std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc) {
  constexpr std::int64_t kDepth = 128, kSweep = 4, kLine = 16;
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j) c[i * ldc + j] = beta == 0 ? T(0) : beta * c[i * ldc + j];
  std::vector<T> turned(transpose_b ? std::size_t(kDepth * n) : 0);
  for (std::int64_t p0 = 0; p0 < k; p0 += kDepth) {
    const std::int64_t depth = std::min(kDepth, k - p0), step = transpose_b ? n : ldb;
    if (transpose_b)
      for (std::int64_t j0 = 0; j0 < n; j0 += kLine)
        for (std::int64_t p = 0; p < depth; ++p)
          for (std::int64_t j = j0; j < std::min(n, j0 + kLine); ++j) turned[p * n + j] = b[j * ldb + p0 + p];
    const T* const rows = transpose_b ? turned.data() : b + p0 * ldb;
    for (std::int64_t i = 0; i < m; ++i) {
      T* const sum = c + i * ldc;
      auto factor = [=](std::int64_t p) { return alpha * (transpose_a ? a[(p0 + p) * lda + i] : a[i * lda + p0 + p]); };
      std::int64_t p = 0;
      for (; p + kSweep <= depth; p += kSweep) {
        const T f0 = factor(p), f1 = factor(p + 1), f2 = factor(p + 2), f3 = factor(p + 3);
        const T *b0 = rows + p * step, *b1 = b0 + step, *b2 = b1 + step, *b3 = b2 + step;
        for (std::int64_t j = 0; j < n; ++j) sum[j] += f0 * b0[j] + f1 * b1[j] + f2 * b2[j] + f3 * b3[j];
      }
      for (; p < depth; ++p)
        for (std::int64_t j = 0; j < n; ++j) sum[j] += factor(p) * rows[p * step + j];
    }
  }
}

template <class T, class C>
void gemm_serial(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, Real<T> alpha,
                 const T* a, std::int64_t lda, const T* b, std::int64_t ldb, Real<T> beta, C* c, std::int64_t ldc) {
  if (m == 0 || n == 0) return;
  if constexpr (std::is_same_v<T, bf16>) {
    const std::int64_t a_columns = transpose_a ? m : k, b_columns = transpose_b ? k : n;
    const std::vector<float> wide_a = widened(a, transpose_a ? k : m, a_columns, lda);
    const std::vector<float> wide_b = widened(b, transpose_b ? n : k, b_columns, ldb);
    std::vector<float> wide_c = beta == 0 ? std::vector<float>(std::size_t(m * n)) : widened(c, m, n, ldc);
    gemm_serial(transpose_a, transpose_b, m, n, k, alpha, wide_a.data(), std::max<std::int64_t>(a_columns, 1),
                wide_b.data(), std::max<std::int64_t>(b_columns, 1), beta, wide_c.data(), n);
    for (std::int64_t i = 0; i < m; ++i) std::copy_n(wide_c.data() + i * n, n, c + i * ldc);
  } else {
#ifdef SINKHORN_WITH_BLAS
    if (k > 0) {  // its argument checks dislike k = 0
      static const bool ready = (set_up_blas(), true);
      (void)ready;
      if (m == 1) {                              // a single row, as in decoding: gemm would spend its time on packing B
        if (beta == 0) std::fill_n(c, n, C(0));  // some versions multiply what is there by 0, even a NaN
        return blas_gemv(transpose_b, narrow(n), narrow(k), alpha, a, narrow(transpose_a ? lda : 1), b, narrow(ldb),
                         beta, c);
      }
      return blas_gemm(transpose_a, transpose_b, narrow(m), narrow(n), narrow(k), alpha, a, narrow(lda), b, narrow(ldb),
                       beta, c, narrow(ldc));
    }
#endif
    gemm_plain(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  }
}

template void gemm_serial(bool, bool, std::int64_t, std::int64_t, std::int64_t, float, const float*, std::int64_t,
                          const float*, std::int64_t, float, float*, std::int64_t);
template void gemm_serial(bool, bool, std::int64_t, std::int64_t, std::int64_t, double, const double*, std::int64_t,
                          const double*, std::int64_t, double, double*, std::int64_t);
template void gemm_serial(bool, bool, std::int64_t, std::int64_t, std::int64_t, float, const bf16*, std::int64_t,
                          const bf16*, std::int64_t, float, bf16*, std::int64_t);
template void gemm_serial(bool, bool, std::int64_t, std::int64_t, std::int64_t, float, const bf16*, std::int64_t,
                          const bf16*, std::int64_t, float, float*, std::int64_t);
template void gemm_plain(bool, bool, std::int64_t, std::int64_t, std::int64_t, float, const float*, std::int64_t,
                         const float*, std::int64_t, float, float*, std::int64_t);
template void gemm_plain(bool, bool, std::int64_t, std::int64_t, std::int64_t, double, const double*, std::int64_t,
                         const double*, std::int64_t, double, double*, std::int64_t);

}  // namespace sinkhorn::cpu
