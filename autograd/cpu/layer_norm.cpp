#include "autograd/ops/layer_norm.h"

#include <cmath>

#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {

template <class T, class Y>
void LayerNorm<T, Y>::forward(Cpu, std::int64_t rows, std::int64_t width, Real<T> eps, const T* x, const T* gamma,
                              const T* beta, Y* y, Real<T>* mean, Real<T>* rstd) {
  using R = Real<T>;
  parallel_for(rows, grain_for(width), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* row = x + r * width;
      Y* out = y + r * width;
      const R m = cpu::row_sum<R>(width, [=](std::int64_t i) { return R(row[i]); }) / R(width);
      const R variance =
          cpu::row_sum<R>(width, [=](std::int64_t i) { return (R(row[i]) - m) * (R(row[i]) - m); }) / R(width);
      const R s = 1 / std::sqrt(variance + eps);
      for (std::int64_t i = 0; i < width; ++i) out[i] = (R(row[i]) - m) * s * R(gamma[i]) + R(beta[i]);
      mean[r] = m;
      rstd[r] = s;
    }
  });
}

template <class T, class Y>
void LayerNorm<T, Y>::backward(Cpu, std::int64_t rows, std::int64_t width, const T* x, const T* gamma,
                               const Real<T>* mean, const Real<T>* rstd, const Y* dy, Flow<T> dx, Flow<T> dgamma,
                               Flow<T> dbeta) {
  using R = Real<T>;
  const Tensor sums({2, width}, dtype_of<R>);
  cpu::sum_over_rows(rows, 2 * width, 2 * width, sums.data<R>(), [=](std::int64_t begin, std::int64_t end, R* partial) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* row = x + r * width;
      const Y* flow = dy + r * width;
      T* out = dx.to + r * width;
      const R m = mean[r], s = rstd[r];
      auto g = [=](std::int64_t i) { return R(gamma[i]) * R(flow[i]); };
      auto z = [=](std::int64_t i) { return (R(row[i]) - m) * s; };
      const R mean_g = cpu::row_sum<R>(width, g) / R(width);
      const R mean_gz = cpu::row_sum<R>(width, [=](std::int64_t i) { return g(i) * z(i); }) / R(width);
      for (std::int64_t i = 0; i < width; ++i)
        out[i] = (dx.adds ? R(out[i]) : R(0)) + s * (g(i) - mean_g - z(i) * mean_gz);
      for (std::int64_t i = 0; i < width; ++i) partial[i] += R(flow[i]) * z(i);
      for (std::int64_t i = 0; i < width; ++i) partial[width + i] += R(flow[i]);
    }
  });
  const R* sum = sums.data<R>();
  for (const auto& flow : {dgamma, dbeta})
    for (std::int64_t i = 0; i < width; ++i) flow.to[i] = (flow.adds ? R(flow.to[i]) : R(0)) + *sum++;
}

template struct LayerNorm<float, float>;
template struct LayerNorm<double, double>;
template struct LayerNorm<bf16, bf16>;
template struct LayerNorm<float, bf16>;

}  // namespace sinkhorn::kernels
