#include <cmath>

#include "autograd/ops/product_keys.h"
#include "cuda/best.h"
#include "cuda/reduce.h"
#include "cuda/runtime.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// What scores and sums are compared by: a NaN counts as the least, so that there is an order.
template <class R>
SINKHORN_DEVICE R rank_of(R x) {
  return std::isnan(x) ? -std::numeric_limits<R>::infinity() : x;
}

// Whether x comes later than `last` in the order of picks.
template <class R>
SINKHORN_DEVICE bool is_after(const Best<R>& x, const Best<R>& last) {
  return last.column < 0 || x.value < last.value || (x.value == last.value && x.column > last.column);
}

// Lower slots first; -1 is none.
struct LowerSlot {
  SINKHORN_DEVICE std::int32_t operator()(std::int32_t a, std::int32_t b) const {
    return b < 0 || (a >= 0 && a < b) ? a : b;
  }
};

// One block per row. A slot of rank (a, b) in its halves is matched or beaten by all of rank up to (a, b). So those of
// (a + 1)(b + 1) <= n hold every sum above the n-th largest, and its value. Other slots may yet equal that value:
// numbers that differ can round to one sum. Hence its places go to the lowest slots with it, wherever they rank.
template <class T>
struct FindSlots {
  using R = Real<T>;
  KeyHalves halves;
  Global<const T> scores;
  Global<std::int32_t> picks;

  static std::size_t shared_bytes(std::int64_t n) {
    return reducer_bytes<Best<R>>() + reducer_bytes<std::int32_t>() + 2 * (std::size_t(n) * sizeof(std::int32_t) + 16);
  }
  SINKHORN_DEVICE R score(std::int64_t row, int half, std::int64_t key) const {
    return scores[(half * halves.rows + row) * halves.keys + key];
  }
  SINKHORN_DEVICE R sum(std::int64_t row, std::int64_t i, std::int64_t j) const {
    return rank_of(rank_of(score(row, 0, i)) + rank_of(score(row, 1, j)));
  }
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<Best<R>> best_of(t);
    const BlockReducer<std::int32_t> lowest_of(t);
    const std::int64_t row = t.block(), keys = halves.keys, n = halves.n;
    const Shared<std::int32_t> first = t.shared<std::int32_t>(n), second = t.shared<std::int32_t>(n);
    constexpr Best<R> none{-std::numeric_limits<R>::infinity(), -1};
    for (int half = 0; half < 2; ++half) {
      Best<R> last = none;
      for (std::int64_t k = 0; k < n; ++k) {
        Best<R> best = none;
        for (std::int64_t i = t.index(); i < keys; i += t.size()) {
          const Best<R> x{rank_of(score(row, half, i)), std::int32_t(i)};
          if (is_after(x, last)) best = Better{}(best, x);
        }
        last = best_of(best, Better{});
        if (t.index() == 0) (half == 0 ? first : second)[k] = last.column;
      }
    }
    t.sync();
    // The sums in order, up to the n-th, whose value closes the list.
    Best<R> last = none;
    std::int64_t found = 0;
    R closing = 0;
    for (std::int64_t k = 0; k < n; ++k) {
      Best<R> best = none;
      for (std::int64_t a = 0; a < n; ++a)
        for (std::int64_t b = t.index(); (a + 1) * (b + 1) <= n; b += t.size()) {
          const std::int32_t i = first[a], j = second[b];
          const Best<R> x{sum(row, i, j), std::int32_t(i * keys + j)};
          if (is_after(x, last)) best = Better{}(best, x);
        }
      const Best<R> next = best_of(best, Better{});
      if (k == 0 || next.value < closing) found = k;  // so many lie strictly above
      closing = next.value;
      last = next;
      if (t.index() == 0) picks[row * n + k] = next.column;
    }
    for (std::int32_t before = -1; found < n; ++found) {
      std::int32_t lowest = -1;
      for (std::int64_t i = t.index(); i < keys; i += t.size()) {
        if (sum(row, i, second[0]) < closing) continue;
        for (std::int64_t j = 0; j < keys; ++j) {
          const auto slot = std::int32_t(i * keys + j);
          if (slot <= before || sum(row, i, j) != closing) continue;
          lowest = LowerSlot{}(lowest, slot);
          break;
        }
      }
      before = lowest_of(lowest, LowerSlot{});
      if (t.index() == 0) picks[row * n + found] = before;
    }
  }
};

template <class T>
struct SumsOfPicks {
  KeyHalves halves;
  Global<const T> scores;
  Global<const std::int32_t> picks;
  Global<T> sums;
  BadIndex* bad;
  const char* what;
  SINKHORN_DEVICE void operator()(std::int64_t at) const {
    using R = Real<T>;
    const std::int64_t row = at / halves.n, keys = halves.keys, pick = picks[at];
    const bool inside = pick >= 0 && pick < keys * keys;
    if (!inside) *bad = {what, pick, 0, keys * keys};
    sums[at] =
        inside ? R(scores[row * keys + pick / keys]) + R(scores[(halves.rows + row) * keys + pick % keys]) : R(0);
  }
};

// Index i is (half, row, key).
template <class T>
struct KeyGradient {
  KeyHalves halves;
  Global<const std::int32_t> picks;
  Global<const T> dsums;
  Global<T> dscores;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t keys = halves.keys, key = i % keys, row = i / keys % halves.rows;
    const bool first = i < halves.rows * keys;
    Real<T> flow = 0;
    for (std::int64_t k = row * halves.n; k < (row + 1) * halves.n; ++k) {
      const std::int64_t pick = picks[k];
      if ((first ? pick / keys : pick % keys) == key) flow += Real<T>(dsums[k]);
    }
    dscores[i] = flow;
  }
};

}  // namespace

template <class T>
void ProductKeyTopK<T>::forward(Cuda, const KeyHalves& halves, const T* scores, const std::int32_t* fixed, T* sums,
                                std::int32_t* picks) {
  const std::string_view op = "product_key_top_k";
  if (!fixed)
    launch(op, halves.rows, threads_for(halves.keys), FindSlots<T>::shared_bytes(halves.n),
           FindSlots<T>{halves, scores, picks});
  for_each(op, halves.rows * halves.n,
           SumsOfPicks<T>{halves, scores, picks, sums, bad_index(), "product_key_top_k: pick"});
}

template <class T>
void ProductKeyTopK<T>::backward(Cuda, const KeyHalves& halves, const std::int32_t* picks, const T* dsums, T* dscores) {
  for_each("product_key_top_k", 2 * halves.rows * halves.keys, KeyGradient<T>{halves, picks, dsums, dscores});
}

template struct ProductKeyTopK<float>;
template struct ProductKeyTopK<double>;
template struct ProductKeyTopK<bf16>;

}  // namespace sinkhorn::kernels
