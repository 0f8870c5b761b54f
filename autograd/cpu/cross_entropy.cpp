#include "autograd/ops/cross_entropy.h"

#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {

template <class T>
void CrossEntropy<T>::forward(Cpu, Rows rows, const Targets& targets, const T* logits, Real<T>* log_sum_exp,
                              Real<T>* loss, std::int32_t* count) {
  using R = Real<T>;
  for (std::int64_t r = 0; r < rows.count; ++r)
    if (targets.counts(r) && (targets.ids[r] < 0 || targets.ids[r] >= rows.width))
      fail("cross_entropy: target ", targets.ids[r], " is outside ", rows.width, " classes");
  double sums[2];  // loss and count
  cpu::sum_over_rows(rows.count, 2, rows.width, sums, [=](std::int64_t begin, std::int64_t end, double* partial) {
    std::vector<R> row(std::size_t(rows.width));
    for (std::int64_t r = begin; r < end; ++r) {
      if (!targets.counts(r)) continue;
      const T* x = logits + r * rows.width;
      std::copy_n(x, rows.width, row.begin());
      const auto [shift, sum] = cpu::exponentials(rows.width, row.data());
      log_sum_exp[r] = shift + std::log(sum);
      partial[0] += log_sum_exp[r] - R(x[targets.ids[r]]);
      partial[1] += 1;
    }
  });
  *count = std::int32_t(sums[1]);
  *loss = *count > 0 ? R(sums[0] / sums[1]) : R(0);
}

template <class T>
void CrossEntropy<T>::backward(Cpu, Rows rows, const Targets& targets, const T* logits, const Real<T>* log_sum_exp,
                               const std::int32_t* count, const Real<T>* dloss, T* dlogits) {
  using R = Real<T>;
  const R scale = *count > 0 ? *dloss / R(*count) : R(0);
  parallel_for(rows.count, grain_for(rows.width), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* x = logits + r * rows.width;
      T* dx = dlogits + r * rows.width;
      if (!targets.counts(r)) {
        std::fill_n(dx, rows.width, T(0));
        continue;
      }
      const R shift = log_sum_exp[r];
      for (std::int64_t i = 0; i < rows.width; ++i) dx[i] = math::exp(R(x[i]) - shift) * scale;
      const std::int32_t target = targets.ids[r];
      dx[target] = (math::exp(R(x[target]) - shift) - 1) * scale;
    }
  });
}

template struct CrossEntropy<float>;
template struct CrossEntropy<double>;
template struct CrossEntropy<bf16>;

}  // namespace sinkhorn::kernels
