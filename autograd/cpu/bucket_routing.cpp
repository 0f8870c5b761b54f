#include "autograd/ops/bucket_routing.h"

#include <algorithm>
#include <vector>

#include "autograd/best_of_stream.h"
#include "autograd/cpu/gemm.h"
#include "autograd/parallel.h"

namespace sinkhorn::kernels {
namespace {

constexpr std::int64_t kTile = 64;  // query buckets, and key buckets, whose scores are there at once

// A stretch of query or key buckets.
struct Stretch {
  std::int64_t begin, count;
};
Stretch stretch(std::int64_t tile, std::int64_t extent) {
  return {tile * kTile, std::min(kTile, extent - tile * kTile)};
}
std::int64_t tiles_of(std::int64_t extent) { return (extent + kTile - 1) / kTile; }

// One group: its scores, tile by tile.
template <class T>
struct Group {
  using R = Real<T>;
  Group(const BucketRoutes& routes, std::int64_t group, const T* all_queries, const T* all_keys, const bool* all_open)
      : r(routes),
        queries(all_queries + group * r.rows * r.width),
        keys(all_keys + group * r.columns * r.width),
        open(all_open ? all_open + r.open_row(group) : nullptr),
        scores(std::size_t(kTile * kTile)) {}

  void score(const Stretch& rows, const Stretch& columns) {
    cpu::gemm_serial(false, true, rows.count, columns.count, r.width, R(1), queries + rows.begin * r.width, r.width,
                     keys + columns.begin * r.width, r.width, R(0), scores.data(), kTile);
  }
  // Calls see(row of the tile, column of the tile, logit) for what is open.
  template <class See>
  void each_open(const Stretch& rows, const Stretch& columns, See see) const {
    for (std::int64_t i = 0; i < rows.count; ++i)
      for (std::int64_t j = 0; j < columns.count; ++j)
        if (r.is_open(rows.begin + i, columns.begin + j) && (!open || open[columns.begin + j]))
          see(i, j, scores[std::size_t(i * kTile + j)] * R(r.scale));
  }
  // Tiles of key buckets that a tile of query buckets may look at.
  std::int64_t column_tiles(std::int64_t row_tile) const {
    return r.causal ? std::min(row_tile + 1, tiles_of(r.columns)) : tiles_of(r.columns);
  }

  const BucketRoutes& r;
  const T *queries, *keys;
  const bool* open;
  std::vector<R> scores;
};

}  // namespace

template <class T>
void RouteBuckets<T>::forward(Cpu, const BucketRoutes& r, const T* queries, const T* keys, const bool* open,
                              const std::int32_t* fixed, T* weights, std::int32_t* picks, Real<T>* chosen) {
  using R = Real<T>;
  const R temperature = R(r.temperature);
  for (std::int64_t i = 0; fixed && i < r.groups() * r.rows * r.n; ++i)
    if (fixed[i] < -1 || fixed[i] >= r.nulls + r.columns)
      fail("route_buckets: pick ", fixed[i], " is neither -1 nor one of ", r.nulls + r.columns, " columns");
  const std::int64_t row_tiles = tiles_of(r.rows);
  parallel_for(r.groups() * row_tiles, 1, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t group = item / row_tiles, row_tile = item % row_tiles;
      Group<T> of(r, group, queries, keys, open);
      const Stretch rows = stretch(row_tile, r.rows);
      const std::int64_t first = (group * r.rows + rows.begin) * r.n;  // pick
      std::vector<BestOfStream<R>> best(std::size_t(rows.count), BestOfStream<R>(r.n, temperature, fixed));
      for (std::int64_t i = 0; i < rows.count; ++i) {
        for (int k = 0; fixed && k < r.n; ++k) best[std::size_t(i)].give(k, fixed[first + i * r.n + k]);
        for (std::int32_t null = 0; null < r.nulls; ++null) best[std::size_t(i)].see(0, null);
      }
      for (std::int64_t tile = 0; tile < of.column_tiles(row_tile); ++tile) {
        const Stretch columns = stretch(tile, r.columns);
        of.score(rows, columns);
        of.each_open(rows, columns, [&](std::int64_t i, std::int64_t j, R logit) {
          best[std::size_t(i)].see(logit, std::int32_t(r.nulls + columns.begin + j));
        });
      }
      for (std::int64_t i = 0; i < rows.count; ++i) {
        for (int k = 0; k < r.n; ++k) {
          const std::int64_t at = first + i * r.n + k;
          const Chosen<R> pick = best[std::size_t(i)].chosen(k);
          picks[at] = best[std::size_t(i)].column(k);
          weights[at] = pick.weight(temperature);
          chosen[3 * at] = pick.logit;
          chosen[3 * at + 1] = pick.among.shift;
          chosen[3 * at + 2] = pick.among.sum;
        }
      }
    }
  });
}

