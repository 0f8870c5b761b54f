#include "autograd/best_of_stream.h"
#include "autograd/ops/bucket_routing.h"
#include "cuda/launch.h"
#include "cuda/runtime.h"

// A block of threads makes the scores of 64 query buckets and 64 key buckets at a time, in registers, from chunks of
// the width in shared memory, and lays them into a tile there. Blocks with the most tiles before them come first.
namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

constexpr int kTile = 64, kThreads = 256, kEdge = 16, kOwn = kTile / kEdge;  // each thread has kOwn x kOwn of a tile
constexpr int kParts = kThreads / kTile;  // threads that look through one row of a tile, each at every fourth column

// Rows of a tile in shared memory. Strides that let all lanes read at once: down a column in Chunk, four rows at a time
// and four columns in Scores.
template <class R, int kStride>
struct Square {
  SINKHORN_DEVICE explicit Square(Thread& t) : memory(t.shared<R>(kTile * kStride)) {}
  static constexpr std::size_t bytes() { return (kTile * kStride * sizeof(R) + 15) / 16 * 16; }
  SINKHORN_DEVICE decltype(auto) at(int row, int column) const { return memory[row * kStride + column]; }
  Shared<R> memory;
};
template <class R>
using Chunk = Square<R, kTile + 1>;
template <class R>
using Scores = Square<R, kTile + 4>;

template <class T>
constexpr std::size_t shared_bytes() {
  return 2 * Chunk<Real<T>>::bytes() + Scores<Real<T>>::bytes();
}

// The queries and keys of one group.
template <class T>
struct Group {
  using R = Real<T>;
  SINKHORN_DEVICE Group(Thread& t, const BucketRoutes& routes, Global<const T> all_queries, Global<const T> all_keys,
                        Global<const bool> all_open, std::int64_t group)
      : r(routes),
        queries(all_queries + group * r.rows * r.width),
        keys(all_keys + group * r.columns * r.width),
        open(all_open),
        open_row(r.open_row(group)),
        a(t),
        b(t),
        scores(t) {}

  // How many of a tile's extent are left from `begin` on.
  SINKHORN_DEVICE static int left(std::int64_t extent, std::int64_t begin) {
    return int(extent - begin < kTile ? extent - begin : kTile);
  }

  // Elements from e0 on of the rows begin .. begin + 63 of x, as far as there are rows: what comes of others is not
  // looked at.
  SINKHORN_DEVICE void load(const Thread& t, const Chunk<R>& chunk, Global<const T> x, std::int64_t begin,
                            std::int64_t extent, std::int64_t e0) const {
    const int width = left(r.width, e0), rows = left(extent, begin);
    for (int at = t.index(); at < rows * width; at += kThreads) {
      const int row = at / width, e = at - row * width;
      chunk.at(row, e) = R(x[(begin + row) * r.width + e0 + e]);
    }
  }

  // Thread (y, x) adds up column(e, y + 16 i) row(e, x + 16 j) over e < count.
  template <class A, class B>
  SINKHORN_DEVICE static void multiply(const Thread& t, R (&sum)[kOwn][kOwn], int count, A first, B second) {
    const int y = t.index() / kEdge, x = t.index() % kEdge;
    for (int e = 0; e < count; ++e) {
      R left[kOwn], right[kOwn];
      for (int i = 0; i < kOwn; ++i) left[i] = first(e, y + kEdge * i);
      for (int j = 0; j < kOwn; ++j) right[j] = second(e, x + kEdge * j);
      for (int i = 0; i < kOwn; ++i)
        for (int j = 0; j < kOwn; ++j) sum[i][j] += left[i] * right[j];
    }
  }

  // The logits of queries row0 .. and keys column0 .. into `scores`. All threads call it; their barrier is at its end.
  SINKHORN_DEVICE void score(const Thread& t, std::int64_t row0, std::int64_t column0) const {
    R sum[kOwn][kOwn] = {};
    for (std::int64_t e0 = 0; e0 < r.width; e0 += kTile) {
      load(t, a, queries, row0, r.rows, e0);
      load(t, b, keys, column0, r.columns, e0);
      t.sync();
      multiply(
          t, sum, left(r.width, e0), [&](int e, int row) { return R(a.at(row, e)); },
          [&](int e, int row) { return R(b.at(row, e)); });
      t.sync();
    }
    const int y = t.index() / kEdge, x = t.index() % kEdge;
    for (int i = 0; i < kOwn; ++i)
      for (int j = 0; j < kOwn; ++j) scores.at(y + kEdge * i, x + kEdge * j) = sum[i][j] * R(r.scale);
    t.sync();
  }
  SINKHORN_DEVICE bool is_open(std::int64_t row, std::int64_t column) const {
    return r.is_open(row, column) && (!open || open[open_row + column]);
  }

  const BucketRoutes& r;
  Global<const T> queries, keys;
  Global<const bool> open;
  std::int64_t open_row;
  Chunk<R> a, b;
  Scores<R> scores;
};

