// Sums of rows that share a key, in a fixed order and without atomics: for the gradients of lookups.
#pragma once
#include "cuda/elements.h"
#include "cuda/runtime.h"
#include "cuda/sorted.h"

namespace sinkhorn::cuda {

/// Places at which rows of a table (rows, width) were looked up, and what flows back into them.
template <class T>
struct Lookups {
  std::int64_t count, rows, width;
  const std::int32_t* keys;    // (count), 0 .. rows, where `rows` leaves a place out
  const T* flow;               // (count / per_flow, width): that of place i is flow i / per_flow
  const T* weights = nullptr;  // (count), of the flows; null: 1
  std::int64_t per_flow = 1;
};

namespace scatter {

// The sorted list of places is cut into pieces, a block of threads for each. A key whose places lie in one piece is
// summed there; of the others each piece gives a partial sum: `head` of the key it begins with (if that began earlier),
// `tail` of the key it ends with (if that goes on).
inline constexpr int kPiece = kWarp;

struct List {
  std::int64_t count, rows, width;
  Global<const std::int32_t> keys;  // sorted
  Global<const std::int64_t> order;
};

// A sum that is stored, or added to what is there.
template <class T, int N>
SINKHORN_DEVICE void put(const Global<T>& y, bool adds, std::int64_t at, const Pack<Real<T>, N>& sum) {
  Pack<Real<T>, N> all = sum;
  if (adds) {
    all = load_real<N>(y, at);
    for (int n = 0; n < N; ++n) all[n] += sum[n];
  }
  y.store(at, rounded<T>(all));
}

// Of eight numbers a lane, lane l gets the sum over all lanes of number l % 8.
template <class R>
SINKHORN_DEVICE R sum_of_eight(const Thread& t, Pack<R, 8> x) {
  for (int half = 4; half > 0; half /= 2) {
    const bool upper = (t.lane() & half) != 0;
    for (int i = 0; i < half; ++i) {
      const R other = t.shuffle_xor(upper ? x[i] : x[i + half], half);
      x[i] = (upper ? x[i + half] : x[i]) + other;
    }
  }
  R sum = x[0];
  for (int mask = 8; mask < kWarp; mask *= 2) sum += t.shuffle_xor(sum, mask);
  return sum;
}

// Sums of weighted flows, and of each place the product of its flow with the row it looked up.
template <class T, int N>
struct SumPieces {
  using R = Real<T>;
  static constexpr int kAhead = 8;  // flows that are read before the first is used
  List list;
  Global<const T> flow, weights;
  std::int64_t per_flow;
  Global<R> head, tail;  // (pieces, width)
  Global<T> y;           // null: no sums
  bool adds;
  Global<const T> table;  // null: no products
  Global<T> products;     // (count)

  static std::size_t shared_bytes(int threads) {
    return kPiece * (2 * sizeof(std::int32_t) + sizeof(std::int64_t) + sizeof(R) * (1 + threads / kWarp));
  }
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const auto keys = t.shared<std::int32_t>(kPiece), marks = t.shared<std::int32_t>(kPiece);
    const auto flows = t.shared<std::int64_t>(kPiece);  // where the flow of a place begins
    const auto factors = t.shared<R>(kPiece);
    const auto shares = t.shared<R>(t.warps() * kPiece);  // of each warp in the products
    const std::int64_t first = t.block() * kPiece;
    if (t.index() < kPiece) {
      const std::int64_t place = first + t.index() < list.count ? std::int64_t(list.order[first + t.index()]) : 0;
      const std::int32_t key = key_at(first + t.index());
      keys[t.index()] = key;
      marks[t.index()] = key < 0 ? 0 : marks_of(t.index(), first, key);
      flows[t.index()] = quotient(place, per_flow) * list.width;
      factors[t.index()] = weights ? R(weights[place]) : R(1);
    }
    for (int i = t.index(); i < t.warps() * kPiece; i += t.size()) shares[i] = R(0);
    t.sync();
    for (std::int64_t base = 0; base < list.width; base += std::int64_t(t.size()) * N) {
      const std::int64_t column = base + t.index() * N;
      const bool inside = column < list.width;
      Pack<R, N> sum = {}, row = {};
      for (int from = 0; from < kPiece; from += kAhead) {
        Pack<T, N> ahead[kAhead];
        for (int a = 0; a < kAhead; ++a)
          ahead[a] = inside ? flow.template load<N>(flows[from + a] + column) : Pack<T, N>{};
        Pack<R, kAhead> dots = {};
        for (int a = 0; a < kAhead; ++a) {
          const std::int32_t mark = marks[from + a];
          if (!inside || mark == 0) continue;
          const std::int64_t at = keys[from + a] * list.width + column;
          if (mark & kStarts) {
            sum = {};
            if (table) row = load_real<N>(table, at);
          }
          const R factor = factors[from + a];
          for (int n = 0; n < N; ++n) {
            const R x = ahead[a][n];
            sum[n] += factor * x;
            dots[a] += row[n] * x;
          }
          if ((mark & kEnds) && y) finish(mark, t.block() * list.width + column, at, sum);
        }
        if (!table) continue;
        const R dot = sum_of_eight(t, dots);
        if (t.lane() < kAhead) shares[t.warp() * kPiece + from + t.lane()] += dot;
      }
    }
    if (!table) return;
    t.sync();
    const std::int64_t k = first + t.index();
    if (t.index() >= kPiece || k >= list.count) return;
    R product = 0;
    for (int warp = 0; warp < t.warps(); ++warp) product += shares[warp * kPiece + t.index()];
    products[list.order[k]] = product;
  }

