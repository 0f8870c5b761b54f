#include "autograd/ops/reduce.h"

#include <cmath>

#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {

// The axis is cut into blocks and what lies inside it into tiles; blocks are summed in Real<T>, their sums in f64.
template <class T>
void Sum<T>::forward(Cpu, Around shape, const T* x, T* y) {
  using R = Real<T>;
  const std::int64_t tile = std::clamp<std::int64_t>(shape.after, 1, 1024), tiles = (shape.after + tile - 1) / tile;
  const std::int64_t block = std::max<std::int64_t>(32768 / tile, 1);
  const std::int64_t blocks = std::max<std::int64_t>((shape.extent + block - 1) / block, 1);
  const Tensor workspace(blocks > 1 ? Shape{shape.before, blocks, shape.after} : Shape{0}, dtype_of<R>);
  R* const partial = workspace.data<R>();
  const auto sum_tile = [=](std::int64_t task) {
    const std::int64_t first = task % tiles * tile, n = std::min(tile, shape.after - first);
    const std::int64_t group = task / tiles, before = group / blocks, start = group % blocks * block;
    const std::int64_t rows = std::min(block, shape.extent - start);
    const T* const from = x + (before * shape.extent + start) * shape.after + first;
    R sums[1024];
    if (shape.after == 1) {
      sums[0] = cpu::row_sum<R>(rows, [=](std::int64_t r) { return R(from[r]); });
    } else {
      std::fill_n(sums, n, R(0));
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t j = 0; j < n; ++j) sums[j] += R(from[r * shape.after + j]);
    }
    if (blocks > 1)
      std::copy_n(sums, n, partial + group * shape.after + first);
    else
      std::copy_n(sums, n, y + group * shape.after + first);
  };
  const std::int64_t tasks = shape.before * blocks * tiles;
  parallel_for(tasks, grain_for(std::min(block, shape.extent) * tile), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) sum_tile(task);
  });
  if (blocks == 1) return;
  parallel_for(shape.before * shape.after, grain_for(blocks), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const R* const own = partial + i / shape.after * blocks * shape.after + i % shape.after;
      double sum = 0;
      for (std::int64_t b = 0; b < blocks; ++b) sum += own[b * shape.after];
      y[i] = T(R(sum));
    }
  });
}

template <class T>
void Max<T>::forward(Cpu, Around shape, const T* x, T* y, std::int32_t* index) {
  using R = Real<T>;
  parallel_for(shape.before * shape.after, grain_for(shape.extent), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const T* const column = x + i / shape.after * shape.extent * shape.after + i % shape.after;
      std::int64_t best = 0;
      for (std::int64_t k = 1; k < shape.extent && !std::isnan(R(column[best * shape.after])); ++k)
        if (!(R(column[k * shape.after]) <= R(column[best * shape.after]))) best = k;  // larger, or a NaN
      index[i] = std::int32_t(best);
      y[i] = column[best * shape.after];
    }
  });
}

template <class T>
void Max<T>::backward(Cpu, Around shape, const std::int32_t* index, const T* dy, T* dx) {
  parallel_for(shape.before * shape.after, grain_for(shape.extent), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      T* const column = dx + i / shape.after * shape.extent * shape.after + i % shape.after;
      for (std::int64_t k = 0; k < shape.extent; ++k) column[k * shape.after] = k == index[i] ? dy[i] : T(0);
    }
  });
}

namespace {

// Columns that one thread carries through time: their sums stay in the nearest cache.
constexpr std::int64_t kColumns = 64;

// Calls walk(group, first, n) for tiles of columns first .. first+n-1 of each group.
template <class Walk>
void for_column_tiles(Around shape, Walk walk) {
  const std::int64_t tiles = (shape.after + kColumns - 1) / kColumns;
  parallel_for(shape.before * tiles, grain_for(shape.extent * kColumns), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t first = task % tiles * kColumns;
      walk(task / tiles, first, std::min(kColumns, shape.after - first));
    }
  });
}

}  // namespace

template <class T>
void CumulativeMean<T>::forward(Cpu, Around shape, const T* x, const bool* allowed, T* y) {
  for_column_tiles(shape, [=](std::int64_t group, std::int64_t first, std::int64_t n) {
    double sums[kColumns] = {};
    std::int64_t count = 0;
    for (std::int64_t t = 0; t < shape.extent; ++t) {
      const std::int64_t row = group * shape.extent + t;
      const T* const from = x + row * shape.after + first;
      T* const to = y + row * shape.after + first;
      if (!allowed || allowed[row]) {
        ++count;
        for (std::int64_t j = 0; j < n; ++j) sums[j] += Real<T>(from[j]);
      }
      const double share = 1 / double(std::max<std::int64_t>(count, 1));
      for (std::int64_t j = 0; j < n; ++j) to[j] = T(Real<T>(sums[j] * share));
    }
  });
}

template <class T>
void CumulativeMean<T>::backward(Cpu, Around shape, const bool* allowed, const T* dy, T* dx) {
  for_column_tiles(shape, [=](std::int64_t group, std::int64_t first, std::int64_t n) {
    double sums[kColumns] = {};
    const bool* const open = allowed ? allowed + group * shape.extent : nullptr;
    std::int64_t count = open ? std::count(open, open + shape.extent, true) : shape.extent;
    for (std::int64_t t = shape.extent - 1; t >= 0; --t) {
      const T* const from = dy + (group * shape.extent + t) * shape.after + first;
      T* const to = dx + (group * shape.extent + t) * shape.after + first;
      const double share = 1 / double(std::max<std::int64_t>(count, 1));
      for (std::int64_t j = 0; j < n; ++j) sums[j] += Real<T>(from[j]) * share;
      if (!open || open[t]) {
        --count;
        for (std::int64_t j = 0; j < n; ++j) to[j] = T(Real<T>(sums[j]));
      } else {
        std::fill_n(to, n, T(0));
      }
    }
  });
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
