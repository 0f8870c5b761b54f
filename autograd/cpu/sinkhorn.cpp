#include "autograd/ops/sinkhorn.h"

#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {
namespace {

// One matrix in the type of computation: exp(z - f - g) is what the potentials f (rows) and g (columns) make of it.
template <class R>
struct Scores {
  explicit Scores(const Matrices& shape) : rows(shape.rows), columns(shape.columns), z(shape.size()) {}

  // Closed columns become -inf, so that every sum leaves them out by itself.
  template <class T>
  void load(const T* x, const bool* open) {
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j)
        z[i * columns + j] = open && !open[j] ? -std::numeric_limits<R>::infinity() : R(x[i * columns + j]);
  }

  std::int64_t rows, columns;
  std::vector<R> z;
};

// The log of a sum of exponentials taken against `shift`. 0 stands for -inf, so that a row or column of -inf stays one
// when its potential is subtracted; a NaN stays a NaN.
template <class R>
R potential(R shift, R sum) {
  return sum == 0 ? R(0) : shift + std::log(sum);
}

// f_i = log sum_j exp(z_ij - g_j)
template <class R>
void row_potentials(const Scores<R>& s, const R* g, R* f, std::vector<R>& row) {
  for (std::int64_t i = 0; i < s.rows; ++i) {
    for (std::int64_t j = 0; j < s.columns; ++j) row[j] = s.z[i * s.columns + j] - g[j];
    const auto [shift, sum] = cpu::exponentials(s.columns, row.data());
    f[i] = potential(shift, sum);
  }
}

// The largest z_ij - f_i of each column, or 0 where all are -inf, and the sum of the exponentials taken against it.
template <class R>
void column_sums(const Scores<R>& s, const R* f, std::vector<R>& shift, std::vector<R>& sum) {
  std::fill(shift.begin(), shift.end(), -std::numeric_limits<R>::infinity());
  std::fill(sum.begin(), sum.end(), R(0));
  for (std::int64_t i = 0; i < s.rows; ++i)
    for (std::int64_t j = 0; j < s.columns; ++j) {
      const R at = s.z[i * s.columns + j] - f[i];
      shift[j] = at > shift[j] ? at : shift[j];
    }
  for (R& largest : shift) largest = std::isinf(largest) && largest < 0 ? R(0) : largest;
  for (std::int64_t i = 0; i < s.rows; ++i)
    for (std::int64_t j = 0; j < s.columns; ++j) sum[j] += math::exp(s.z[i * s.columns + j] - f[i] - shift[j]);
}

// Back through y = exp(z - f - g), g the column potentials of f:
// dz_ij = y_ij (dy_ij - c_j), c_j = sum_i y_ij dy_ij, and df_i = -sum_j dz_ij. `dz` holds dy at first.
template <class R>
void result_backward(const Scores<R>& s, const R* f, const R* g, R* dz, R* df, std::vector<R>& y, std::vector<R>& c) {
  std::fill(c.begin(), c.end(), R(0));
  for (std::int64_t i = 0; i < s.rows; ++i)
    for (std::int64_t j = 0, k = i * s.columns; j < s.columns; ++j, ++k) {
      y[k] = math::exp(s.z[k] - f[i] - g[j]);
      c[j] += y[k] * dz[k];
    }
  for (std::int64_t i = 0; i < s.rows; ++i) {
    R* const row = dz + i * s.columns;
    for (std::int64_t j = 0; j < s.columns; ++j) row[j] = y[i * s.columns + j] * (row[j] - c[j]);
    df[i] = -cpu::row_sum<R>(s.columns, [=](std::int64_t j) { return row[j]; });
  }
}

// Back through f, the row potentials of g: dz_ij += s_ij df_i, dg_j = -sum_i s_ij df_i, s = exp(z - g - f).
template <class R>
void row_potentials_backward(const Scores<R>& s, const R* f, const R* g, const R* df, R* dz, R* dg) {
  std::fill_n(dg, s.columns, R(0));
  for (std::int64_t i = 0; i < s.rows; ++i)
    for (std::int64_t j = 0, k = i * s.columns; j < s.columns; ++j, ++k) {
      const R flow = math::exp(s.z[k] - g[j] - f[i]) * df[i];
      dz[k] += flow;
      dg[j] -= flow;
    }
}

