#include "autograd/ops/softmax.h"

#include <cmath>
#include <limits>

#include "autograd/parallel.h"

namespace sinkhorn::kernels {

// y_i = exp(x_i - m) / sum_j exp(x_j - m),  m = max_j x_j, over the allowed j
template <class T>
void Softmax<T>::forward(Cpu, Rows rows, const T* x, const bool* allowed, T* y) {
  using R = Real<T>;
  parallel_for(rows.count, grain_for(rows.width), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin * rows.width; r < end * rows.width; r += rows.width) {
      auto open = [&](std::int64_t i) { return !allowed || allowed[r + i]; };
      R largest = -std::numeric_limits<R>::infinity(), sum = 0;
      for (std::int64_t i = 0; i < rows.width; ++i)
        if (open(i) && R(x[r + i]) > largest) largest = x[r + i];
      const R shift = std::isinf(largest) ? R(0) : largest;
      for (std::int64_t i = 0; i < rows.width; ++i)
        if (open(i)) sum += std::exp(R(x[r + i]) - shift);
      const R scale = sum == 0 ? R(0) : 1 / sum;  // a NaN stays a NaN
      for (std::int64_t i = 0; i < rows.width; ++i) y[r + i] = open(i) ? std::exp(R(x[r + i]) - shift) * scale : R(0);
    }
  });
}

// dx_i = y_i (dy_i - sum_j dy_j y_j)
template <class T>
void Softmax<T>::backward(Cpu, Rows rows, const T* y, const T* dy, T* dx) {
  using R = Real<T>;
  parallel_for(rows.count, grain_for(rows.width), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin * rows.width; r < end * rows.width; r += rows.width) {
      R dot = 0;
      for (std::int64_t i = 0; i < rows.width; ++i) dot += R(dy[r + i]) * R(y[r + i]);
      for (std::int64_t i = 0; i < rows.width; ++i) dx[r + i] = R(y[r + i]) * (R(dy[r + i]) - dot);
    }
  });
}

template struct Softmax<float>;
template struct Softmax<double>;
template struct Softmax<bf16>;

}  // namespace sinkhorn::kernels
