#include "autograd/ops/softmax.h"
#include "cuda/reduce.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// Element i of the block's row, -inf where it is not allowed.
template <class T>
struct MaskedRow {
  Global<const T> x;
  Global<const bool> allowed;
  SINKHORN_DEVICE Real<T> operator()(std::int64_t i) const {
    return allowed && !allowed[i] ? -std::numeric_limits<Real<T>>::infinity() : Real<T>(x[i]);
  }
  SINKHORN_DEVICE MaskedRow from(std::int64_t first) const { return {x + first, allowed ? allowed + first : allowed}; }
};

// y_i = exp(x_i - m) / sum_j exp(x_j - m),  m = max_j x_j, over the allowed j
template <class T>
struct SoftmaxRows {
  using R = Real<T>;
  std::int64_t width;
  MaskedRow<T> x;
  Global<T> y;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const std::int64_t first = t.block() * width;
    const auto row = x.from(first);
    const Exponentials<R> e = exponentials(t, reduce, width, row);
    const R scale = e.sum == 0 ? R(0) : 1 / e.sum;  // a NaN stays a NaN
    for (std::int64_t i = t.index(); i < width; i += t.size()) y[first + i] = e(row(i)) * scale;
  }
};

// dx_i = y_i (dy_i - sum_j dy_j y_j)
template <class T>
struct SoftmaxRowsGradient {
  using R = Real<T>;
  std::int64_t width;
  Global<const T> y, dy;
  Global<T> dx;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const std::int64_t first = t.block() * width, end = first + width;
    R dot = 0;
    for (std::int64_t i = first + t.index(); i < end; i += t.size()) dot += R(dy[i]) * R(y[i]);
    dot = reduce.sum(dot);
    for (std::int64_t i = first + t.index(); i < end; i += t.size()) dx[i] = R(y[i]) * (R(dy[i]) - dot);
  }
};

// y_i = x_i - m - log sum_j exp(x_j - m)
template <class T>
struct LogSoftmaxRows {
  using R = Real<T>;
  std::int64_t width;
  Global<const T> x;
  Global<T> y;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const std::int64_t first = t.block() * width;
    const auto row = x + first;
    const Exponentials<R> e = exponentials(t, reduce, width, [=](std::int64_t i) { return R(row[i]); });
    const R log_sum = e.sum == 0 ? R(0) : std::log(e.sum);  // a row of -inf stays one
    for (std::int64_t i = t.index(); i < width; i += t.size()) y[first + i] = R(row[i]) - e.shift - log_sum;
  }
};

// dx_i = dy_i - exp(y_i) sum_j dy_j
template <class T>
struct LogSoftmaxRowsGradient {
  using R = Real<T>;
  std::int64_t width;
  Global<const T> y, dy;
  Global<T> dx;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const std::int64_t first = t.block() * width, end = first + width;
    R sum = 0;
    for (std::int64_t i = first + t.index(); i < end; i += t.size()) sum += R(dy[i]);
    sum = reduce.sum(sum);
    for (std::int64_t i = first + t.index(); i < end; i += t.size()) dx[i] = R(dy[i]) - math::exp(R(y[i])) * sum;
  }
};

// y = m + log sum_j exp(x_j - m)
template <class T>
struct LogSumExpRows {
  using R = Real<T>;
  std::int64_t width;
  MaskedRow<T> x;
  Global<T> y;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const Exponentials<R> e = exponentials(t, reduce, width, x.from(t.block() * width));
    if (t.index() == 0) y[t.block()] = e.shift + std::log(e.sum);
  }
};

// dx_i = dy softmax(x)_i, with the softmax taken anew: y may be too coarse to give it back.
template <class T>
struct LogSumExpRowsGradient {
  using R = Real<T>;
  std::int64_t width;
  MaskedRow<T> x;
  Global<const T> dy;
  Global<T> dx;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const std::int64_t first = t.block() * width;
    const auto row = x.from(first);
    const Exponentials<R> e = exponentials(t, reduce, width, row);
    const R scale = e.sum == 0 ? R(0) : R(dy[t.block()]) / e.sum;
    for (std::int64_t i = t.index(); i < width; i += t.size()) dx[first + i] = e(row(i)) * scale;
  }
};

template <class T, class Kernel>
void launch_rows(std::string_view op, Rows rows, const Kernel& kernel) {
  launch(op, rows.count, threads_for(rows.width), reducer_bytes<Real<T>>(), kernel);
}

}  // namespace

template <class T>
void Softmax<T>::forward(Cuda, Rows rows, const T* x, const bool* allowed, T* y) {
  launch_rows<T>("softmax", rows, SoftmaxRows<T>{rows.width, {x, allowed}, y});
}
template <class T>
void Softmax<T>::backward(Cuda, Rows rows, const T* y, const T* dy, T* dx) {
  launch_rows<T>("softmax", rows, SoftmaxRowsGradient<T>{rows.width, y, dy, dx});
}
template <class T>
void LogSoftmax<T>::forward(Cuda, Rows rows, const T* x, T* y) {
  launch_rows<T>("log_softmax", rows, LogSoftmaxRows<T>{rows.width, x, y});
}
template <class T>
void LogSoftmax<T>::backward(Cuda, Rows rows, const T* y, const T* dy, T* dx) {
  launch_rows<T>("log_softmax", rows, LogSoftmaxRowsGradient<T>{rows.width, y, dy, dx});
}
template <class T>
void LogSumExp<T>::forward(Cuda, Rows rows, const T* x, const bool* allowed, T* y) {
  launch_rows<T>("log_sum_exp", rows, LogSumExpRows<T>{rows.width, {x, allowed}, y});
}
template <class T>
void LogSumExp<T>::backward(Cuda, Rows rows, const T* x, const bool* allowed, const T* dy, T* dx) {
  launch_rows<T>("log_sum_exp", rows, LogSumExpRowsGradient<T>{rows.width, {x, allowed}, dy, dx});
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
