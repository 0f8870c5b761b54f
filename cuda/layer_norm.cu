#include <cmath>

#include "autograd/ops/layer_norm.h"
#include "cuda/sums.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// A row of at most K packs a lane, as the registers of one warp hold it: lane l has the packs l, l + 32, ...
template <class T, int K>
struct WarpRow {
  using R = Real<T>;
  static constexpr int kPack = pack_width<T>();
  static constexpr std::int64_t kWidest = K * kPack * kWarp;
  Pack<R, kPack> packs[K] = {};

  /// Calls f(k, column of pack k) for the packs that this lane has in a row of `width`.
  template <class F>
  SINKHORN_DEVICE static void each(const Thread& t, std::int64_t width, F f) {
    for (int k = 0; k < K; ++k)
      if (const std::int64_t column = (k * kWarp + t.lane()) * kPack; column < width) f(k, column);
  }
};

// One warp per row, read once.
template <class T, class Y, int K>
struct NormaliseRowByWarp {
  using R = Real<T>;
  using Row = WarpRow<T, K>;
  static constexpr int N = Row::kPack;
  std::int64_t rows, width;
  R eps;
  Global<const T> x, gamma, beta;
  Global<Y> y;
  Global<R> mean, rstd;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const std::int64_t r = t.block() * t.warps() + t.warp(), first = r * width;
    if (r >= rows) return;
    Row row;
    R sum = 0, squares = 0;
    Row::each(t, width, [&](int k, std::int64_t column) {
      row.packs[k] = load_real<N>(x, first + column);
      for (int n = 0; n < N; ++n) sum += row.packs[k][n];
    });
    const R m = reduce_warp(t, sum, Plus{}) / R(width);
    Row::each(t, width, [&](int k, std::int64_t) {
      for (int n = 0; n < N; ++n) squares += (row.packs[k][n] - m) * (row.packs[k][n] - m);
    });
    const R s = 1 / std::sqrt(reduce_warp(t, squares, Plus{}) / R(width) + eps);
    Row::each(t, width, [&](int k, std::int64_t column) {
      const auto gain = load_real<N>(gamma, column), bias = load_real<N>(beta, column);
      Pack<R, N> out;
      for (int n = 0; n < N; ++n) out[n] = (row.packs[k][n] - m) * s * gain[n] + bias[n];
      y.store(first + column, rounded<Y>(out));
    });
    if (t.lane() != 0) return;
    mean[r] = m;
    rstd[r] = s;
  }
};

