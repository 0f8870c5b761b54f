// Sums and maxima over the threads of a warp or a block, in an order that follows from the number of threads alone.
#pragma once
#include <limits>

#include "autograd/cpu/vector_math.h"
#include "cuda/launch.h"

namespace sinkhorn::cuda {

struct Plus {
  template <class R>
  SINKHORN_DEVICE R operator()(R a, R b) const {
    return a + b;
  }
};
/// NaNs may be passed over.
struct Larger {
  template <class R>
  SINKHORN_DEVICE R operator()(R a, R b) const {
    return a < b ? b : a;
  }
};

/// Every lane gets the result.
template <class R, class Combine>
SINKHORN_DEVICE R reduce_warp(const Thread& t, R x, Combine combine) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = combine(x, t.shuffle_xor(x, mask));
  return x;
}

/// Bytes of shared memory of a BlockReducer<R>.
template <class R>
constexpr std::size_t reducer_bytes() {
  return (kMaxThreads / kWarp * sizeof(R) + 15) / 16 * 16;
}

/// Combines one value of each thread of a block; every thread gets the result and calls it together with the others.
template <class R>
class BlockReducer {
 public:
  SINKHORN_DEVICE explicit BlockReducer(Thread& t) : t_(t), scratch_(t.shared<R>(kMaxThreads / kWarp)) {}

  template <class Combine>
  SINKHORN_DEVICE R operator()(R x, Combine combine) const {
    x = reduce_warp(t_, x, combine);
    if (t_.warps() == 1) return x;
    if (t_.lane() == 0) scratch_[t_.warp()] = x;
    t_.sync();
    x = scratch_[0];
    for (int warp = 1; warp < t_.warps(); ++warp) x = combine(x, R(scratch_[warp]));
    t_.sync();  // before the next call writes
    return x;
  }
  SINKHORN_DEVICE R sum(R x) const { return (*this)(x, Plus{}); }
  SINKHORN_DEVICE R max(R x) const { return (*this)(x, Larger{}); }

 private:
  const Thread& t_;
  Shared<R> scratch_;
};

/// What the exponentials of a row were taken against, and their sum: 0 if the row is empty or -inf throughout.
template <class R>
struct Exponentials {
  R shift, sum;
  /// exp((x - shift) / temperature); of -inf exactly 0.
  SINKHORN_DEVICE R operator()(R x, R temperature = 1) const { return math::exp((x - shift) / temperature); }
};

/// Those of x(0) .. x(n-1), by all threads of a block: shift = max x, so that nothing overflows.
template <class R, class X>
SINKHORN_DEVICE Exponentials<R> exponentials(const Thread& t, const BlockReducer<R>& reduce, std::int64_t n, X x,
                                             R temperature = 1) {
  constexpr R none = -std::numeric_limits<R>::infinity();
  R largest = none, sum = 0;
  for (std::int64_t i = t.index(); i < n; i += t.size()) largest = Larger{}(largest, R(x(i)));
  largest = reduce.max(largest);
  Exponentials<R> row{largest == none ? R(0) : largest, 0};
  for (std::int64_t i = t.index(); i < n; i += t.size()) sum += row(x(i), temperature);
  row.sum = reduce.sum(sum);
  return row;
}

}  // namespace sinkhorn::cuda
