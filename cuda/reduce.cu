#include <cmath>

#include "autograd/ops/reduce.h"
#include "cuda/scan.h"
#include "cuda/sums.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

template <class T>
struct LargestOfColumn {
  std::int64_t extent, after;
  Global<const T> x;
  Global<T> y;
  Global<std::int32_t> index;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    using R = Real<T>;
    const auto column = x + (i / after * extent * after + i % after);
    std::int64_t best = 0;
    R largest = column[0];
    for (std::int64_t k = 1; k < extent && !std::isnan(largest); ++k) {
      const R next = column[k * after];
      if (next <= largest) continue;  // larger, or a NaN, goes on
      best = k;
      largest = next;
    }
    index[i] = std::int32_t(best);
    y[i] = column[best * after];
  }
};

template <class T>
struct LargestGradient {
  std::int64_t extent, after;
  Global<const std::int32_t> index;
  Global<const T> dy;
  Global<T> dx;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t before = i / (extent * after), k = i / after % extent, column = before * after + i % after;
    dx[i] = index[column] == k ? T(dy[column]) : T(0);
  }
};

// --- running means: chunks of time are summed, the sums of chunks before (or behind) each are added up, and then every
// chunk is walked from there. Index i of a kernel is (before, chunk, column).

struct Moments {
  std::int64_t extent, after, chunk, chunks;
  Global<const bool> allowed;  // (before, extent)

  SINKHORN_DEVICE std::int64_t first(std::int64_t i) const { return i / after % chunks * chunk; }
  SINKHORN_DEVICE std::int64_t end(std::int64_t i) const {
    const std::int64_t next = first(i) + chunk;
    return next < extent ? next : extent;
  }
  SINKHORN_DEVICE std::int64_t row(std::int64_t i, std::int64_t t) const { return i / after / chunks * extent + t; }
  SINKHORN_DEVICE bool counts(std::int64_t row) const { return !allowed || allowed[row]; }
  SINKHORN_DEVICE static double share(std::int64_t count) { return 1 / double(count > 1 ? count : 1); }
};

// counts (before, chunks): allowed moments of each chunk
struct CountChunk {
  Moments m;
  Global<std::int32_t> counts;
  SINKHORN_DEVICE void operator()(std::int64_t c) const {
    std::int32_t count = 0;
    const std::int64_t i = c * m.after;
    for (std::int64_t t = m.first(i); t < m.end(i); ++t) count += m.counts(m.row(i, t));
    counts[c] = count;
  }
};

template <class T>
struct SumChunk {
  Moments m;
  Global<const T> x;
  Global<double> sums;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    double sum = 0;
    for (std::int64_t t = m.first(i); t < m.end(i); ++t)
      if (const std::int64_t row = m.row(i, t); m.counts(row)) sum += Real<T>(x[row * m.after + i % m.after]);
    sums[i] = sum;
  }
};

template <class T>
struct MeansOfChunk {
  Moments m;
  Global<const double> sums;
  Global<const std::int32_t> counts;
  Global<const T> x;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    double sum = sums[i];
    std::int64_t count = counts[i / m.after];
    for (std::int64_t t = m.first(i); t < m.end(i); ++t) {
      const std::int64_t row = m.row(i, t), at = row * m.after + i % m.after;
      if (m.counts(row)) {
        ++count;
        sum += Real<T>(x[at]);
      }
      y[at] = T(Real<T>(sum * Moments::share(count)));
    }
  }
};

// sums of dy_t / c_t
template <class T>
struct SumFlowOfChunk {
  Moments m;
  Global<const std::int32_t> counts;
  Global<const T> dy;
  Global<double> sums;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    double sum = 0;
    std::int64_t count = counts[i / m.after];
    for (std::int64_t t = m.first(i); t < m.end(i); ++t) {
      const std::int64_t row = m.row(i, t);
      count += m.counts(row);
      sum += Real<T>(dy[row * m.after + i % m.after]) * Moments::share(count);
    }
    sums[i] = sum;
  }
};

