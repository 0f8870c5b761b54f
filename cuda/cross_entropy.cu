#include <cmath>

#include "autograd/ops/cross_entropy.h"
#include "cuda/sums.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// The device's view of Targets.
struct Goals {
  Goals(const Targets& t) : ids(t.ids), counted(t.counted), has_ignore(t.has_ignore), ignore(t.ignore) {}
  Global<const std::int32_t> ids;
  Global<const bool> counted;
  bool has_ignore;
  std::int32_t ignore;

  SINKHORN_DEVICE bool counts(std::int64_t row) const {
    return (!counted || counted[row]) && !(has_ignore && ids[row] == ignore);
  }
};

// The log-sum-exp of each row that counts, and its loss (0 for the others).
template <class T>
struct LossOfRows {
  using R = Real<T>;
  std::int64_t width;
  Goals goals;
  Global<const T> logits;
  Global<R> log_sum_exp, losses;
  BadIndex* bad;
  const char* what;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const std::int64_t r = t.block();
    if (!goals.counts(r)) {
      if (t.index() == 0) losses[r] = R(0);
      return;
    }
    const BlockReducer<R> reduce(t);
    const auto x = logits + r * width;
    const Exponentials<R> e = exponentials(t, reduce, width, [=](std::int64_t i) { return R(x[i]); });
    if (t.index() != 0) return;
    const R total = e.shift + std::log(e.sum);
    const std::int32_t target = goals.ids[r];
    const bool inside = target >= 0 && target < width;
    if (!inside) *bad = {what, target, 0, width};
    log_sum_exp[r] = total;
    losses[r] = inside ? total - R(x[target]) : R(0);
  }
};

template <class R>
struct RowLoss {
  Global<const R> losses;
  SINKHORN_DEVICE double operator()(std::int64_t row, std::int64_t) const { return losses[row]; }
};
struct CountedRow {
  Goals goals;
  SINKHORN_DEVICE double operator()(std::int64_t row, std::int64_t) const { return goals.counts(row) ? 1 : 0; }
};

template <class R>
struct MeanLoss {
  Global<const double> sums;  // loss and count
  Global<R> loss;
  Global<std::int32_t> count;
  SINKHORN_DEVICE void operator()(std::int64_t) const {
    count[0] = std::int32_t(sums[1]);
    loss[0] = sums[1] > 0 ? R(sums[0] / sums[1]) : R(0);
  }
};

template <class T>
struct LossGradient {
  using R = Real<T>;
  std::int64_t width;
  Goals goals;
  Global<const T> logits;
  Global<const R> log_sum_exp, dloss;
  Global<const std::int32_t> count;
  Global<T> dlogits;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t row = i / width;
    if (!goals.counts(row)) {
      dlogits[i] = T(0);
      return;
    }
    const R scale = dloss[0] / R(count[0]), p = math::exp(R(logits[i]) - log_sum_exp[row]);
    dlogits[i] = (i - row * width == goals.ids[row] ? p - 1 : p) * scale;
  }
};

}  // namespace

template <class T>
void CrossEntropy<T>::forward(Cuda, Rows rows, const Targets& targets, const T* logits, Real<T>* log_sum_exp,
                              Real<T>* loss, std::int32_t* count) {
  using R = Real<T>;
  const Tensor losses = workspace({rows.count}, dtype_of<R>), sums = workspace({2}, DType::f64);
  double* const sum = sums.data<double>();
  launch(
      "cross_entropy", rows.count, threads_for(rows.width), reducer_bytes<R>(),
      LossOfRows<T>{rows.width, targets, logits, log_sum_exp, losses.data<R>(), bad_index(), "cross_entropy: target"});
  const Around all(Shape{1, rows.count, 1}, 1);
  sum_axis<double>("cross_entropy", all, RowLoss<R>{losses.data<R>()}, sum);
  sum_axis<double>("cross_entropy", all, CountedRow{targets}, sum + 1);
  for_each("cross_entropy", 1, MeanLoss<R>{sum, loss, count});
}

template <class T>
void CrossEntropy<T>::backward(Cuda, Rows rows, const Targets& targets, const T* logits, const Real<T>* log_sum_exp,
                               const std::int32_t* count, const Real<T>* dloss, T* dlogits) {
  for_each("cross_entropy", rows.count * rows.width,
           LossGradient<T>{rows.width, targets, logits, log_sum_exp, dloss, count, dlogits});
}

template struct CrossEntropy<float>;
template struct CrossEntropy<double>;
template struct CrossEntropy<bf16>;

}  // namespace sinkhorn::kernels
