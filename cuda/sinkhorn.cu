#include <cmath>

#include "autograd/ops/sinkhorn.h"
#include "cuda/reduce.h"
#include "cuda/runtime.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// One matrix per block: its warps share the rows, its threads the columns. exp(z - f - g) is what the potentials f
// (rows) and g (columns) make of the matrix z.
template <class T>
struct Matrix {
  using R = Real<T>;
  std::int64_t rows, columns, iterations;
  Global<const T> x;
  Global<const bool> open;

  // Closed columns are -inf, so that every sum leaves them out by itself.
  SINKHORN_DEVICE R z(std::int64_t m, std::int64_t i, std::int64_t j) const {
    return is_closed(m, j) ? -std::numeric_limits<R>::infinity() : R(x[(m * rows + i) * columns + j]);
  }
  SINKHORN_DEVICE bool is_closed(std::int64_t m, std::int64_t j) const { return open && !open[m * columns + j]; }
  // Where f of iteration t begins; g follows it.
  SINKHORN_DEVICE std::int64_t potentials(std::int64_t m, std::int64_t t) const {
    return (m * iterations + t) * (rows + columns);
  }
};

// The log of a sum of exponentials taken against `shift`. 0 stands for -inf, so that a row or column of -inf stays one
// when its potential is subtracted; a NaN stays a NaN.
template <class R>
SINKHORN_DEVICE R potential(R shift, R sum) {
  return sum == 0 ? R(0) : shift + std::log(sum);
}
template <class R>
SINKHORN_DEVICE R finite_shift(R largest) {
  return largest == -std::numeric_limits<R>::infinity() ? R(0) : largest;
}

// f_i = log sum_j exp(z_ij - g_j),  g_j = log sum_i exp(z_ij - f_i). The last column step is a softmax rather than
// exp(z - f - g): its sums stay 1 however large the scores.
template <class T>
struct Normalise {
  using R = Real<T>;
  Matrix<T> s;
  Global<T> y;
  Global<R> potentials;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    constexpr R none = -std::numeric_limits<R>::infinity();
    const std::int64_t m = t.block();
    for (std::int64_t step = 0; step < s.iterations; ++step) {
      const auto f = potentials + s.potentials(m, step), g = f + s.rows, g_before = f + -s.columns;
      for (std::int64_t i = t.warp(); i < s.rows; i += t.warps()) {
        const auto at = [&](std::int64_t j) { return s.z(m, i, j) - (step == 0 ? R(0) : R(g_before[j])); };
        R largest = none, sum = 0;
        for (std::int64_t j = t.lane(); j < s.columns; j += kWarp) largest = Larger{}(largest, at(j));
        const R shift = finite_shift(reduce_warp(t, largest, Larger{}));
        for (std::int64_t j = t.lane(); j < s.columns; j += kWarp) sum += math::exp(at(j) - shift);
        sum = reduce_warp(t, sum, Plus{});
        if (t.lane() == 0) f[i] = potential(shift, sum);
      }
      t.sync();
      for (std::int64_t j = t.index(); j < s.columns; j += t.size()) {
        R largest = none, sum = 0;
        for (std::int64_t i = 0; i < s.rows; ++i) largest = Larger{}(largest, s.z(m, i, j) - R(f[i]));
        const R shift = finite_shift(largest);
        for (std::int64_t i = 0; i < s.rows; ++i) sum += math::exp(s.z(m, i, j) - R(f[i]) - shift);
        g[j] = potential(shift, sum);
        if (step + 1 < s.iterations) continue;
        const R scale = sum == 0 ? R(0) : 1 / sum;
        for (std::int64_t i = 0; i < s.rows; ++i)
          y[(m * s.rows + i) * s.columns + j] = math::exp(s.z(m, i, j) - R(f[i]) - shift) * scale;
      }
      t.sync();
    }
  }
};

// Every normalised matrix is taken anew from its potentials.
template <class T>
struct NormaliseGradient {
  using R = Real<T>;
  Matrix<T> s;
  Global<const R> potentials;
  Global<const T> dy;
  Global<R> dz, df, dg;  // (count, rows, columns), (count, rows), (count, columns)
  Global<T> dx;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const std::int64_t m = t.block(), first = m * s.rows * s.columns;
    const auto row_flow = df + m * s.rows, column_flow = dg + m * s.columns;
    const auto place = [&](std::int64_t i, std::int64_t j) { return first + i * s.columns + j; };
    const auto last = potentials + s.potentials(m, s.iterations - 1);

