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

template <class R>
SINKHORN_DEVICE Best<R> none() {
  return {-std::numeric_limits<R>::infinity(), -1};
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

// One warp per row. A slot of rank (a, b) in its halves is matched or beaten by all of rank up to (a, b). So those of
// (a + 1)(b + 1) <= n hold every sum above the n-th largest, and its value. Other slots may yet equal that value:
// numbers that differ can round to one sum. Hence its places go to the lowest slots with it, wherever they rank.
template <class T>
struct FindSlots {
  using R = Real<T>;
  static constexpr int kRows = 4;  // of a block
  KeyHalves halves;
  Global<const T> scores;
  Global<std::int32_t> picks;

  static std::size_t shared_bytes(std::int64_t n) { return kRows * 2 * std::size_t(n) * sizeof(std::int32_t) + 16; }
  SINKHORN_DEVICE R score(std::int64_t row, int half, std::int64_t key) const {
    return scores[(half * halves.rows + row) * halves.keys + key];
  }
  SINKHORN_DEVICE R sum(std::int64_t row, std::int64_t i, std::int64_t j) const {
    return rank_of(rank_of(score(row, 0, i)) + rank_of(score(row, 1, j)));
  }
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const std::int64_t row = t.block() * kRows + t.warp(), keys = halves.keys, n = halves.n;
    const Shared<std::int32_t> ranked = t.shared<std::int32_t>(kRows * 2 * n);  // keys of (warp, half), best first
    const std::int64_t first = t.warp() * 2 * n, second = first + n;
    const bool is_row = row < halves.rows;  // the last block may have warps to spare
    if (is_row) rank_keys(t, row, ranked, first);
    t.sync();
    if (!is_row) return;
    // The sums in order, up to the n-th, whose value closes the list.
    Best<R> last = none<R>();
    std::int64_t found = 0;
    R closing = 0;
    for (std::int64_t k = 0; k < n; ++k) {
      Best<R> best = none<R>();
      const auto look_at = [&](std::int64_t a, std::int64_t b) {
        const std::int32_t i = ranked[first + a], j = ranked[second + b];
        const Best<R> x{sum(row, i, j), std::int32_t(i * keys + j)};
        if (is_after(x, last)) best = Better{}(best, x);
      };
      // Either rank is less than the root of n, so that a few rounds of all lanes do.
      for (std::int64_t a = 0; (a + 1) * (a + 1) <= n; ++a) {
        for (std::int64_t b = a + t.lane(); (a + 1) * (b + 1) <= n; b += kWarp) look_at(a, b);
        for (std::int64_t b = a + 1 + t.lane(); (a + 1) * (b + 1) <= n; b += kWarp) look_at(b, a);
      }
      const Best<R> next = reduce_warp(t, best, Better{});
      if (k == 0 || next.value < closing) found = k;  // so many lie strictly above
      closing = next.value;
      last = next;
      if (t.lane() == 0) picks[row * n + k] = next.column;
    }
    for (std::int32_t before = -1; found < n; ++found) {
      std::int32_t lowest = -1;
      for (std::int64_t i = t.lane(); i < keys; i += kWarp) {
        if (sum(row, i, ranked[second]) < closing) continue;
        for (std::int64_t j = 0; j < keys; ++j) {
          const auto slot = std::int32_t(i * keys + j);
          if (slot <= before || sum(row, i, j) != closing) continue;
          lowest = LowerSlot{}(lowest, slot);
          break;
        }
      }
      before = reduce_warp(t, lowest, LowerSlot{});
      if (t.lane() == 0) picks[row * n + found] = before;
    }
  }
  // The n best keys of both halves of a row.
  SINKHORN_DEVICE void rank_keys(const Thread& t, std::int64_t row, const Shared<std::int32_t>& ranked,
                                 std::int64_t first) const {
    for (int half = 0; half < 2; ++half) {
      Best<R> last = none<R>();
      for (std::int64_t k = 0; k < halves.n; ++k) {
        Best<R> best = none<R>();
        for (std::int64_t i = t.lane(); i < halves.keys; i += kWarp) {
          const Best<R> x{rank_of(score(row, half, i)), std::int32_t(i)};
          if (is_after(x, last)) best = Better{}(best, x);
        }
        last = reduce_warp(t, best, Better{});
        if (t.lane() == 0) ranked[first + half * halves.n + k] = last.column;
      }
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

// One block per row; a thread has every so many keys of both halves. The picks come in portions.
template <class T>
struct KeyGradient {
  using R = Real<T>;
  KeyHalves halves;
  Global<const std::int32_t> picks;
  Global<const T> dsums;
  Global<T> dscores;
  static std::size_t shared_bytes(int threads) { return threads * (2 * sizeof(std::int32_t) + sizeof(R)); }
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const auto first = t.shared<std::int32_t>(t.size()), second = t.shared<std::int32_t>(t.size());  // keys of a pick
    const auto flows = t.shared<R>(t.size());
    const std::int64_t row = t.block(), keys = halves.keys;
    for (std::int64_t base = 0; base < 2 * keys; base += t.size()) {
      const std::int64_t at = base + t.index(), key = at < keys ? at : at - keys;
      R flow = 0;
      for (std::int64_t from = 0; from < halves.n; from += t.size()) {
        const int count = int(halves.n - from < t.size() ? halves.n - from : t.size());
        t.sync();  // the others have used what is there
        if (t.index() < count) {
          const std::int64_t k = row * halves.n + from + t.index(), pick = picks[k], i = quotient(pick, keys);
          first[t.index()] = std::int32_t(i);
          second[t.index()] = std::int32_t(pick - i * keys);
          flows[t.index()] = dsums[k];
        }
        t.sync();
        const Shared<std::int32_t>& key_of = at < keys ? first : second;
        for (int k = 0; k < count; ++k)
          if (key_of[k] == key) flow += flows[k];
      }
      if (at < 2 * keys) dscores[((at < keys ? 0 : halves.rows) + row) * keys + key] = flow;
    }
  }
};

}  // namespace

template <class T>
void ProductKeyTopK<T>::forward(Cuda, const KeyHalves& halves, const T* scores, const std::int32_t* fixed, T* sums,
                                std::int32_t* picks) {
  const std::string_view op = "product_key_top_k";
  if (!fixed)
    launch(op, pieces(halves.rows, FindSlots<T>::kRows), FindSlots<T>::kRows * kWarp,
           FindSlots<T>::shared_bytes(halves.n), FindSlots<T>{halves, scores, picks});
  for_each(op, halves.rows * halves.n,
           SumsOfPicks<T>{halves, scores, picks, sums, bad_index(), "product_key_top_k: pick"});
}

template <class T>
void ProductKeyTopK<T>::backward(Cuda, const KeyHalves& halves, const std::int32_t* picks, const T* dsums, T* dscores) {
  const int threads = threads_for(2 * halves.keys);
  launch("product_key_top_k", halves.rows, threads, KeyGradient<T>::shared_bytes(threads),
         KeyGradient<T>{halves, picks, dsums, dscores});
}

template struct ProductKeyTopK<float>;
template struct ProductKeyTopK<double>;
template struct ProductKeyTopK<bf16>;

}  // namespace sinkhorn::kernels
