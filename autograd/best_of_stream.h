// The best few of logits that come one after the other, and the exponentials of all others: a differentiable top-k in
// one pass.
#pragma once
#include <cstdint>
#include <limits>

#include "autograd/cpu/vector_math.h"
#include "autograd/dtype.h"

namespace sinkhorn {

/// How many picks a stream can hold.
inline constexpr std::int64_t kMostStreamedPicks = 32;

/// What the exponentials of some logits were taken against, and their sum: 0 of none.
template <class R>
struct StreamSum {
  R shift = -std::numeric_limits<R>::infinity(), sum = 0;

  /// One more logit. -inf adds nothing; a NaN stays.
  SINKHORN_HD void add(R x, R temperature) {
    if (x > shift) {
      sum = sum * math::exp((shift - x) / temperature) + 1;
      shift = x;
    } else if (x != -std::numeric_limits<R>::infinity()) {
      sum += math::exp((x - shift) / temperature);
    }
  }
  /// The sum of others.
  SINKHORN_HD void add(const StreamSum& other, R temperature) {
    if (other.sum == 0) return;
    const R least = -std::numeric_limits<R>::infinity();
    const R largest = other.shift > shift ? other.shift : shift;
    const R own = shift == least ? R(0) : sum * math::exp((shift - largest) / temperature);
    sum = own + (other.shift == least ? other.sum : other.sum * math::exp((other.shift - largest) / temperature));
    shift = largest;
  }
};

/// One pick: its logit, and what the logits that it was chosen among add up to.
template <class R>
struct Chosen {
  R logit;
  StreamSum<R> among;
  SINKHORN_HD R weight(R temperature) const {
    return among.sum == 0 ? R(0) : math::exp((logit - among.shift) / temperature) / among.sum;
  }
};

/// The `n` best of what has been seen, the best first and of equals the lowest column, whatever the order in which they
/// come; or, with given picks, those.
template <class R>
class BestOfStream {
 public:
  SINKHORN_HD BestOfStream(int n, R temperature, bool are_given)
      : n_(n), temperature_(temperature), are_given_(are_given) {
    for (int k = 0; k < n; ++k) {
      value_[k] = -std::numeric_limits<R>::infinity();
      column_[k] = -1;
    }
  }
  SINKHORN_HD void give(int k, std::int32_t column) { column_[k] = column; }
  SINKHORN_HD std::int32_t column(int k) const { return column_[k]; }
  SINKHORN_HD R value(int k) const { return value_[k]; }
  SINKHORN_HD const StreamSum<R>& others() const { return others_; }

  SINKHORN_HD void see(R x, std::int32_t column) {
    if (are_given_) return see_given(x, column);
    if (x < least_ || x == -std::numeric_limits<R>::infinity() || !is_better(x, column, n_ - 1))
      return others_.add(x, temperature_);
    others_.add(value_[n_ - 1], temperature_);
    int k = n_ - 1;
    for (; k > 0 && is_better(x, column, k - 1); --k) {
      value_[k] = value_[k - 1];
      column_[k] = column_[k - 1];
    }
    value_[k] = x;
    column_[k] = column;
    least_ = value_[n_ - 1];
  }
  SINKHORN_HD void see(const StreamSum<R>& others) { others_.add(others, temperature_); }
  /// What another stream has seen of a given pick.
  SINKHORN_HD void see_value(int k, R value) {
    if (value > value_[k]) value_[k] = value;
  }

  /// Pick k. Earlier picks were left out when it was chosen.
  SINKHORN_HD Chosen<R> chosen(int k) const {
    Chosen<R> pick{value_[k], others_};
    if (column_[k] < 0) return {value_[k], {}};
    for (int later = k; later < n_; ++later) pick.among.add(value_[later], temperature_);
    return pick;
  }

 private:
  SINKHORN_HD bool is_better(R x, std::int32_t column, int than) const {
    return x > value_[than] || (x == value_[than] && column < column_[than]);
  }
  SINKHORN_HD void see_given(R x, std::int32_t column) {
    for (int k = 0; k < n_; ++k) {
      if (column_[k] != column) continue;
      value_[k] = x;
      return;
    }
    others_.add(x, temperature_);
  }

  int n_;
  R temperature_;
  bool are_given_;
  R least_ = -std::numeric_limits<R>::infinity();  // value_[n - 1]
  StreamSum<R> others_;
  R value_[kMostStreamedPicks];
  std::int32_t column_[kMostStreamedPicks];
};

/// The gradient of a row's logits, from the gradient of its weights: of a pick, and of any other logit.
template <class R>
struct StreamGradient {
  R shift = 0, factor = 0;  // of a logit x that was not picked: -factor exp((x - shift) / temperature)

  /// chosen(k) and flow(k), the gradient of its weight, are of the row's n picks; flows(k) takes that of its logit.
  template <class ChosenAt, class FlowAt, class Put>
  SINKHORN_HD StreamGradient(int n, R temperature, ChosenAt chosen, FlowAt flow, Put put) {
    for (int k = n - 1; k >= 0; --k) {
      if (chosen(k).among.sum == 0) continue;
      shift = chosen(k).among.shift;  // the least of all: fewer and fewer are left
      break;
    }
    // Among what pick k was chosen from, x has the probability exp((x - shift_k) / temperature) / sum_k.
    for (int k = 0; k < n; ++k) {
      const Chosen<R> pick = chosen(k);
      R own = 0;
      for (int earlier = 0; earlier <= k; ++earlier) {
        const Chosen<R> from = chosen(earlier);
        if (from.among.sum == 0) continue;
        const R scale = flow(earlier) * from.weight(temperature) / temperature;
        own -= scale * math::exp((pick.logit - from.among.shift) / temperature) / from.among.sum;
        if (earlier == k) own += scale;
      }
      put(k, own);
      if (pick.among.sum == 0) continue;
      factor += flow(k) * pick.weight(temperature) / temperature * math::exp((shift - pick.among.shift) / temperature) /
                pick.among.sum;
    }
  }
  SINKHORN_HD R operator()(R x, R temperature) const {
    return factor == 0 ? R(0) : -factor * math::exp((x - shift) / temperature);
  }
};

}  // namespace sinkhorn