 private:
  // What the k-th place of a piece is to its key: there; the first or the last one here; with more before or behind.
  static constexpr std::int32_t kIs = 1, kStarts = 2, kEnds = 4, kBeganBefore = 8, kGoesOn = 16;
  // -1 where no row is looked up.
  SINKHORN_DEVICE std::int32_t key_at(std::int64_t k) const {
    const std::int32_t key = k >= 0 && k < list.count ? std::int32_t(list.keys[k]) : -1;
    return key < list.rows ? key : -1;
  }
  SINKHORN_DEVICE std::int32_t marks_of(int k, std::int64_t first, std::int32_t key) const {
    const bool same_before = key_at(first + k - 1) == key, same_behind = key_at(first + k + 1) == key;
    return kIs | (k == 0 || !same_before ? kStarts : 0) | (k + 1 == kPiece || !same_behind ? kEnds : 0) |
           (key_at(first - 1) == key ? kBeganBefore : 0) | (k + 1 == kPiece && same_behind ? kGoesOn : 0);
  }
  // The sum of all places of a key in this piece: a partial one, or all of y's element.
  SINKHORN_DEVICE void finish(std::int32_t mark, std::int64_t partial, std::int64_t at, const Pack<R, N>& sum) const {
    if (mark & kBeganBefore)
      head.store(partial, sum);
    else if (mark & kGoesOn)
      tail.store(partial, sum);
    else
      put(y, adds, at, sum);
  }
};

// Index i is (key, pack of columns): 0 where nobody looked the key up, and the partial sums in order where its places
// lie in several pieces.
template <class T, int N>
struct AddPieces {
  using R = Real<T>;
  std::int64_t width;
  Global<const std::int64_t> begin;  // (rows + 1), of each key's places
  Global<const R> head, tail;
  Global<T> y;
  bool adds;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t packs = width / N, key = quotient(i, packs), column = (i - key * packs) * N;
    const std::int64_t from = begin[key], end = begin[key + 1];
    if (from == end && !adds) y.store(key * width + column, Pack<T, N>{});
    const std::int64_t first = from / kPiece, last = (end - 1) / kPiece;
    if (from == end || first == last) return;
    Pack<double, N> sum = {};
    for (std::int64_t piece = first; piece <= last; ++piece) {
      const auto part = (piece == first ? tail : head).template load<N>(piece * width + column);
      for (int n = 0; n < N; ++n) sum[n] += part[n];
    }
    put(y, adds, key * width + column, rounded<R>(sum));
  }
};

}  // namespace scatter

/// y (rows, width): y_v = the sum of weight_i flow_i over the places i with keys_i = v, in order; added to y, if
/// `adds`. products (count): <flow_i, row keys_i of `table`>. y or products may be null.
template <class T>
void scatter_rows(std::string_view op, const Lookups<T>& x, T* y, bool adds = false, const T* table = nullptr,
                  T* products = nullptr) {
  using R = Real<T>;
  const Tensor sorted = workspace({x.count}, DType::i32);
  const Tensor order = workspace({x.count}, DType::f64), begin = workspace({x.rows + 1}, DType::f64);  // i64, 8 bytes
  auto *positions = reinterpret_cast<std::int64_t*>(order.data<double>()),
       *begins = reinterpret_cast<std::int64_t*>(begin.data<double>());
  sort_positions(x.count, std::int32_t(x.rows + 1), x.keys, sorted.data<std::int32_t>(), positions);
  const std::int64_t parts = pieces(x.count, scatter::kPiece);
  const Tensor partial = workspace({2, parts, y ? x.width : 0}, dtype_of<R>);
  R *head = partial.data<R>(), *tail = head + partial.count() / 2;
  const scatter::List list{x.count, x.rows, x.width, sorted.data<std::int32_t>(), positions};
  const auto scatter = [&]<int N>(Width<N>) {
    using Sum = scatter::SumPieces<T, N>;
    const int threads = threads_for(pieces(x.width, N));
    launch(op, parts, threads, Sum::shared_bytes(threads),
           Sum{list, x.flow, x.weights, x.per_flow, head, tail, y, adds, products ? table : nullptr, products});
    if (!y) return;
    for_each(op, x.rows + 1, BeginOfKey<std::int64_t>{x.count, sorted.data<std::int32_t>(), begins});
    for_each(op, x.rows * (x.width / N), scatter::AddPieces<T, N>{x.width, begins, head, tail, y, adds});
  };
  constexpr int N = pack_width<T>();
  if (x.width % N == 0 && is_aligned<N>(x.flow, table, static_cast<const T*>(y))) return scatter(Width<N>{});
  scatter(Width<1>{});
}

}  // namespace sinkhorn::cuda
