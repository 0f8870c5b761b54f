#include "autograd/ops/softmax.h"

#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {
namespace {

// Calls body(r, row) for each row r of x in Real<T>, -inf where it is not allowed. The body may write into `row`.
template <class T, class Body>
void for_each_row(Rows rows, const T* x, const bool* allowed, Body body) {
  using R = Real<T>;
  parallel_for(rows.count, grain_for(rows.width), [=](std::int64_t begin, std::int64_t end) {
    std::vector<R> row(std::size_t(rows.width));
    for (std::int64_t r = begin; r < end; ++r) {
      std::copy_n(x + r * rows.width, rows.width, row.begin());
      if (allowed)
        for (std::int64_t i = 0; i < rows.width; ++i)
          row[i] = allowed[r * rows.width + i] ? row[i] : -std::numeric_limits<R>::infinity();
      body(r, row.data());
    }
  });
}

}  // namespace

// y_i = exp(x_i - m) / sum_j exp(x_j - m),  m = max_j x_j, over the allowed j
template <class T>
void Softmax<T>::forward(Cpu, Rows rows, const T* x, const bool* allowed, T* y) {
  using R = Real<T>;
  for_each_row(rows, x, allowed, [=](std::int64_t r, R* row) {
    const R sum = cpu::exponentials(rows.width, row).sum;
    const R scale = sum == 0 ? R(0) : 1 / sum;  // a NaN stays a NaN
    for (std::int64_t i = 0; i < rows.width; ++i) y[r * rows.width + i] = row[i] * scale;
  });
}

// dx_i = y_i (dy_i - sum_j dy_j y_j)
template <class T>
void Softmax<T>::backward(Cpu, Rows rows, const T* y, const T* dy, T* dx) {
  using R = Real<T>;
  parallel_for(rows.count, grain_for(rows.width), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin * rows.width; r < end * rows.width; r += rows.width) {
      const R dot = cpu::row_sum<R>(rows.width, [=](std::int64_t i) { return R(dy[r + i]) * R(y[r + i]); });
      for (std::int64_t i = 0; i < rows.width; ++i) dx[r + i] = R(y[r + i]) * (R(dy[r + i]) - dot);
    }
  });
}

// y_i = x_i - m - log sum_j exp(x_j - m)
template <class T>
void LogSoftmax<T>::forward(Cpu, Rows rows, const T* x, T* y) {
  using R = Real<T>;
  for_each_row(rows, x, nullptr, [=](std::int64_t r, R* row) {
    const auto [shift, sum] = cpu::exponentials(rows.width, row);
    const R log_sum = sum == 0 ? R(0) : std::log(sum);  // a row of -inf stays one
    for (std::int64_t i = r * rows.width; i < (r + 1) * rows.width; ++i) y[i] = R(x[i]) - shift - log_sum;
  });
}

// dx_i = dy_i - exp(y_i) sum_j dy_j
template <class T>
void LogSoftmax<T>::backward(Cpu, Rows rows, const T* y, const T* dy, T* dx) {
  using R = Real<T>;
  parallel_for(rows.count, grain_for(rows.width), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin * rows.width; r < end * rows.width; r += rows.width) {
      const R sum = cpu::row_sum<R>(rows.width, [=](std::int64_t i) { return R(dy[r + i]); });
      for (std::int64_t i = r; i < r + rows.width; ++i) dx[i] = R(dy[i]) - math::exp(R(y[i])) * sum;
    }
  });
}

// y = m + log sum_j exp(x_j - m)
template <class T>
void LogSumExp<T>::forward(Cpu, Rows rows, const T* x, const bool* allowed, T* y) {
  using R = Real<T>;
  for_each_row(rows, x, allowed, [=](std::int64_t r, R* row) {
    const auto [shift, sum] = cpu::exponentials(rows.width, row);
    y[r] = shift + std::log(sum);
  });
}

// dx_i = dy softmax(x)_i, with the softmax taken anew: y may be too coarse to give it back.
template <class T>
void LogSumExp<T>::backward(Cpu, Rows rows, const T* x, const bool* allowed, const T* dy, T* dx) {
  using R = Real<T>;
  for_each_row(rows, x, allowed, [=](std::int64_t r, R* row) {
    const R sum = cpu::exponentials(rows.width, row).sum;
    const R scale = sum == 0 ? R(0) : R(dy[r]) / sum;
    for (std::int64_t i = 0; i < rows.width; ++i) dx[r * rows.width + i] = row[i] * scale;
  });
}

template struct Softmax<float>;
template struct Softmax<double>;
template struct Softmax<bf16>;
template struct LogSoftmax<float>;
template struct LogSoftmax<double>;
template struct LogSoftmax<bf16>;
template struct LogSumExp<float>;
template struct LogSumExp<double>;
template struct LogSumExp<bf16>;

}  // namespace sinkhorn::kernels
