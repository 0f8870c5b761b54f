#include <cmath>

#include "autograd/ops/layer_norm.h"
#include "cuda/sums.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

template <class T, class Y>
struct NormaliseRows {
  using R = Real<T>;
  std::int64_t width;
  R eps;
  Global<const T> x, gamma, beta;
  Global<Y> y;
  Global<R> mean, rstd;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const auto row = x + t.block() * width;
    const auto out = y + t.block() * width;
    R sum = 0, squares = 0;
    for (std::int64_t i = t.index(); i < width; i += t.size()) sum += R(row[i]);
    const R m = reduce.sum(sum) / R(width);
    for (std::int64_t i = t.index(); i < width; i += t.size()) squares += (R(row[i]) - m) * (R(row[i]) - m);
    const R s = 1 / std::sqrt(reduce.sum(squares) / R(width) + eps);
    for (std::int64_t i = t.index(); i < width; i += t.size()) out[i] = (R(row[i]) - m) * s * R(gamma[i]) + R(beta[i]);
    if (t.index() != 0) return;
    mean[t.block()] = m;
    rstd[t.block()] = s;
  }
};

// z = (x - mean) rstd
template <class T>
struct Normalised {
  using R = Real<T>;
  Global<const T> x;
  Global<const R> mean, rstd;
  std::int64_t width;
  SINKHORN_DEVICE R operator()(std::int64_t row, std::int64_t i) const {
    return (R(x[row * width + i]) - mean[row]) * rstd[row];
  }
};

// dx = rstd (g - mean(g) - z mean(g z)) with g = gamma dy
template <class T, class Y>
struct NormaliseRowsGradient {
  using R = Real<T>;
  std::int64_t width;
  Normalised<T> z;
  Global<const T> gamma;
  Global<const Y> dy;
  Global<T> dx;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const std::int64_t row = t.block(), first = row * width;
    const auto g = [&](std::int64_t i) { return R(gamma[i]) * R(dy[first + i]); };
    R sum_g = 0, sum_gz = 0;
    for (std::int64_t i = t.index(); i < width; i += t.size()) {
      sum_g += g(i);
      sum_gz += g(i) * z(row, i);
    }
    const R mean_g = reduce.sum(sum_g) / R(width), mean_gz = reduce.sum(sum_gz) / R(width);
    for (std::int64_t i = t.index(); i < width; i += t.size())
      dx[first + i] = z.rstd[row] * (g(i) - mean_g - z(row, i) * mean_gz);
  }
};

template <class T, class Y>
struct GainTerm {
  Normalised<T> z;
  Global<const Y> dy;
  SINKHORN_DEVICE Real<T> operator()(std::int64_t row, std::int64_t i) const {
    return Real<T>(dy[row * z.width + i]) * z(row, i);
  }
};
template <class T>
struct BiasTerm {
  std::int64_t width;
  Global<const T> dy;
  SINKHORN_DEVICE Real<T> operator()(std::int64_t row, std::int64_t i) const { return Real<T>(dy[row * width + i]); }
};

}  // namespace

template <class T, class Y>
void LayerNorm<T, Y>::forward(Cuda, std::int64_t rows, std::int64_t width, Real<T> eps, const T* x, const T* gamma,
                              const T* beta, Y* y, Real<T>* mean, Real<T>* rstd) {
  launch("layer_norm", rows, threads_for(width), reducer_bytes<Real<T>>(),
         NormaliseRows<T, Y>{width, eps, x, gamma, beta, y, mean, rstd});
}

template <class T, class Y>
void LayerNorm<T, Y>::backward(Cuda, std::int64_t rows, std::int64_t width, const T* x, const T* gamma,
                               const Real<T>* mean, const Real<T>* rstd, const Y* dy, T* dx, T* dgamma, T* dbeta) {
  using R = Real<T>;
  const Normalised<T> z{x, mean, rstd, width};
  launch("layer_norm", rows, threads_for(width), reducer_bytes<R>(),
         NormaliseRowsGradient<T, Y>{width, z, gamma, dy, dx});
  const Around all(Shape{1, rows, width}, 1);
  sum_axis<R>("layer_norm", all, GainTerm<T, Y>{z, dy}, dgamma);
  sum_axis<R>("layer_norm", all, BiasTerm<Y>{width, dy}, dbeta);
}

template struct LayerNorm<float, float>;
template struct LayerNorm<double, double>;
template struct LayerNorm<bf16, bf16>;
template struct LayerNorm<float, bf16>;

}  // namespace sinkhorn::kernels