// Of the rows of a block's chunk, one warp after the other has the next: dx, and the chunk's share of dgamma and dbeta,
// which each warp gathers in shared memory: registers are for what is being read.
// With g = gamma dy:  dx = rstd (g - mean(g) - z mean(g z))
template <class T, class Y, int K>
struct NormaliseChunkGradient {
  using R = Real<T>;
  using Row = WarpRow<T, K>;
  static constexpr int N = Row::kPack, kThreads = 128, kPacks = K * kWarp;
  static constexpr std::size_t kSharedBytes = kThreads / kWarp * 2 * kPacks * sizeof(Pack<R, N>);
  std::int64_t rows, width, chunk;
  Global<const T> x, gamma;
  Global<const R> mean, rstd;
  Global<const Y> dy;
  Global<T> dx;
  bool adds;                // to what dx has
  Global<R> gains, biases;  // (chunks, width)
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const auto sums = t.shared<Pack<R, N>>(t.warps() * 2 * kPacks);  // (warps, dgamma and dbeta, packs)
    const std::int64_t begin = t.block() * chunk, end = begin + chunk < rows ? begin + chunk : rows;
    for (int i = t.lane(); i < 2 * kPacks; i += kWarp) sums[t.warp() * 2 * kPacks + i] = Pack<R, N>{};
    for (std::int64_t r = begin + t.warp(); r < end; r += t.warps()) add_row(t, r, sums);
    t.sync();
    for (int i = t.index(); i < 2 * kPacks; i += t.size()) {
      const std::int64_t column = i % kPacks * N;
      if (column >= width) continue;
      Pack<R, N> sum = sums[i];
      for (int warp = 1; warp < t.warps(); ++warp) {
        const Pack<R, N> next = sums[warp * 2 * kPacks + i];
        for (int n = 0; n < N; ++n) sum[n] += next[n];
      }
      (i < kPacks ? gains : biases).store(t.block() * width + column, sum);
    }
  }
  SINKHORN_DEVICE void add_row(const Thread& t, std::int64_t r, const Shared<Pack<R, N>>& sums) const {
    const std::int64_t first = r * width;
    const R m = mean[r], s = rstd[r];
    Row z, g, out;  // z and g at first x and dy: all reads are on their way before the first is used
    R sum_g = 0, sum_gz = 0;
    Row::each(t, width, [&](int k, std::int64_t column) {
      z.packs[k] = load_real<N>(x, first + column);
      g.packs[k] = load_real<N>(dy, first + column);
      if (adds) out.packs[k] = load_real<N>(dx, first + column);
    });
    Row::each(t, width, [&](int k, std::int64_t column) {
      const auto factor = load_real<N>(gamma, column);
      const int at = t.warp() * 2 * kPacks + k * kWarp + t.lane();
      Pack<R, N> gain = sums[at], bias = sums[at + kPacks];
      for (int n = 0; n < N; ++n) {
        R &z_n = z.packs[k][n], &g_n = g.packs[k][n];
        z_n = (z_n - m) * s;
        gain[n] += g_n * z_n;
        bias[n] += g_n;
        g_n *= factor[n];
        sum_g += g_n;
        sum_gz += g_n * z_n;
      }
      sums[at] = gain;
      sums[at + kPacks] = bias;
    });
    const R mean_g = reduce_warp(t, sum_g, Plus{}) / R(width), mean_gz = reduce_warp(t, sum_gz, Plus{}) / R(width);
    Row::each(t, width, [&](int k, std::int64_t column) {
      for (int n = 0; n < N; ++n) out.packs[k][n] += s * (g.packs[k][n] - mean_g - z.packs[k][n] * mean_gz);
      dx.store(first + column, rounded<T>(out.packs[k]));
    });
  }
};

/// Calls run(Width<K>{}) with the least K for which a warp holds such a row; false if none does, or rows are not made
/// of packs.
template <class T, class Run>
bool by_warp(std::int64_t width, bool aligned, Run run) {
  if (!aligned || width % pack_width<T>() != 0) return false;
  const auto holds = [&]<int K>(Width<K>) {
    if (width > WarpRow<T, K>::kWidest) return false;
    run(Width<K>{});
    return true;
  };
  return holds(Width<1>{}) || holds(Width<2>{}) || holds(Width<4>{}) || holds(Width<8>{});
}

// --- rows of any width

template <class T, class Y>
struct NormaliseRows {
  using R = Real<T>;
  std::int64_t width;
  R eps;
  Global<const T> x, gamma, beta;
  Global<Y> y;
  Global<R> mean, rstd;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const auto row = x + t.block() * width;
    const auto out = y + t.block() * width;
    R sum = 0, squares = 0;
    for (std::int64_t i = t.index(); i < width; i += t.size()) sum += R(row[i]);
    const R m = reduce.sum(sum) / R(width);
    for (std::int64_t i = t.index(); i < width; i += t.size()) squares += (R(row[i]) - m) * (R(row[i]) - m);
    const R s = 1 / std::sqrt(reduce.sum(squares) / R(width) + eps);
    for (std::int64_t i = t.index(); i < width; i += t.size()) out[i] = (R(row[i]) - m) * s * R(gamma[i]) + R(beta[i]);
    if (t.index() != 0) return;
    mean[t.block()] = m;
    rstd[t.block()] = s;
  }
};

// z = (x - mean) rstd
template <class T>
struct Normalised {
  using R = Real<T>;
  Global<const T> x;
  Global<const R> mean, rstd;
  std::int64_t width;
  SINKHORN_DEVICE R operator()(std::int64_t row, std::int64_t i) const {
    return (R(x[row * width + i]) - mean[row]) * rstd[row];
  }
};

