#include "autograd/ops/matmul.h"

#include "autograd/cpu/gemm.h"
#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {
namespace {

// dweight (out, in) += dy' (out, rows) x (rows, in). A small result cut into blocks would have each of them read all
// rows for little work; so the rows are cut, and the products of the pieces are added in their order.
template <class T, class P>
void weight_gradient(const LinearShape& s, const T* dy, const T* x, Flow<P> dweight) {
  constexpr std::int64_t kRows = 1024, kLargest = 1 << 17;  // rows of a piece; elements of a result that is cut so
  using R = Real<T>;
  const std::int64_t rows = s.rows, in = s.in, out = s.out, count = out * in, pieces = (rows + kRows - 1) / kRows;
  if (pieces <= 1 || count > kLargest)
    return cpu::gemm(true, false, out, in, rows, 1, dy, out, x, in, dweight.beta(), dweight.to, in);
  const Tensor products({pieces, count}, dtype_of<R>);
  R* const product = products.data<R>();
  parallel_for(pieces, 1, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::int64_t first = piece * kRows;
      cpu::gemm_serial(true, false, out, in, std::min(kRows, rows - first), 1, dy + first * out, out, x + first * in,
                       in, 0, product + piece * count, in);
    }
  });
  parallel_for(count, grain_for(pieces), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t piece = 1; piece < pieces; ++piece)
      for (std::int64_t i = begin; i < end; ++i) product[i] += product[piece * count + i];
    for (std::int64_t i = begin; i < end; ++i) dweight.to[i] = (dweight.adds ? R(dweight.to[i]) : R(0)) + product[i];
  });
}

}  // namespace

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

// What the product is added to is laid out first, while the block is in the cache.
template <class T, class P>
void Linear<T, P>::forward(Cpu, const LinearShape& s, const T* x, const T* weight, const T* bias, T* y) {
  const std::int64_t in = s.in, out = s.out;
  cpu::for_each_block(s.rows, out, in,
                      [=](std::int64_t row, std::int64_t height, std::int64_t column, std::int64_t width) {
                        T* block = y + row * out + column;
                        if (bias)
                          for (std::int64_t r = 0; r < height; ++r) std::copy_n(bias + column, width, block + r * out);
                        cpu::gemm_serial(false, true, height, width, in, 1, x + row * in, in, weight + column * in, in,
                                         bias ? 1 : 0, block, out);
                      });
}

template <class T, class P>
void Linear<T, P>::add(Cpu, const LinearShape& s, double sign, const T* x, const T* weight, const P* bias,
                       const P* onto, P* y) {
  using R = Real<P>;
  const std::int64_t in = s.in, out = s.out;
  cpu::for_each_block(s.rows, out, in,
                      [=](std::int64_t row, std::int64_t height, std::int64_t column, std::int64_t width) {
                        for (std::int64_t r = row; r < row + height; ++r)
                          for (std::int64_t j = column; j < column + width; ++j)
                            y[r * out + j] = R(onto[r * out + j]) + (bias ? R(sign) * R(bias[j]) : R(0));
                        cpu::gemm_serial(false, true, height, width, in, Real<T>(sign), x + row * in, in,
                                         weight + column * in, in, 1, y + row * out + column, out);
                      });
}

template <class T, class P>
void Linear<T, P>::backward(Cpu, const LinearShape& s, const T* x, const T* weight, const T* dy, Flow<T> dx,
                            Flow<P> dweight, Flow<P> dbias) {
  using R = Real<T>;
  const auto [rows, in, out] = s;
  if (dx.to) cpu::gemm(false, false, rows, in, out, 1, dy, out, weight, in, dx.beta(), dx.to, in);
  if (dweight.to) weight_gradient(s, dy, x, dweight);
  if (dbias.to) {
    const Tensor sums({out}, dtype_of<R>);
    cpu::sum_over_rows(rows, out, out, sums.data<R>(),
                       [=, out = out](std::int64_t begin, std::int64_t end, R* partial) {
                         for (std::int64_t r = begin; r < end; ++r)
                           for (std::int64_t j = 0; j < out; ++j) partial[j] += R(dy[r * out + j]);
                       });
    for (std::int64_t j = 0; j < out; ++j) dbias.to[j] = (dbias.adds ? R(dbias.to[j]) : R(0)) + sums.data<R>()[j];
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
