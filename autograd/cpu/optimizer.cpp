#include "autograd/optimizer.h"

#include <cmath>

#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {

template <class T>
void Optimizer<T>::adamw(Cpu, AdamWStep step, std::int64_t count, T* value, const T* gradient, T* m, T* v) {
  using R = Real<T>;
  const R beta1 = R(step.beta1), rest1 = R(1 - step.beta1), beta2 = R(step.beta2), rest2 = R(1 - step.beta2);
  const R eps = R(step.eps), scale = R(step.gradient_scale), keep = R(step.keep), rate = R(step.rate);
  const R root = R(step.root);
  parallel_for(count, grain_for(4), [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) {
      const R g = R(gradient[i]) * scale;
      const R m_i = beta1 * R(m[i]) + rest1 * g, v_i = beta2 * R(v[i]) + rest2 * g * g;
      m[i] = m_i;
      v[i] = v_i;
      value[i] = keep * R(value[i]) - rate * m_i / (std::sqrt(v_i) * root + eps);
    }
  });
}

template <class T>
double Optimizer<T>::square_sum(Cpu, std::int64_t count, const T* x) {
  double sum = 0;
  cpu::sum_over_rows(count, 1, 1, &sum, [=](std::int64_t begin, std::int64_t end, double* partial) {
    *partial +=
        cpu::row_sum<double>(end - begin, [=](std::int64_t i) { return double(x[begin + i]) * double(x[begin + i]); });
  });
  return sum;
}

template struct Optimizer<float>;
template struct Optimizer<double>;
template struct Optimizer<bf16>;

}  // namespace sinkhorn::kernels