// Logit, shift and sum of pick k of a row.
template <class R>
struct ChosenOfRow {
  Global<const R> chosen;
  SINKHORN_DEVICE Chosen<R> operator()(int k) const {
    return {R(chosen[3 * k]), {R(chosen[3 * k + 1]), R(chosen[3 * k + 2])}};
  }
};

template <class T>
struct StreamRows {
  using R = Real<T>;
  BucketRoutes r;
  std::int64_t row_tiles;
  Global<const T> queries, keys;
  Global<const bool> open;
  Global<const std::int32_t> fixed;
  Global<T> weights;
  Global<std::int32_t> picks;
  Global<R> chosen;
  BadIndex* bad;
  const char* what;

  SINKHORN_DEVICE void operator()(Thread& t) const {
    const std::int64_t group = t.block() % r.groups(), row0 = (row_tiles - 1 - t.block() / r.groups()) * kTile;
    const Group<T> of(t, r, queries, keys, open, group);
    const int own = t.index() / kParts, part = t.index() % kParts;
    const std::int64_t row = row0 + own, first = (group * r.rows + row) * r.n;
    const R temperature = R(r.temperature);
    BestOfStream<R> best(r.n, temperature, bool(fixed));
    for (int k = 0; fixed && row < r.rows && k < r.n; ++k) best.give(k, given(first + k));
    for (std::int32_t null = 0; part == 0 && null < r.nulls; ++null) best.see(0, null);
    const std::int64_t end = r.causal && row0 + kTile < r.columns ? row0 + kTile : r.columns;
    for (std::int64_t column0 = 0; column0 < end; column0 += kTile) {
      of.score(t, row0, column0);
      for (int j = part; j < kTile; j += kParts)
        if (of.is_open(row, column0 + j)) best.see(R(of.scores.at(own, j)), std::int32_t(r.nulls + column0 + j));
      t.sync();
    }
    // The threads of a row are neighbours, so they tell each other what they have seen.
    for (int mask = 1; mask < kParts; mask *= 2) {
      const BestOfStream<R> mine = best;
      const StreamSum<R> others{t.shuffle_xor(mine.others().shift, mask), t.shuffle_xor(mine.others().sum, mask)};
      best.see(others);
      for (int k = 0; k < r.n; ++k) {
        const R value = t.shuffle_xor(mine.value(k), mask);
        const std::int32_t column = t.shuffle_xor(mine.column(k), mask);
        if (fixed)
          best.see_value(k, value);
        else
          best.see(value, column);
      }
    }
    if (part > 0 || row >= r.rows) return;
    for (int k = 0; k < r.n; ++k) {
      const Chosen<R> pick = best.chosen(k);
      if (!fixed) picks[first + k] = best.column(k);  // else they are one tensor
      weights[first + k] = T(pick.weight(temperature));
      chosen[3 * (first + k)] = pick.logit;
      chosen[3 * (first + k) + 1] = pick.among.shift;
      chosen[3 * (first + k) + 2] = pick.among.sum;
    }
  }
  SINKHORN_DEVICE std::int32_t given(std::int64_t at) const {
    const std::int32_t pick = fixed[at];
    if (pick >= -1 && pick < r.nulls + r.columns) return pick;
    *bad = {what, pick, -1, r.nulls + r.columns};
    return -1;
  }
};

// Of each row: shift and factor of the logits that were not picked, and the gradients of those that were.
template <class T>
struct FlowsOfRow {
  using R = Real<T>;
  int n;
  R temperature;
  Global<const R> chosen;
  Global<const T> dweights;
  Global<R> shifts, factors, own;
  SINKHORN_DEVICE void operator()(std::int64_t row) const {
    const StreamGradient<R> gradient(
        n, temperature, ChosenOfRow<R>{chosen + 3 * row * n}, [&](int k) { return R(dweights[row * n + k]); },
        [&](int k, R flow) { own[row * n + k] = flow; });
    shifts[row] = gradient.shift;
    factors[row] = gradient.factor;
  }
};

// The gradients of 64 queries from all keys that they look at, or of 64 keys from all queries that look at them.
template <class T, bool kOfQueries>
struct StreamGradients {
  using R = Real<T>;
  BucketRoutes r;
  std::int64_t tiles;
  Global<const T> queries, keys;
  Global<const bool> open;
  Global<const std::int32_t> picks;
  Global<const R> shifts, factors, own;
  Global<T> flows;