// dx = rstd (g - mean(g) - z mean(g z)) with g = gamma dy
template <class T, class Y>
struct NormaliseRowsGradient {
  using R = Real<T>;
  std::int64_t width;
  Normalised<T> z;
  Global<const T> gamma;
  Global<const Y> dy;
  Global<T> dx;
  bool adds;  // to what dx has
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const std::int64_t row = t.block(), first = row * width;
    const auto g = [&](std::int64_t i) { return R(gamma[i]) * R(dy[first + i]); };
    R sum_g = 0, sum_gz = 0;
    for (std::int64_t i = t.index(); i < width; i += t.size()) {
      sum_g += g(i);
      sum_gz += g(i) * z(row, i);
    }
    const R mean_g = reduce.sum(sum_g) / R(width), mean_gz = reduce.sum(sum_gz) / R(width);
    for (std::int64_t i = t.index(); i < width; i += t.size())
      dx[first + i] = (adds ? R(T(dx[first + i])) : R(0)) + z.rstd[row] * (g(i) - mean_g - z(row, i) * mean_gz);
  }
};

template <class T, class Y>
struct GainTerm {
  Normalised<T> z;
  Global<const Y> dy;
  SINKHORN_DEVICE Real<T> operator()(std::int64_t row, std::int64_t i) const {
    return Real<T>(dy[row * z.width + i]) * z(row, i);
  }
};
}  // namespace

template <class T, class Y>
void LayerNorm<T, Y>::forward(Cuda, std::int64_t rows, std::int64_t width, Real<T> eps, const T* x, const T* gamma,
                              const T* beta, Y* y, Real<T>* mean, Real<T>* rstd) {
  constexpr int N = pack_width<T>(), kThreads = 128;
  const bool aligned = is_aligned<N>(x, gamma, beta) && is_aligned<N>(y);
  if (by_warp<T>(width, aligned, [&]<int K>(Width<K>) {
        launch("layer_norm", pieces(rows, kThreads / kWarp), kThreads, 0,
               NormaliseRowByWarp<T, Y, K>{rows, width, eps, x, gamma, beta, y, mean, rstd});
      }))
    return;
  launch("layer_norm", rows, threads_for(width), reducer_bytes<Real<T>>(),
         NormaliseRows<T, Y>{width, eps, x, gamma, beta, y, mean, rstd});
}

template <class T, class Y>
void LayerNorm<T, Y>::backward(Cuda, std::int64_t rows, std::int64_t width, const T* x, const T* gamma,
                               const Real<T>* mean, const Real<T>* rstd, const Y* dy, Flow<T> dx, Flow<T> dgamma,
                               Flow<T> dbeta) {
  using R = Real<T>;
  constexpr int N = pack_width<T>();
  // Few enough chunks that a large GPU runs all at once: one that starts late is waited for alone.
  const std::int64_t chunk = std::max<std::int64_t>(16, pieces(rows, 512)), chunks = pieces(rows, chunk);
  const bool aligned = is_aligned<N>(x, gamma, dx.to) && is_aligned<N>(dy);
  if (rows > 0 && by_warp<T>(width, aligned, [&]<int K>(Width<K>) {
        using Kernel = NormaliseChunkGradient<T, Y, K>;
        const Tensor partial = workspace({2, chunks, width}, dtype_of<R>);
        R *gains = partial.data<R>(), *biases = gains + chunks * width;
        launch("layer_norm", chunks, Kernel::kThreads, Kernel::kSharedBytes,
               Kernel{rows, width, chunk, x, gamma, mean, rstd, dy, dx.to, dx.adds, gains, biases});
        sums::add_chunks_of_two("layer_norm", 1, chunks, width, gains, sums::Into<T>{dgamma.to, dgamma.adds},
                                sums::Into<T>{dbeta.to, dbeta.adds});
      }))
    return;
  const Normalised<T> z{x, mean, rstd, width};
  launch("layer_norm", rows, threads_for(width), reducer_bytes<R>(),
         NormaliseRowsGradient<T, Y>{width, z, gamma, dy, dx.to, dx.adds});
  const Around all(Shape{1, rows, width}, 1);
  sum_axis<R>("layer_norm", all, GainTerm<T, Y>{z, dy}, dgamma.to, dgamma.adds);
  sum_axis<R>("layer_norm", all, MatrixElement<Y>{width, dy}, dbeta.to, dbeta.adds);
}

template struct LayerNorm<float, float>;
template struct LayerNorm<double, double>;
template struct LayerNorm<bf16, bf16>;
template struct LayerNorm<float, bf16>;

}  // namespace sinkhorn::kernels