template <class T>
void RouteBuckets<T>::backward(Cpu, const BucketRoutes& r, const T* queries, const T* keys, const bool* open,
                               const std::int32_t* picks, const Real<T>* chosen, const T* dweights, T* dqueries,
                               T* dkeys) {
  using R = Real<T>;
  const R temperature = R(r.temperature);
  const std::int64_t row_tiles = tiles_of(r.rows), column_tiles = tiles_of(r.columns);
  // A group at a time: its gradients gather tile by tile, those of keys from every row of tiles.
  parallel_for(r.groups(), 1, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t group = begin; group < end; ++group) {
      Group<T> of(r, group, queries, keys, open);
      std::vector<R> flows(std::size_t(kTile * kTile)), own(std::size_t(kTile * r.n));
      std::vector<R> dq(std::size_t(kTile * r.width)), dk(std::size_t(column_tiles * kTile * r.width));
      std::vector<StreamGradient<R>> gradient;
      for (std::int64_t row_tile = 0; row_tile < row_tiles; ++row_tile) {
        const Stretch rows = stretch(row_tile, r.rows);
        const std::int64_t first = (group * r.rows + rows.begin) * r.n;
        gradient.clear();
        for (std::int64_t i = 0; i < rows.count; ++i) {
          const R* const of_row = chosen + 3 * (first + i * r.n);
          gradient.emplace_back(
              r.n, temperature,
              [=](int k) {
                return Chosen<R>{of_row[3 * k], {of_row[3 * k + 1], of_row[3 * k + 2]}};
              },
              [=](int k) { return R(dweights[first + i * r.n + k]); },
              [&](int k, R flow) { own[std::size_t(i * r.n + k)] = flow; });
        }
        std::fill(dq.begin(), dq.end(), R(0));
        for (std::int64_t tile = 0; tile < of.column_tiles(row_tile); ++tile) {
          const Stretch columns = stretch(tile, r.columns);
          of.score(rows, columns);
          std::fill(flows.begin(), flows.end(), R(0));
          of.each_open(rows, columns, [&](std::int64_t i, std::int64_t j, R logit) {
            const std::int32_t* const pick = picks + first + i * r.n;
            const auto column = std::int32_t(r.nulls + columns.begin + j);
            const std::int64_t k = std::find(pick, pick + r.n, column) - pick;
            flows[std::size_t(i * kTile + j)] =
                R(r.scale) * (k < r.n ? own[std::size_t(i * r.n + k)] : gradient[std::size_t(i)](logit, temperature));
          });
          const auto add = [&](bool transpose, std::int64_t m, std::int64_t k, const T* x, R* y) {
            for (std::int64_t a = 0; a < m; ++a)
              for (std::int64_t b = 0; b < k; ++b) {
                const R flow = flows[std::size_t(transpose ? b * kTile + a : a * kTile + b)];
                if (flow == 0) continue;
                for (std::int64_t e = 0; e < r.width; ++e) y[a * r.width + e] += flow * R(x[b * r.width + e]);
              }
          };
          if (dqueries) add(false, rows.count, columns.count, of.keys + columns.begin * r.width, dq.data());
          if (dkeys)
            add(true, columns.count, rows.count, of.queries + rows.begin * r.width,
                dk.data() + columns.begin * r.width);
        }
        if (dqueries) std::copy_n(dq.begin(), rows.count * r.width, dqueries + (group * r.rows + rows.begin) * r.width);
      }
      if (dkeys) std::copy_n(dk.begin(), r.columns * r.width, dkeys + group * r.columns * r.width);
    }
  });
}

template struct RouteBuckets<float>;
template struct RouteBuckets<double>;
template struct RouteBuckets<bf16>;

}  // namespace sinkhorn::kernels