  std::int64_t blocks() const { return r.groups() * tiles; }
  SINKHORN_DEVICE void operator()(Thread& t, std::int64_t block) const {
    const std::int64_t group = block % r.groups(), place = block / r.groups();
    const std::int64_t begin = (kOfQueries ? tiles - 1 - place : place) * kTile;
    const std::int64_t extent = kOfQueries ? r.rows : r.columns, others = kOfQueries ? r.columns : r.rows;
    const std::int64_t first = r.causal && !kOfQueries ? begin : 0;
    const std::int64_t end = r.causal && kOfQueries && begin + kTile < others ? begin + kTile : others;
    const Group<T> of(t, r, queries, keys, open, group);
    const int y = t.index() / kEdge, x = t.index() % kEdge;
    for (std::int64_t e0 = 0; e0 < r.width; e0 += kTile) {  // wider than a tile: the scores once more
      R sum[kOwn][kOwn] = {};
      for (std::int64_t other = first; other < end; other += kTile) {
        const std::int64_t row0 = kOfQueries ? begin : other, column0 = kOfQueries ? other : begin;
        of.score(t, row0, column0);
        of.load(t, of.a, kOfQueries ? of.keys : of.queries, other, others, e0);
        for (int at = t.index(); at < kTile * kTile; at += kThreads) {
          const int i = at / kTile, j = at % kTile;
          of.scores.at(i, j) = flow(of, group, row0 + i, column0 + j, R(of.scores.at(i, j)));
        }
        t.sync();
        Group<T>::multiply(
            t, sum, Group<T>::left(others, other),
            [&](int other, int own) { return kOfQueries ? R(of.scores.at(own, other)) : R(of.scores.at(other, own)); },
            [&](int other, int e) { return R(of.a.at(other, e)); });
        t.sync();
      }
      for (int i = 0; i < kOwn; ++i)
        for (int j = 0; j < kOwn; ++j) {
          const std::int64_t own = begin + y + kEdge * i, e = e0 + x + kEdge * j;
          if (own < extent && e < r.width) flows[(group * extent + own) * r.width + e] = T(sum[i][j]);
        }
    }
  }
  // d loss / d <query, key>
  SINKHORN_DEVICE R flow(const Group<T>& of, std::int64_t group, std::int64_t row, std::int64_t column, R logit) const {
    if (!of.is_open(row, column)) return 0;
    const std::int64_t place = group * r.rows + row;
    for (int k = 0; k < r.n; ++k)
      if (picks[place * r.n + k] == r.nulls + column) return R(r.scale) * R(own[place * r.n + k]);
    const R factor = factors[place];
    return factor == 0 ? R(0) : -R(r.scale) * factor * math::exp((logit - R(shifts[place])) / R(r.temperature));
  }
};

// Both in one launch: either may be too few blocks to fill a GPU.
template <class T>
struct StreamBothGradients {
  StreamGradients<T, true> of_queries;
  StreamGradients<T, false> of_keys;
  std::int64_t first_of_keys;  // block
  SINKHORN_DEVICE void operator()(Thread& t) const {
    if (t.block() < first_of_keys)
      of_queries(t, t.block());
    else
      of_keys(t, t.block() - first_of_keys);
  }
};

}  // namespace

template <class T>
void RouteBuckets<T>::forward(Cuda, const BucketRoutes& r, const T* queries, const T* keys, const bool* open,
                              const std::int32_t* fixed, T* weights, std::int32_t* picks, Real<T>* chosen) {
  const std::int64_t tiles = pieces(r.rows, kTile);
  launch(
      "route_buckets", r.groups() * tiles, kThreads, shared_bytes<T>(),
      StreamRows<T>{r, tiles, queries, keys, open, fixed, weights, picks, chosen, bad_index(), "route_buckets: pick"});
}

template <class T>
void RouteBuckets<T>::backward(Cuda, const BucketRoutes& r, const T* queries, const T* keys, const bool* open,
                               const std::int32_t* picks, const Real<T>* chosen, const T* dweights, T* dqueries,
                               T* dkeys) {
  using R = Real<T>;
  const std::int64_t rows = r.groups() * r.rows;
  const Tensor shifts = workspace({rows}, dtype_of<R>), factors = shifts.like();
  const Tensor own = workspace({rows, r.n}, dtype_of<R>);
  for_each("route_buckets", rows,
           FlowsOfRow<T>{r.n, R(r.temperature), chosen, dweights, shifts.data<R>(), factors.data<R>(), own.data<R>()});
  const auto gradients = [&]<bool kOfQueries>(std::bool_constant<kOfQueries>, std::int64_t extent, T* flows) {
    return StreamGradients<T, kOfQueries>{r,
                                          flows ? pieces(extent, kTile) : 0,
                                          queries,
                                          keys,
                                          open,
                                          picks,
                                          shifts.data<R>(),
                                          factors.data<R>(),
                                          own.data<R>(),
                                          flows};
  };
  const auto of_queries = gradients(std::true_type{}, r.rows, dqueries);
  const auto of_keys = gradients(std::false_type{}, r.columns, dkeys);
  launch("route_buckets", of_queries.blocks() + of_keys.blocks(), kThreads, shared_bytes<T>(),
         StreamBothGradients<T>{of_queries, of_keys, of_queries.blocks()});
}

template struct RouteBuckets<float>;
template struct RouteBuckets<double>;
template struct RouteBuckets<bf16>;

}  // namespace sinkhorn::kernels