template <class T>
struct FlowOfChunk {
  Moments m;
  Global<const double> sums;  // of the chunks behind
  Global<const std::int32_t> counts;
  Global<const T> dy;
  Global<T> dx;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    double sum = sums[i];
    std::int64_t count = counts[i / m.after];
    for (std::int64_t t = m.first(i); t < m.end(i); ++t) count += m.counts(m.row(i, t));
    for (std::int64_t t = m.end(i) - 1; t >= m.first(i); --t) {
      const std::int64_t row = m.row(i, t), at = row * m.after + i % m.after;
      sum += Real<T>(dy[at]) * Moments::share(count);
      dx[at] = m.counts(row) ? T(Real<T>(sum)) : T(0);
      count -= m.counts(row);
    }
  }
};

struct ChunkedTime {
  ChunkedTime(const Around& shape, const bool* allowed)
      : m{shape.extent, shape.after, 64, pieces(shape.extent, 64), allowed},
        tasks(shape.before * m.chunks * shape.after),
        columns(shape.before * shape.after),
        sums(workspace({shape.before, m.chunks, shape.after}, DType::f64)),
        counts(workspace({shape.before, m.chunks}, DType::i32)) {
    for_each("cumulative_mean", counts.count(), CountChunk{m, count()});
    for_each("cumulative_mean", shape.before, SumBefore<std::int32_t>{m.chunks, 1, false, count()});
  }
  void add_up(bool backwards) const {
    for_each("cumulative_mean", columns, SumBefore<double>{m.chunks, m.after, backwards, sum()});
  }
  double* sum() const { return sums.data<double>(); }
  std::int32_t* count() const { return counts.data<std::int32_t>(); }

  Moments m;
  std::int64_t tasks, columns;
  Tensor sums, counts;
};

}  // namespace

template <class T>
void Sum<T>::forward(Cuda, Around shape, const T* x, T* y) {
  sum_axis<Real<T>>("sum", shape, MatrixElement<T>{shape.after, x}, y);
}

template <class T>
void Max<T>::forward(Cuda, Around shape, const T* x, T* y, std::int32_t* index) {
  for_each("max", shape.before * shape.after, LargestOfColumn<T>{shape.extent, shape.after, x, y, index});
}
template <class T>
void Max<T>::backward(Cuda, Around shape, const std::int32_t* index, const T* dy, T* dx) {
  for_each("max", shape.before * shape.extent * shape.after,
           LargestGradient<T>{shape.extent, shape.after, index, dy, dx});
}

template <class T>
void CumulativeMean<T>::forward(Cuda, Around shape, const T* x, const bool* allowed, T* y) {
  if (shape.before * shape.extent * shape.after == 0) return;
  const ChunkedTime time(shape, allowed);
  for_each("cumulative_mean", time.tasks, SumChunk<T>{time.m, x, time.sum()});
  time.add_up(false);
  for_each("cumulative_mean", time.tasks, MeansOfChunk<T>{time.m, time.sum(), time.count(), x, y});
}
template <class T>
void CumulativeMean<T>::backward(Cuda, Around shape, const bool* allowed, const T* dy, T* dx) {
  if (shape.before * shape.extent * shape.after == 0) return;
  const ChunkedTime time(shape, allowed);
  for_each("cumulative_mean", time.tasks, SumFlowOfChunk<T>{time.m, time.count(), dy, time.sum()});
  time.add_up(true);
  for_each("cumulative_mean", time.tasks, FlowOfChunk<T>{time.m, time.sum(), time.count(), dy, dx});
}

template struct Sum<float>;
template struct Sum<double>;
template struct Sum<bf16>;
template struct Max<float>;
template struct Max<double>;
template struct Max<bf16>;
template struct CumulativeMean<float>;
template struct CumulativeMean<double>;
template struct CumulativeMean<bf16>;

}  // namespace sinkhorn::kernels