    // Through y = exp(z - f - g): dz_ij = y_ij (dy_ij - c_j), c_j = sum_i y_ij dy_ij, and df_i = -sum_j dz_ij.
    for (std::int64_t j = t.index(); j < s.columns; j += t.size()) {
      const auto y = [&](std::int64_t i) { return math::exp(s.z(m, i, j) - last[i] - last[s.rows + j]); };
      const auto flow = [&](std::int64_t i) { return s.is_closed(m, j) ? R(0) : R(dy[place(i, j)]); };
      R c = 0;
      for (std::int64_t i = 0; i < s.rows; ++i) c += y(i) * flow(i);
      for (std::int64_t i = 0; i < s.rows; ++i) dz[place(i, j)] = y(i) * (flow(i) - c);
    }
    t.sync();
    for (std::int64_t i = t.warp(); i < s.rows; i += t.warps()) {
      R sum = 0;
      for (std::int64_t j = t.lane(); j < s.columns; j += kWarp) sum += R(dz[place(i, j)]);
      sum = reduce_warp(t, sum, Plus{});
      if (t.lane() == 0) row_flow[i] = -sum;
    }
    t.sync();
    for (std::int64_t step = s.iterations - 1; step >= 0; --step) {
      const auto f = potentials + s.potentials(m, step), g_before = f + -s.columns,
                 f_before = f + -(s.rows + s.columns);
      // Through the row potentials: dz_ij += s_ij df_i, dg_j = -sum_i s_ij df_i, s = exp(z - g - f), g of the step
      // before.
      for (std::int64_t j = t.index(); j < s.columns; j += t.size()) {
        const R g = step == 0 ? R(0) : g_before[j];
        R sum = 0;
        for (std::int64_t i = 0; i < s.rows; ++i) {
          const R flow = math::exp(s.z(m, i, j) - g - f[i]) * R(row_flow[i]), total = R(dz[place(i, j)]) + flow;
          sum -= flow;
          if (step > 0)
            dz[place(i, j)] = total;
          else
            dx[place(i, j)] = s.is_closed(m, j) ? R(0) : total;
        }
        column_flow[j] = sum;
      }
      if (step == 0) return;
      t.sync();
      // Through the column potentials before: dz_ij += p_ij dg_j, df_i = -sum_j p_ij dg_j, p = exp(z - f - g).
      for (std::int64_t i = t.warp(); i < s.rows; i += t.warps()) {
        R sum = 0;
        for (std::int64_t j = t.lane(); j < s.columns; j += kWarp) {
          const R flow = math::exp(s.z(m, i, j) - f_before[i] - g_before[j]) * R(column_flow[j]);
          dz[place(i, j)] = R(dz[place(i, j)]) + flow;
          sum += flow;
        }
        sum = reduce_warp(t, sum, Plus{});
        if (t.lane() == 0) row_flow[i] = -sum;
      }
      t.sync();
    }
  }
};

}  // namespace

template <class T>
void Sinkhorn<T>::forward(Cuda, const Matrices& shape, std::int64_t iterations, const T* x, const bool* open, T* y,
                          Real<T>* potentials) {
  launch("sinkhorn", shape.count, kMaxThreads, 0,
         Normalise<T>{{shape.rows, shape.columns, iterations, x, open}, y, potentials});
}

template <class T>
void Sinkhorn<T>::backward(Cuda, const Matrices& shape, std::int64_t iterations, const T* x, const bool* open,
                           const Real<T>* potentials, const T* dy, T* dx) {
  using R = Real<T>;
  const Tensor dz = workspace({shape.count, shape.size()}, dtype_of<R>);
  const Tensor df = workspace({shape.count, shape.rows}, dtype_of<R>),
               dg = workspace({shape.count, shape.columns}, dtype_of<R>);
  launch("sinkhorn", shape.count, kMaxThreads, 0,
         NormaliseGradient<T>{{shape.rows, shape.columns, iterations, x, open},
                              potentials,
                              dy,
                              dz.data<R>(),
                              df.data<R>(),
                              dg.data<R>(),
                              dx});
}

template struct Sinkhorn<float>;
template struct Sinkhorn<double>;
template struct Sinkhorn<bf16>;

}  // namespace sinkhorn::kernels
