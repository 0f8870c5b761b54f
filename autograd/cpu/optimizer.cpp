#include "autograd/optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {

template <class T>
void Optimizer<T>::adamw(Cpu, const AdamWStep& step, std::span<const std::int64_t> borders, std::int64_t count,
                         T* value, const T* gradient, T* m, T* v) {
  using R = Real<T>;
  if (step.clip && std::isnan(*step.clip)) return;
  const R keep_decayed = R(step.numbers[0]), rate = R(step.numbers[1]), root = R(step.numbers[2]);
  const R beta1 = R(step.beta1), rest1 = R(1 - step.beta1), beta2 = R(step.beta2), rest2 = R(1 - step.beta2);
  const R eps = R(step.eps), scale = R(step.gradient_scale * (step.clip ? *step.clip : 1));
  const auto update = [=](std::int64_t from, std::int64_t to, R keep) {
    parallel_for(to - from, grain_for(4), [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = from + begin; i < from + end; ++i) {
        const R g = R(gradient[i]) * scale;
        const R m_i = beta1 * R(m[i]) + rest1 * g, v_i = beta2 * R(v[i]) + rest2 * g * g;
        m[i] = m_i;
        v[i] = v_i;
        value[i] = keep * R(value[i]) - rate * m_i / (std::sqrt(v_i) * root + eps);
      }
    });
  };
  std::int64_t at = 0;
  bool decays = false;
  for (const std::int64_t border : borders) {
    update(at, border, decays ? keep_decayed : R(1));
    at = border;
    decays = !decays;
  }
  update(at, count, R(1));
}

template <class T>
void Optimizer<T>::add_square_sum(Cpu, std::int64_t count, const T* x, double* sum) {
  double squares = 0;
  cpu::sum_over_rows(count, 1, 1, &squares, [=](std::int64_t begin, std::int64_t end, double* partial) {
    *partial +=
        cpu::row_sum<double>(end - begin, [=](std::int64_t i) { return double(x[begin + i]) * double(x[begin + i]); });
  });
  *sum += squares;
}

void ClipFactor::forward(Cpu, std::int64_t count, const double* known, double clip_norm, double* factor) {
  const bool finite = std::all_of(known, known + count, [](double x) { return std::isfinite(x); });
  *factor = !finite         ? std::numeric_limits<double>::quiet_NaN()
            : clip_norm > 0 ? std::min(1.0, clip_norm / (std::sqrt(known[count - 1]) + 1e-6))
                            : 1;
}

template struct Optimizer<float>;
template struct Optimizer<double>;
template struct Optimizer<bf16>;

}  // namespace sinkhorn::kernels
