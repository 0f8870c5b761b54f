#include "autograd/ops/matmul.h"
#include "cuda/blas.h"
#include "cuda/sums.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

template <class T>
struct Negated {
  Global<const T> x;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { y[i] = -Real<T>(x[i]); }
};

}  // namespace

// A sum over the batch adds one product after the other, in order.
template <class T>
void Matmul<T>::forward(Cuda, const Products& p, const T* a, const T* b, T* c) {
  const std::string_view op = "matmul";
  Gemm<T, T> product{p.m, p.n, p.k, p.transpose_a, p.transpose_b, a, b, c};
  if (p.c_step != 0 || p.batch == 1) {
    product.batch = p.batch;
    product.a_step = p.a_step;
    product.b_step = p.b_step;
    product.d_step = p.c_step;
    return gemm(op, product);
  }
  if (p.batch == 0) clear(c, std::size_t(p.m * p.n) * sizeof(T));
  for (std::int64_t i = 0; i < p.batch; ++i) {
    product.a = a + i * p.a_step;
    product.b = b + i * p.b_step;
    product.beta = i == 0 ? 0 : 1;
    gemm(op, product);
  }
}

template <class T, class P>
void Linear<T, P>::forward(Cuda, const LinearShape& s, const T* x, const T* weight, const T* bias, T* y) {
  Gemm<T, T> product{s.rows, s.out, s.in, false, true, x, weight, y};
  product.bias = bias;
  gemm("linear", product);
}

template <class T, class P>
void Linear<T, P>::add(Cuda, const LinearShape& s, double sign, const T* x, const T* weight, const P* bias,
                       const P* onto, P* y) {
  Gemm<T, P> product{s.rows, s.out, s.in, false, true, x, weight, y};
  product.alpha = Real<T>(sign);
  product.beta = 1;
  product.c = onto;
  product.bias = bias;
  Tensor negated;  // the sign is the product's alone
  if (bias && sign < 0) {
    negated = workspace({s.out}, dtype_of<P>);
    for_each("linear", s.out, Negated<P>{bias, negated.data<P>()});
    product.bias = negated.data<P>();
  }
  gemm("linear", product);
}

template <class T, class P>
void Linear<T, P>::backward(Cuda, const LinearShape& s, const T* x, const T* weight, const T* dy, Flow<T> dx,
                            Flow<P> dweight, Flow<P> dbias) {
  if (dx.to) {
    Gemm<T, T> product{s.rows, s.in, s.out, false, false, dy, weight, dx.to};
    product.beta = dx.beta();
    gemm("linear", product);
  }
  if (dweight.to) {
    Gemm<T, P> product{s.out, s.in, s.rows, true, false, dy, x, dweight.to};
    product.beta = dweight.beta();
    gemm("linear", product);
  }
  if (dbias.to)
    sum_axis<Real<T>>("linear", Around(Shape{1, s.rows, s.out}, 1), MatrixElement<T>{s.out, dy}, dbias.to, dbias.adds);
}

template struct Matmul<float>;
template struct Matmul<double>;
template struct Matmul<bf16>;
template struct Linear<float, float>;
template struct Linear<double, double>;
template struct Linear<bf16, bf16>;
template struct Linear<bf16, float>;

}  // namespace sinkhorn::kernels
