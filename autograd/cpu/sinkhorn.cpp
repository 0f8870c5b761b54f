#include "autograd/ops/sinkhorn.h"

#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {
namespace {

// Entries in the type of computation, -inf in closed columns: every sum then leaves those out by itself.
template <class T>
void load(const Matrices& shape, const T* x, const bool* open, Real<T>* z) {
  for (std::int64_t i = 0; i < shape.rows; ++i)
    for (std::int64_t j = 0; j < shape.columns; ++j)
      z[i * shape.columns + j] =
          open && !open[j] ? -std::numeric_limits<Real<T>>::infinity() : Real<T>(x[i * shape.columns + j]);
}

// The log of a sum of exponentials taken against `shift`. 0 stands for -inf, so that a row or column of -inf stays one
// when its potential is subtracted; a NaN stays a NaN.
template <class R>
R potential(R shift, R sum) {
  return sum == 0 ? R(0) : shift + std::log(sum);
}

// f_i = log sum_j exp(z_ij - g_j)
template <class R>
void row_potentials(const Matrices& shape, const R* z, const R* g, R* f, std::vector<R>& row) {
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    for (std::int64_t j = 0; j < shape.columns; ++j) row[j] = z[i * shape.columns + j] - g[j];
    const auto [shift, sum] = cpu::exponentials(shape.columns, row.data());
    f[i] = potential(shift, sum);
  }
}

// The largest z_ij - f_i of each column, or 0 where all are -inf; and the sums of the exponentials taken against it.
template <class R>
void column_sums(const Matrices& shape, const R* z, const R* f, std::vector<R>& shift, std::vector<R>& sum) {
  std::fill(shift.begin(), shift.end(), -std::numeric_limits<R>::infinity());
  std::fill(sum.begin(), sum.end(), R(0));
  for (std::int64_t i = 0; i < shape.rows; ++i)
    for (std::int64_t j = 0; j < shape.columns; ++j) {
      const R at = z[i * shape.columns + j] - f[i];
      shift[j] = at > shift[j] ? at : shift[j];
    }
  for (R& largest : shift) largest = std::isinf(largest) && largest < 0 ? R(0) : largest;
  for (std::int64_t i = 0; i < shape.rows; ++i)
    for (std::int64_t j = 0; j < shape.columns; ++j) sum[j] += math::exp(z[i * shape.columns + j] - f[i] - shift[j]);
}

}  // namespace

// The last column step is a softmax rather than exp(z - f - g): its sums stay 1 however large the scores.
template <class T>
void Sinkhorn<T>::forward(Cpu, const Matrices& shape, std::int64_t iterations, const T* x, const bool* open, T* y,
                          Real<T>* potentials) {
  using R = Real<T>;
  parallel_for(shape.count, grain_for(iterations * shape.size()), [=, &shape](std::int64_t begin, std::int64_t end) {
    std::vector<R> z(shape.size()), row(shape.columns), shift(row), sum(row);
    for (std::int64_t m = begin; m < end; ++m) {
      load(shape, x + m * shape.size(), open ? open + m * shape.columns : nullptr, z.data());
      const std::vector<R> none(shape.columns, R(0));
      const R* g = none.data();
      R* f = potentials + m * iterations * (shape.rows + shape.columns);
      for (std::int64_t t = 0; t < iterations; ++t, f += shape.rows + shape.columns) {
        row_potentials(shape, z.data(), g, f, row);
        column_sums(shape, z.data(), f, shift, sum);
        R* const next = f + shape.rows;
        for (std::int64_t j = 0; j < shape.columns; ++j) next[j] = potential(shift[j], sum[j]);
        g = next;
      }
      f -= shape.rows + shape.columns;
      for (R& s : sum) s = s == 0 ? R(0) : 1 / s;
      for (std::int64_t i = 0; i < shape.rows; ++i)
        for (std::int64_t j = 0; j < shape.columns; ++j)
          y[m * shape.size() + i * shape.columns + j] = math::exp(z[i * shape.columns + j] - f[i] - shift[j]) * sum[j];
    }
  });
}

// Every normalised matrix is taken anew from its potentials: I (N + M) numbers are kept in place of 2 I N M.
template <class T>
void Sinkhorn<T>::backward(Cpu, const Matrices& shape, std::int64_t iterations, const T* x, const bool* open,
                           const Real<T>* potentials, const T* dy, T* dx) {
  using R = Real<T>;
  const std::int64_t rows = shape.rows, columns = shape.columns;
  parallel_for(
      shape.count, grain_for(2 * iterations * shape.size()), [=, &shape](std::int64_t begin, std::int64_t end) {
        std::vector<R> z(shape.size()), dz(z), p(z), df(rows), dg(columns);
        const std::vector<R> none(columns, R(0));
        for (std::int64_t m = begin; m < end; ++m) {
          const bool* const exists = open ? open + m * columns : nullptr;
          load(shape, x + m * shape.size(), exists, z.data());
          const R* f = potentials + ((m + 1) * iterations - 1) * (rows + columns);
          const R* g = f + rows;

          const T* const flow = dy + m * shape.size();
          std::fill(dg.begin(), dg.end(), R(0));
          for (std::int64_t i = 0; i < rows; ++i)
            for (std::int64_t j = 0, k = i * columns; j < columns; ++j, ++k) {
              p[k] = math::exp(z[k] - f[i] - g[j]);
              dz[k] = exists && !exists[j] ? R(0) : R(flow[k]);
              dg[j] += p[k] * dz[k];
            }
          for (std::int64_t i = 0; i < rows; ++i) {
            for (std::int64_t j = 0, k = i * columns; j < columns; ++j, ++k) dz[k] = p[k] * (dz[k] - dg[j]);
            df[i] = -cpu::row_sum<R>(columns, [&, row = dz.data() + i * columns](std::int64_t j) { return row[j]; });
          }

          for (std::int64_t t = iterations - 1; t >= 0; --t) {
            g = t > 0 ? f - columns : none.data();
            std::fill(dg.begin(), dg.end(), R(0));
            for (std::int64_t i = 0; i < rows; ++i)
              for (std::int64_t j = 0, k = i * columns; j < columns; ++j, ++k) {
                const R part = math::exp(z[k] - g[j] - f[i]) * df[i];
                dz[k] += part;
                dg[j] -= part;
              }
            if (t == 0) break;
            f -= rows + columns;
            for (std::int64_t i = 0; i < rows; ++i) {
              for (std::int64_t j = 0, k = i * columns; j < columns; ++j, ++k) {
                p[k] = math::exp(z[k] - f[i] - g[j]) * dg[j];
                dz[k] += p[k];
              }
              df[i] = -cpu::row_sum<R>(columns, [&, row = p.data() + i * columns](std::int64_t j) { return row[j]; });
            }
          }
          for (std::int64_t k = 0; k < shape.size(); ++k)
            dx[m * shape.size() + k] = exists && !exists[k % columns] ? R(0) : dz[k];
        }
      });
}

template struct Sinkhorn<float>;
template struct Sinkhorn<double>;
template struct Sinkhorn<bf16>;

}  // namespace sinkhorn::kernels
