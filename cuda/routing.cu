#include <cmath>

#include "autograd/ops/routing.h"
#include "cuda/best.h"
#include "cuda/reduce.h"
#include "cuda/scatter.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// The columns of one row that earlier picks have left.
template <class T>
struct Remaining {
  Global<const T> logits;
  Shared<std::int32_t> picks;
  std::int64_t taken;  // how many picks count

  SINKHORN_DEVICE bool is_left(std::int64_t i) const {
    for (std::int64_t k = 0; k < taken; ++k)
      if (picks[k] == i) return false;
    return true;
  }
  SINKHORN_DEVICE Real<T> operator()(std::int64_t i) const {
    return is_left(i) ? Real<T>(logits[i]) : -std::numeric_limits<Real<T>>::infinity();
  }
};

template <class T>
constexpr std::size_t top_k_bytes(std::int64_t n) {
  return reducer_bytes<Best<Real<T>>>() + reducer_bytes<Real<T>>() + std::size_t(n + 4) * sizeof(std::int32_t) +
         3 * (std::size_t(n + 2) * sizeof(Real<T>));
}

// One block per row.
template <class T>
struct PickRows {
  using R = Real<T>;
  std::int64_t width, n;
  R temperature;
  Global<const T> logits;
  Global<const std::int32_t> fixed;
  Global<T> weights;
  Global<std::int32_t> picks;
  BadIndex* bad;
  const char* what;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<Best<R>> best_of(t);
    const BlockReducer<R> reduce(t);
    const Shared<std::int32_t> chosen = t.shared<std::int32_t>(n);
    Remaining<T> row{logits + t.block() * width, chosen, 0};
    for (; row.taken < n; ++row.taken) {
      const std::int64_t at = t.block() * n + row.taken;
      const std::int32_t pick = fixed ? given(at) : search(t, row, best_of);
      R weight = 0;
      if (pick >= 0) {
        const Exponentials<R> e = exponentials(t, reduce, width, row, temperature);
        if (e.sum != 0)
          weight = e(row(pick), temperature) / e.sum;  // only a replayed pick can meet a row with nothing left
      }
      if (t.index() == 0) {
        if (!fixed) picks[at] = pick;  // else they are one tensor
        weights[at] = weight;
        chosen[row.taken] = pick;
      }
      t.sync();
    }
  }
  SINKHORN_DEVICE std::int32_t given(std::int64_t at) const {
    const std::int32_t pick = fixed[at];
    if (pick >= -1 && pick < width) return pick;
    *bad = {what, pick, -1, width};
    return -1;
  }
  SINKHORN_DEVICE std::int32_t search(const Thread& t, const Remaining<T>& row,
                                      const BlockReducer<Best<R>>& best_of) const {
    Best<R> best{-std::numeric_limits<R>::infinity(), -1};
    for (std::int64_t i = t.index(); i < width; i += t.size())
      if (const R x = row(i); x > best.value) best = {x, std::int32_t(i)};
    return best_of(best, Better{}).column;
  }
};

template <class T>
struct PickRowsGradient {
  using R = Real<T>;
  std::int64_t width, n;
  R temperature;
  Global<const T> logits;
  Global<const std::int32_t> picks;
  Global<const T> dweights;
  Global<T> dlogits;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const Shared<std::int32_t> chosen = t.shared<std::int32_t>(n);
    const Shared<R> shift = t.shared<R>(n), sum = t.shared<R>(n), scale = t.shared<R>(n);
    const std::int64_t first = t.block() * width;
    Remaining<T> row{logits + first, chosen, 0};
    for (; row.taken < n; ++row.taken) {
      const std::int64_t k = row.taken;
      const std::int32_t pick = picks[t.block() * n + k];
      Exponentials<R> e{0, 0};
      R factor = 0;
      if (pick >= 0) {
        e = exponentials(t, reduce, width, row, temperature);
        if (e.sum != 0) factor = R(dweights[t.block() * n + k]) * (e(row(pick), temperature) / e.sum) / temperature;
      }
      if (t.index() == 0) {
        chosen[k] = pick;
        shift[k] = e.shift;
        sum[k] = e.sum;
        scale[k] = factor;
      }
      t.sync();
    }
    for (std::int64_t i = t.index(); i < width; i += t.size()) {
      R flow = 0;
      for (std::int64_t k = 0; k < n; ++k) {
        if (chosen[k] < 0 || sum[k] == 0) continue;
        const Exponentials<R> e{shift[k], sum[k]};
        flow -= scale[k] * (e(logits[first + i], temperature) / e.sum);
        if (chosen[k] != i) continue;
        flow += scale[k];
        break;  // the later picks were made without this column
      }
      dlogits[first + i] = flow;
    }
  }
};

template <class T>
struct WeighBuckets {
  using R = Real<T>;
  Routes routes;
  Global<const T> x, weights;
  Global<const std::int32_t> picks;
  Global<T> y;
  BadIndex* bad;
  const char* what;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t row = i / routes.size, pick = picks[row];
    if (pick < -1 || pick >= routes.buckets) *bad = {what, pick, -1, routes.buckets};
    if (pick < 0 || pick >= routes.buckets) {
      y[i] = T(0);
      return;
    }
    const std::int64_t bucket = row / routes.rows * routes.buckets + pick;
    y[i] = R(weights[row]) * R(x[bucket * routes.size + i - row * routes.size]);
  }
};

