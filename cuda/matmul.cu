#include "autograd/ops/matmul.h"
#include "cuda/blas.h"
#include "cuda/sums.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

template <class T, class P>
struct BiasOfColumn {
  std::int64_t columns;
  Global<const P> bias;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { y[i] = Real<T>(bias[i % columns]); }
};

template <class T>
struct FlowOfColumn {
  std::int64_t columns;
  Global<const T> dy;
  SINKHORN_DEVICE Real<T> operator()(std::int64_t row, std::int64_t column) const { return dy[row * columns + column]; }
};

}  // namespace

// A sum over the batch adds one product after the other, in order.
template <class T>
void Matmul<T>::forward(Cuda, const Products& p, const T* a, const T* b, T* c) {
  const std::string_view op = "matmul";
  if (p.c_step != 0 || p.batch == 1)
    return gemm(op, p.batch, p.m, p.n, p.k, p.transpose_a, p.transpose_b, a, p.a_step, b, p.b_step, 0, c, p.c_step);
  if (p.batch == 0) clear(c, std::size_t(p.m * p.n) * sizeof(T));
  for (std::int64_t i = 0; i < p.batch; ++i)
    gemm(op, 1, p.m, p.n, p.k, p.transpose_a, p.transpose_b, a + i * p.a_step, 0, b + i * p.b_step, 0, i == 0 ? 0 : 1,
         c, 0);
}

template <class T, class P>
void Linear<T, P>::forward(Cuda, std::int64_t rows, std::int64_t in, std::int64_t out, const T* x, const T* weight,
                           const P* bias, T* y) {
  if (bias) for_each("linear", rows * out, BiasOfColumn<T, P>{out, bias, y});
  gemm("linear", 1, rows, out, in, false, true, x, 0, weight, 0, bias ? 1 : 0, y, 0);
}

template <class T, class P>
void Linear<T, P>::backward(Cuda, std::int64_t rows, std::int64_t in, std::int64_t out, const T* x, const T* weight,
                            const T* dy, T* dx, P* dweight, P* dbias) {
  if (dx) gemm("linear", 1, rows, in, out, false, false, dy, 0, weight, 0, 0, dx, 0);
  if (dweight) gemm("linear", 1, out, in, rows, true, false, dy, 0, x, 0, 0, dweight, 0);
  if (dbias) sum_axis<Real<T>>("linear", Around(Shape{1, rows, out}, 1), FlowOfColumn<T>{out, dy}, dbias);
}

template struct Matmul<float>;
template struct Matmul<double>;
template struct Matmul<bf16>;
template struct Linear<float, float>;
template struct Linear<double, double>;
template struct Linear<bf16, bf16>;
template struct Linear<bf16, float>;

}  // namespace sinkhorn::kernels
