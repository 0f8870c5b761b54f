#include "autograd/ops/cross_entropy.h"

#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {

template <class T>
void CrossEntropy<T>::count(Cpu, std::int64_t rows, const Targets& targets, std::int32_t* count) {
  *count = 0;
  for (std::int64_t r = 0; r < rows; ++r) *count += targets.counts(r) ? 1 : 0;
}

template <class T>
void CrossEntropy<T>::forward(Cpu, Rows rows, const Targets& targets, const T* logits, Real<T>* log_sum_exp,
                              Real<T>* losses) {
  using R = Real<T>;
  for (std::int64_t r = 0; r < rows.count; ++r)
    if (targets.counts(r) && (targets.ids[r] < 0 || targets.ids[r] >= rows.width))
      fail("cross_entropy: target ", targets.ids[r], " is outside ", rows.width, " classes");
  parallel_for(rows.count, grain_for(rows.width), [=](std::int64_t begin, std::int64_t end) {
    std::vector<R> row(std::size_t(rows.width));
    for (std::int64_t r = begin; r < end; ++r) {
      losses[r] = 0;
      if (!targets.counts(r)) continue;
      const T* x = logits + r * rows.width;
      std::copy_n(x, rows.width, row.begin());
      const auto [shift, sum] = cpu::exponentials(rows.width, row.data());
      log_sum_exp[r] = shift + std::log(sum);
      losses[r] = log_sum_exp[r] - R(x[targets.ids[r]]);
    }
  });
}

template <class T>
void CrossEntropy<T>::mean(Cpu, Rows rows, const Real<T>* losses, const std::int32_t* count, Real<T>* loss) {
  double sum = 0;
  cpu::sum_over_rows(rows.count, 1, rows.width, &sum, [=](std::int64_t begin, std::int64_t end, double* partial) {
    for (std::int64_t r = begin; r < end; ++r) *partial += losses[r];
  });
  *loss = *count > 0 ? Real<T>(sum / *count) : Real<T>(0);
}

template <class T>
void CrossEntropy<T>::backward(Cpu, Rows rows, const Targets& targets, const T* logits, const Real<T>* log_sum_exp,
                               const std::int32_t* count, const Real<T>* dloss, T* dlogits) {
  using R = Real<T>;
  const R scale = *count > 0 ? (dloss ? *dloss : R(1)) / R(*count) : R(0);
  parallel_for(rows.count, grain_for(rows.width), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* x = logits + r * rows.width;
      T* dx = dlogits + r * rows.width;
      if (!targets.counts(r)) {
        std::fill_n(dx, rows.width, T(0));
        continue;
      }
      const R shift = log_sum_exp[r];
      const std::int32_t target = targets.ids[r];
      const T of_target = (math::exp(R(x[target]) - shift) - 1) * scale;
      for (std::int64_t i = 0; i < rows.width; ++i) dx[i] = math::exp(R(x[i]) - shift) * scale;
      dx[target] = of_target;
    }
  });
}

template struct CrossEntropy<float>;
template struct CrossEntropy<double>;
template struct CrossEntropy<bf16>;

}  // namespace sinkhorn::kernels