// The bucket of all groups that a row takes; one past the last where it takes none.
struct BucketOfRow {
  Routes routes;
  Global<const std::int32_t> picks;
  Global<std::int32_t> keys;
  SINKHORN_DEVICE void operator()(std::int64_t row) const {
    const std::int32_t pick = picks[row];
    keys[row] = std::int32_t(pick < 0 || pick >= routes.buckets ? routes.groups * routes.buckets
                                                                : row / routes.rows * routes.buckets + pick);
  }
};

// <dy of the row, the bucket it took>; one block per row.
template <class T>
struct WeightGradient {
  using R = Real<T>;
  Routes routes;
  Global<const T> x, dy;
  Global<const std::int32_t> picks;
  Global<T> dweights;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const std::int64_t row = t.block(), pick = picks[row], size = routes.size;
    R dot = 0;
    if (pick >= 0 && pick < routes.buckets) {
      const auto bucket = x + (row / routes.rows * routes.buckets + pick) * size, flow = dy + row * size;
      for (std::int64_t i = t.index(); i < size; i += t.size()) dot += R(flow[i]) * R(bucket[i]);
    }
    dot = reduce.sum(dot);
    if (t.index() == 0) dweights[row] = dot;
  }
};

template <class T>
struct OneHotRows {
  std::int64_t columns;
  Global<const T> weights;
  Global<const std::int32_t> picks;
  Global<T> y;
  BadIndex* bad;
  const char* what;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t row = i / columns, column = i - row * columns, pick = picks[row];
    if (pick < -1 || pick >= columns) *bad = {what, pick, -1, columns};
    y[i] = pick == column ? T(weights[row]) : T(0);
  }
};
template <class T>
struct OneHotGradient {
  std::int64_t columns;
  Global<const std::int32_t> picks;
  Global<const T> dy;
  Global<T> dweights;
  SINKHORN_DEVICE void operator()(std::int64_t row) const {
    const std::int32_t pick = picks[row];
    dweights[row] = pick < 0 || pick >= columns ? T(0) : T(dy[row * columns + pick]);
  }
};

}  // namespace

template <class T>
void TopK<T>::forward(Cuda, Rows rows, std::int64_t n, Real<T> temperature, const T* logits, const std::int32_t* fixed,
                      T* weights, std::int32_t* picks) {
  launch("top_k", rows.count, threads_for(rows.width), top_k_bytes<T>(n),
         PickRows<T>{rows.width, n, temperature, logits, fixed, weights, picks, bad_index(), "top_k: pick"});
}
template <class T>
void TopK<T>::backward(Cuda, Rows rows, std::int64_t n, Real<T> temperature, const T* logits, const std::int32_t* picks,
                       const T* dweights, T* dlogits) {
  launch("top_k", rows.count, threads_for(rows.width), top_k_bytes<T>(n),
         PickRowsGradient<T>{rows.width, n, temperature, logits, picks, dweights, dlogits});
}

template <class T>
void GatherBuckets<T>::forward(Cuda, const Routes& routes, const T* x, const T* weights, const std::int32_t* picks,
                               T* y) {
  for_each("gather_buckets", routes.groups * routes.rows * routes.size,
           WeighBuckets<T>{routes, x, weights, picks, y, bad_index(), "gather_buckets: pick"});
}
template <class T>
void GatherBuckets<T>::backward(Cuda, const Routes& routes, const T* x, const T* weights, const std::int32_t* picks,
                                const T* dy, T* dx, T* dweights) {
  const std::int64_t rows = routes.groups * routes.rows;
  if (dx) {
    const Tensor keys = workspace({rows}, DType::i32);
    for_each("gather_buckets", rows, BucketOfRow{routes, picks, keys.data<std::int32_t>()});
    scatter_rows<T>("gather_buckets",
                    {rows, routes.groups * routes.buckets, routes.size, keys.data<std::int32_t>(), dy, weights}, dx);
  }
  if (dweights)
    launch("gather_buckets", rows, threads_for(routes.size), reducer_bytes<Real<T>>(),
           WeightGradient<T>{routes, x, dy, picks, dweights});
}

template <class T>
void SortingMatrix<T>::forward(Cuda, std::int64_t rows, std::int64_t columns, const T* weights,
                               const std::int32_t* picks, T* y) {
  for_each("sorting_matrix", rows * columns,
           OneHotRows<T>{columns, weights, picks, y, bad_index(), "sorting_matrix: pick"});
}
template <class T>
void SortingMatrix<T>::backward(Cuda, std::int64_t rows, std::int64_t columns, const std::int32_t* picks, const T* dy,
                                T* dweights) {
  for_each("sorting_matrix", rows, OneHotGradient<T>{columns, picks, dy, dweights});
}

template struct TopK<float>;
template struct TopK<double>;
template struct TopK<bf16>;
template struct GatherBuckets<float>;
template struct GatherBuckets<double>;
template struct GatherBuckets<bf16>;
template struct SortingMatrix<float>;
template struct SortingMatrix<double>;
template struct SortingMatrix<bf16>;

}  // namespace sinkhorn::kernels
