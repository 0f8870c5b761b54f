#include "autograd/ops/matmul.h"

#include "autograd/cpu/gemm.h"
#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {

template <class T>
void Matmul<T>::forward(Cpu, const Products& p, const T* a, const T* b, T* c) {
  const std::int64_t lda = p.transpose_a ? p.m : p.k, ldb = p.transpose_b ? p.k : p.n;
  auto multiply = [=](std::int64_t i, Real<T> beta) {
    cpu::gemm(p.transpose_a, p.transpose_b, p.m, p.n, p.k, 1, a + i * p.a_step, lda, b + i * p.b_step, ldb, beta,
              c + i * p.c_step, p.n);
  };
  if (p.batch == 1) return multiply(0, 0);
  if (p.c_step == 0) {
    std::fill_n(c, p.m * p.n, T(0));
    for (std::int64_t i = 0; i < p.batch; ++i) multiply(i, 1);
    return;
  }
  const std::int64_t work = std::max<std::int64_t>(p.m * p.n * p.k, 1);
  parallel_for(p.batch, std::max<std::int64_t>((1 << 18) / work, 1), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) multiply(i, 0);
  });
}

// The bias is laid out first, so that the product adds to it while the block is in the cache.
template <class T, class P>
void Linear<T, P>::forward(Cpu, std::int64_t rows, std::int64_t in, std::int64_t out, const T* x, const T* weight,
                           const P* bias, T* y) {
  cpu::for_each_block(rows, out, in,
                      [=](std::int64_t row, std::int64_t height, std::int64_t column, std::int64_t width) {
                        T* block = y + row * out + column;
                        if (bias)
                          for (std::int64_t r = 0; r < height; ++r) std::copy_n(bias + column, width, block + r * out);
                        cpu::gemm_serial(false, true, height, width, in, 1, x + row * in, in, weight + column * in, in,
                                         bias ? 1 : 0, block, out);
                      });
}

template <class T, class P>
void Linear<T, P>::backward(Cpu, std::int64_t rows, std::int64_t in, std::int64_t out, const T* x, const T* weight,
                            const T* dy, T* dx, P* dweight, P* dbias) {
  using R = Real<T>;
  if (dx) cpu::gemm(false, false, rows, in, out, 1, dy, out, weight, in, 0, dx, in);
  if (dweight) cpu::gemm(true, false, out, in, rows, 1, dy, out, x, in, 0, dweight, in);
  if (dbias) {
    const Tensor sums({out}, dtype_of<R>);
    cpu::sum_over_rows(rows, out, out, sums.data<R>(), [=](std::int64_t begin, std::int64_t end, R* partial) {
      for (std::int64_t r = begin; r < end; ++r)
        for (std::int64_t j = 0; j < out; ++j) partial[j] += R(dy[r * out + j]);
    });
    std::copy_n(sums.data<R>(), out, dbias);
  }
}

template struct Matmul<float>;
template struct Matmul<double>;
template struct Matmul<bf16>;
template struct Linear<float, float>;
template struct Linear<double, double>;
template struct Linear<bf16, bf16>;
template struct Linear<bf16, float>;

}  // namespace sinkhorn::kernels
