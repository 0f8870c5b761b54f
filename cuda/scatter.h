// Sums of rows that share a key, in a fixed order and without atomics: for the gradients of lookups.
#pragma once
#include "cuda/launch.h"
#include "cuda/runtime.h"

namespace sinkhorn::cuda {
namespace scatter {

// The sorted list of rows is cut into pieces. A key whose rows lie in one piece is summed there; of the others each
// piece gives a partial sum: `head` of the key it begins with (if that began earlier or fills the piece), `tail` of the
// key it ends with.
inline constexpr std::int64_t kPiece = 32;

struct List {
  std::int64_t count, rows, width;
  Global<const std::int32_t> keys;  // sorted; those from `rows` on are left out
  Global<const std::int64_t> order;
};

template <class T>
struct Row {
  Global<const T> x, weights;
  std::int64_t keys_per_row;
  SINKHORN_DEVICE Real<T> operator()(std::int64_t i, std::int64_t column, std::int64_t width) const {
    const Real<T> value = x[i / keys_per_row * width + column];
    return weights ? Real<T>(weights[i]) * value : value;
  }
};

// Index i is (piece, column).
template <class T>
struct SumPieces {
  using R = Real<T>;
  List list;
  Row<T> row;
  Global<R> head, tail;  // (pieces, width)
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t column = i % list.width, piece = i / list.width, first = piece * kPiece;
    const std::int64_t end = first + kPiece < list.count ? first + kPiece : list.count;
    for (std::int64_t k = first; k < end;) {
      const std::int32_t key = list.keys[k];
      if (key < 0 || key >= list.rows) return;
      const bool began_before = k == first && first > 0 && list.keys[first - 1] == key;
      R sum = 0;
      for (; k < end && list.keys[k] == key; ++k) sum += row(list.order[k], column, list.width);
      const bool goes_on = k == end && end < list.count && list.keys[end] == key;
      if (began_before)
        head[i] = sum;
      else if (goes_on)
        tail[i] = sum;
      else
        y[key * list.width + column] = sum;
    }
  }
};

// Index i is (key, column): 0 where the key has no row, and the partial sums in order where it has several pieces.
template <class T>
struct SumKeys {
  using R = Real<T>;
  List list;
  Global<const R> head, tail;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t key = i / list.width, column = i - key * list.width;
    const std::int64_t begin = first_at_least(key), end = first_at_least(key + 1);
    if (begin == end) y[i] = T(0);
    const std::int64_t first = begin / kPiece, last = (end - 1) / kPiece;
    if (begin == end || first == last) return;
    double sum = tail[first * list.width + column];
    for (std::int64_t piece = first + 1; piece <= last; ++piece) sum += head[piece * list.width + column];
    y[i] = T(R(sum));
  }
  SINKHORN_DEVICE std::int64_t first_at_least(std::int64_t key) const {
    std::int64_t low = 0, high = list.count;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (list.keys[middle] < key)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

}  // namespace scatter

/// y (rows, width): y_v = sum over the i with keys_i = v of weight_i x_r (or of x_r, if weights is null), in the order
/// of i, where r = i / keys_per_row. keys (count) in 0 .. rows, where `rows` leaves i out.
template <class T>
void scatter_rows(std::string_view op, std::int64_t count, std::int64_t rows, std::int64_t width,
                  const std::int32_t* keys, const T* weights, const T* x, T* y, std::int64_t keys_per_row = 1) {
  using R = Real<T>;
  const Tensor sorted = workspace({count}, DType::i32), order = workspace({count}, DType::f64);  // i64, 8 bytes each
  auto* positions = reinterpret_cast<std::int64_t*>(order.data<double>());
  sort_positions(count, std::int32_t(rows + 1), keys, sorted.data<std::int32_t>(), positions);
  const std::int64_t parts = pieces(count, scatter::kPiece);
  const Tensor partial = workspace({2, parts, width}, dtype_of<R>);
  R *head = partial.data<R>(), *tail = head + parts * width;
  const scatter::List list{count, rows, width, sorted.data<std::int32_t>(), positions};
  for_each(op, parts * width, scatter::SumPieces<T>{list, {x, weights, keys_per_row}, head, tail, y});
  for_each(op, rows * width, scatter::SumKeys<T>{list, head, tail, y});
}

}  // namespace sinkhorn::cuda