// Back through g, the column potentials of f: dz_ij += p_ij dg_j, df_i = -sum_j p_ij dg_j, p = exp(z - f - g).
template <class R>
void column_potentials_backward(const Scores<R>& s, const R* f, const R* g, const R* dg, R* dz, R* df,
                                std::vector<R>& flow) {
  for (std::int64_t i = 0; i < s.rows; ++i) {
    for (std::int64_t j = 0, k = i * s.columns; j < s.columns; ++j, ++k) {
      flow[j] = math::exp(s.z[k] - f[i] - g[j]) * dg[j];
      dz[k] += flow[j];
    }
    df[i] = -cpu::row_sum<R>(s.columns, [&](std::int64_t j) { return flow[j]; });
  }
}

}  // namespace

// The last column step is a softmax rather than exp(z - f - g): its sums stay 1 however large the scores.
template <class T>
void Sinkhorn<T>::forward(Cpu, const Matrices& shape, std::int64_t iterations, const T* x, const bool* open, T* y,
                          Real<T>* potentials) {
  using R = Real<T>;
  const std::int64_t size = shape.size(), pair = shape.rows + shape.columns;
  parallel_for(shape.count, grain_for(2 * iterations * size), [=, &shape](std::int64_t begin, std::int64_t end) {
    Scores<R> s(shape);
    std::vector<R> row(shape.columns), shift(row), sum(row);
    const std::vector<R> zero(shape.columns);
    for (std::int64_t m = begin; m < end; ++m) {
      s.load(x + m * size, open ? open + m * shape.columns : nullptr);
      R* f = nullptr;
      for (std::int64_t t = 0; t < iterations; ++t) {
        const R* const before = f ? f + shape.rows : zero.data();
        f = potentials + (m * iterations + t) * pair;
        row_potentials(s, before, f, row);
        column_sums(s, f, shift, sum);
        for (std::int64_t j = 0; j < shape.columns; ++j) f[shape.rows + j] = potential(shift[j], sum[j]);
      }
      for (R& total : sum) total = total == 0 ? R(0) : 1 / total;
      for (std::int64_t i = 0, k = 0; i < shape.rows; ++i)
        for (std::int64_t j = 0; j < shape.columns; ++j, ++k)
          y[m * size + k] = math::exp(s.z[k] - f[i] - shift[j]) * sum[j];
    }
  });
}

// Every normalised matrix is taken anew from its potentials: I (N + M) numbers are kept instead of 2 I N M.
template <class T>
void Sinkhorn<T>::backward(Cpu, const Matrices& shape, std::int64_t iterations, const T* x, const bool* open,
                           const Real<T>* potentials, const T* dy, T* dx) {
  using R = Real<T>;
  const std::int64_t size = shape.size(), pair = shape.rows + shape.columns;
  parallel_for(shape.count, grain_for(4 * iterations * size), [=, &shape](std::int64_t begin, std::int64_t end) {
    Scores<R> s(shape);
    std::vector<R> dz(size), y(size), df(shape.rows), dg(shape.columns), flow(dg);
    const std::vector<R> zero(shape.columns);
    for (std::int64_t m = begin; m < end; ++m) {
      const bool* const exists = open ? open + m * shape.columns : nullptr;
      auto closed = [=](std::int64_t k) { return exists && !exists[k % shape.columns]; };
      s.load(x + m * size, exists);
      for (std::int64_t k = 0; k < size; ++k) dz[k] = closed(k) ? R(0) : R(dy[m * size + k]);

      const R* f = potentials + ((m + 1) * iterations - 1) * pair;
      result_backward(s, f, f + shape.rows, dz.data(), df.data(), y, flow);
      for (std::int64_t t = iterations - 1; t > 0; --t) {
        const R *later = f, *g = f - shape.columns;  // g of iteration t - 1 lies right before f of t
        f -= pair;
        row_potentials_backward(s, later, g, df.data(), dz.data(), dg.data());
        column_potentials_backward(s, f, g, dg.data(), dz.data(), df.data(), flow);
      }
      row_potentials_backward(s, f, zero.data(), df.data(), dz.data(), dg.data());
      for (std::int64_t k = 0; k < size; ++k) dx[m * size + k] = closed(k) ? R(0) : dz[k];
    }
  });
}

template struct Sinkhorn<float>;
template struct Sinkhorn<double>;
template struct Sinkhorn<bf16>;

}  // namespace sinkhorn::kernels
