#include "autograd/ops/elementwise.h"

#include "autograd/parallel.h"

namespace sinkhorn::kernels {

template <class F, class T>
void Map<F, T>::forward(Cpu, std::int64_t count, const T* x, T* y) {
  parallel_for(count, grain_for(1), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) y[i] = F::template f<Real<T>>(x[i]);
  });
}

template <class F, class T>
void Map<F, T>::backward(Cpu, std::int64_t count, const T* x, const T* y, const T* dy, T* dx) {
  parallel_for(count, grain_for(1), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) dx[i] = F::template df<Real<T>>(x[i], y[i]) * Real<T>(dy[i]);
  });
}

template struct Map<maps::Exp, float>;
template struct Map<maps::Exp, double>;
template struct Map<maps::Exp, bf16>;

}  // namespace sinkhorn::kernels
