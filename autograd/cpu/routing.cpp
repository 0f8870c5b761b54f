#include "autograd/ops/routing.h"

#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {
namespace {

void check_picks(std::string_view name, std::int64_t count, const std::int32_t* picks, std::int64_t end) {
  for (std::int64_t i = 0; i < count; ++i)
    if (picks[i] < -1 || picks[i] >= end)
      fail(name, ": pick ", picks[i], " is neither -1 nor one of ", end, " columns");
}

// The lowest column with the largest entry; -1 if all are -inf.
template <class R>
std::int32_t first_largest(std::int64_t width, const R* y) {
  std::int32_t pick = -1;
  R largest = -std::numeric_limits<R>::infinity();
  for (std::int64_t i = 0; i < width; ++i) {
    if (y[i] > largest) {
      largest = y[i];
      pick = std::int32_t(i);
    }
  }
  return pick;
}

}  // namespace

template <class T>
void TopK<T>::forward(Cpu, Rows rows, std::int64_t n, Real<T> temperature, const T* logits, const std::int32_t* fixed,
                      T* weights, std::int32_t* picks) {
  using R = Real<T>;
  if (fixed) check_picks("top_k", rows.count * n, fixed, rows.width);
  parallel_for(rows.count, grain_for(n * rows.width), [=](std::int64_t begin, std::int64_t end) {
    std::vector<R> y(std::size_t(rows.width)), p(y);
    for (std::int64_t r = begin; r < end; ++r) {
      std::copy_n(logits + r * rows.width, rows.width, y.begin());
      for (std::int64_t k = r * n; k < (r + 1) * n; ++k) {
        const std::int32_t pick = fixed ? fixed[k] : first_largest(rows.width, y.data());
        picks[k] = pick;
        weights[k] = R(0);
        if (pick < 0) continue;
        std::copy(y.begin(), y.end(), p.begin());
        const R sum = cpu::exponentials(rows.width, p.data(), temperature).sum;
        if (sum != 0) weights[k] = p[pick] / sum;  // only a replayed pick can meet a row with nothing left
        y[pick] = -std::numeric_limits<R>::infinity();
      }
    }
  });
}

template <class T>
void TopK<T>::backward(Cpu, Rows rows, std::int64_t n, Real<T> temperature, const T* logits, const std::int32_t* picks,
                       const T* dweights, T* dlogits) {
  using R = Real<T>;
  parallel_for(rows.count, grain_for(n * rows.width), [=](std::int64_t begin, std::int64_t end) {
    std::vector<R> y(std::size_t(rows.width)), p(y), flow(y);
    for (std::int64_t r = begin; r < end; ++r) {
      std::copy_n(logits + r * rows.width, rows.width, y.begin());
      std::fill(flow.begin(), flow.end(), R(0));
      for (std::int64_t k = r * n; k < (r + 1) * n; ++k) {
        const std::int32_t pick = picks[k];
        if (pick < 0) continue;
        std::copy(y.begin(), y.end(), p.begin());
        const R sum = cpu::exponentials(rows.width, p.data(), temperature).sum;
        y[pick] = -std::numeric_limits<R>::infinity();
        if (sum == 0) continue;
        const R scale = R(dweights[k]) * (p[pick] / sum) / temperature;
        for (std::int64_t i = 0; i < rows.width; ++i) flow[i] -= scale * (p[i] / sum);
        flow[pick] += scale;
      }
      std::copy_n(flow.begin(), rows.width, dlogits + r * rows.width);
    }
  });
}

template <class T>
void GatherBuckets<T>::forward(Cpu, const Routes& routes, const T* x, const T* weights, const std::int32_t* picks,
                               T* y) {
  using R = Real<T>;
  const auto [groups, buckets, size, rows] = routes;
  check_picks("gather_buckets", groups * rows, picks, buckets);
  parallel_for(groups * rows, grain_for(size),
               [=, buckets = buckets, size = size, rows = rows](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t row = begin; row < end; ++row) {
                   T* const block = y + row * size;
                   if (picks[row] < 0) {
                     std::fill_n(block, size, T(0));
                     continue;
                   }
                   const T* const bucket = x + (row / rows * buckets + picks[row]) * size;
                   const R weight = weights[row];
                   for (std::int64_t i = 0; i < size; ++i) block[i] = weight * R(bucket[i]);
                 }
               });
}

// A chunk of dx owns a slab of up to 4096 numbers of every bucket of a group, and walks the group's rows in order.
template <class T>
void GatherBuckets<T>::backward(Cpu, const Routes& routes, const T* x, const T* weights, const std::int32_t* picks,
                                const T* dy, T* dx, T* dweights) {
  using R = Real<T>;
  const std::int64_t buckets = routes.buckets, size = routes.size, rows = routes.rows;
  if (dx) {
    constexpr std::int64_t kSlab = 4096;
    const std::int64_t slabs = (size + kSlab - 1) / kSlab;
    parallel_for(routes.groups * slabs, 1, [=](std::int64_t begin, std::int64_t end) {
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t group = task / slabs, first = task % slabs * kSlab, width = std::min(kSlab, size - first);
        Tensor wide;  // sums of bf16 are kept in f32
        R* sums = nullptr;
        std::int64_t distance = size;
        if constexpr (std::is_same_v<T, R>) {
          sums = dx + group * buckets * size + first;
        } else {
          wide = Tensor({buckets, width}, dtype_of<R>);
          sums = wide.data<R>();
          distance = width;
        }
        for (std::int64_t v = 0; v < buckets; ++v) std::fill_n(sums + v * distance, width, R(0));
        for (std::int64_t row = group * rows; row < (group + 1) * rows; ++row) {
          if (picks[row] < 0) continue;
          const R weight = weights[row];
          const T* const flow = dy + row * size + first;
          R* const sum = sums + picks[row] * distance;
          for (std::int64_t i = 0; i < width; ++i) sum[i] += weight * R(flow[i]);
        }
        if constexpr (!std::is_same_v<T, R>)
          for (std::int64_t v = 0; v < buckets; ++v)
            std::copy_n(sums + v * width, width, dx + (group * buckets + v) * size + first);
      }
    });
  }
  if (dweights) {
    parallel_for(routes.groups * rows, grain_for(2 * size), [=](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const T *flow = dy + row * size, *bucket = x + (row / rows * buckets + picks[row]) * size;
        dweights[row] =
            picks[row] < 0 ? R(0) : cpu::row_sum<R>(size, [=](std::int64_t i) { return R(flow[i]) * R(bucket[i]); });
      }
    });
  }
}

template <class T>
void SortingMatrix<T>::forward(Cpu, std::int64_t rows, std::int64_t columns, const T* weights,
                               const std::int32_t* picks, T* y) {
  check_picks("sorting_matrix", rows, picks, columns);
  parallel_for(rows, grain_for(columns), [=](std::int64_t begin, std::int64_t end) {
    std::fill(y + begin * columns, y + end * columns, T(0));
    for (std::int64_t row = begin; row < end; ++row)
      if (picks[row] >= 0) y[row * columns + picks[row]] = weights[row];
  });
}

template <class T>
void SortingMatrix<T>::backward(Cpu, std::int64_t rows, std::int64_t columns, const std::int32_t* picks, const T* dy,
                                T* dweights) {
  for (std::int64_t row = 0; row < rows; ++row) dweights[row] = picks[row] < 0 ? T(0) : dy[row * columns + picks[row]];
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
