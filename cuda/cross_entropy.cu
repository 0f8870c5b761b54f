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

// Two parts of a row as one. NaNs may be passed over in the shift: they stay in the sum.
struct Joined {
  template <class R>
  SINKHORN_DEVICE Exponentials<R> operator()(const Exponentials<R>& a, const Exponentials<R>& b) const {
    const Exponentials<R> both{Larger{}(a.shift, b.shift), 0};
    return {both.shift, a.sum * both(a.shift) + b.sum * both(b.shift)};
  }
};

// The log-sum-exp of each row that counts, and its loss (0 for the others). Each row is read once, N neighbours at a
// time, by one warp of a block or by the whole block.
template <class T, int N, bool by_warp>
struct LossOfRows {
  using R = Real<T>;
  std::int64_t rows, width;
  Goals goals;
  Global<const T> logits;
  Global<R> log_sum_exp, losses;
  BadIndex* bad;
  const char* what;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const std::int64_t r = by_warp ? t.block() * t.warps() + t.warp() : t.block();
    const int rank = by_warp ? t.lane() : t.index(), team = by_warp ? kWarp : t.size();
    if (r >= rows) return;
    if (!goals.counts(r)) {
      if (rank == 0) losses[r] = R(0);
      return;
    }
    // The least number instead of -infinity: differences of shifts are then never NaN.
    Exponentials<R> e{std::numeric_limits<R>::lowest(), 0};
    const auto x = logits + r * width;
    for (std::int64_t i = rank * N; i < width; i += team * N) {
      const auto next = load_real<N>(x, i);
      R largest = e.shift;
      for (int n = 0; n < N; ++n) largest = Larger{}(largest, next[n]);
      const Exponentials<R> grown{largest, 0};
      R sum = e.sum * grown(e.shift);
      for (int n = 0; n < N; ++n) sum += grown(next[n]);
      e = {largest, sum};
    }
    if constexpr (by_warp)
      e = reduce_warp(t, e, Joined{});
    else
      e = BlockReducer<Exponentials<R>>(t)(e, Joined{});
    if (rank != 0) return;
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

struct CountAsInteger {
  Global<const double> sum;
  Global<std::int32_t> count;
  SINKHORN_DEVICE void operator()(std::int64_t) const { count[0] = std::int32_t(sum[0]); }
};

template <class R>
struct MeanLoss {
  Global<const double> sum;
  Global<const std::int32_t> count;
  Global<R> loss;
  SINKHORN_DEVICE void operator()(std::int64_t) const { loss[0] = count[0] > 0 ? R(sum[0] / count[0]) : R(0); }
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
  template <int N>
  SINKHORN_DEVICE void operator()(std::int64_t i, Width<N>) const {
    const std::int64_t row = quotient(i, width), target = goals.ids[row] - (i - row * width);
    Pack<R, N> out = {};
    if (goals.counts(row)) {
      const R scale = (dloss ? dloss[0] : R(1)) / R(count[0]), shift = log_sum_exp[row];
      const auto in = load_real<N>(logits, i);
      for (int n = 0; n < N; ++n) out[n] = (math::exp(in[n] - shift) - R(n == target)) * scale;
    }
    dlogits.store(i, rounded<T>(out));
  }
};

}  // namespace

template <class T>
void CrossEntropy<T>::count(Cuda, std::int64_t rows, const Targets& targets, std::int32_t* count) {
  const Tensor sum = workspace({1}, DType::f64);
  sum_axis<double>("cross_entropy", Around(Shape{1, rows, 1}, 1), CountedRow{targets}, sum.data<double>());
  for_each("cross_entropy", 1, CountAsInteger{sum.data<double>(), count});
}

template <class T>
void CrossEntropy<T>::forward(Cuda, Rows rows, const Targets& targets, const T* logits, Real<T>* log_sum_exp,
                              Real<T>* losses) {
  using R = Real<T>;
  constexpr int kPack = pack_width<T>();
  const auto launched = [&]<int N, bool by_warp>(Width<N>, std::bool_constant<by_warp>) {
    constexpr int kTeams = by_warp ? 4 : 1;  // rows of a block
    launch("cross_entropy", pieces(rows.count, kTeams), by_warp ? kTeams * kWarp : kMaxThreads,
           reducer_bytes<Exponentials<R>>(),
           LossOfRows<T, N, by_warp>{rows.count, rows.width, targets, logits, log_sum_exp, losses, bad_index(),
                                     "cross_entropy: target"});
  };
  const auto by_width = [&]<int N>(Width<N> packs) {
    if (rows.width <= 16 * N * kWarp) return launched(packs, std::true_type{});
    launched(packs, std::false_type{});
  };
  if (rows.width % kPack == 0 && is_aligned<kPack>(logits))
    by_width(Width<kPack>{});
  else
    by_width(Width<1>{});
}

template <class T>
void CrossEntropy<T>::mean(Cuda, Rows rows, const Real<T>* losses, const std::int32_t* count, Real<T>* loss) {
  using R = Real<T>;
  const Tensor sum = workspace({1}, DType::f64);
  sum_axis<double>("cross_entropy", Around(Shape{1, rows.count, 1}, 1), RowLoss<R>{losses}, sum.data<double>());
  for_each("cross_entropy", 1, MeanLoss<R>{sum.data<double>(), count, loss});
}

template <class T>
void CrossEntropy<T>::backward(Cuda, Rows rows, const Targets& targets, const T* logits, const Real<T>* log_sum_exp,
                               const std::int32_t* count, const Real<T>* dloss, T* dlogits) {
  constexpr int N = pack_width<T>();
  for_each_pack<N>("cross_entropy", rows.count * rows.width,
                   rows.width % N == 0 && is_aligned<N>(logits) && is_aligned<N>(dlogits),
                   LossGradient<T>{rows.width, targets, logits, log_sum_exp, dloss, count, dlogits});
}

template struct CrossEntropy<float>;
template struct CrossEntropy<double>;
template struct CrossEntropy<bf16>;

}  // namespace sinkhorn::kernels
