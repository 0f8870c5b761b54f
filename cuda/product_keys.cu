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

// One warp per row, which has the row's scores in shared memory. A slot of rank (a, b) in its halves is matched or
// beaten by all of rank up to (a, b). So those of (a + 1)(b + 1) <= n, the candidates, hold every sum above the n-th
// largest, and its value. Other slots may yet equal that value: numbers that differ can round to one sum. Hence its
// places go to the lowest slots with it, wherever they rank.
template <class T>
struct FindSlots {
  using R = Real<T>;
  static constexpr int kMostRows = 4;                  // of a block
  static constexpr std::size_t kMostBytes = 96 << 10;  // of shared memory, which every card has
  KeyHalves halves;
  std::int64_t candidates;
  Global<const T> scores;
  Global<std::int32_t> picks;

  static std::int64_t candidates_of(std::int64_t n) {
    std::int64_t count = 0;
    for (std::int64_t a = 1; a <= n; ++a) count += n / a;
    return count;
  }
  // What a block of `rows` warps needs.
  static std::size_t shared_bytes(const KeyHalves& halves, std::int64_t candidates, int rows) {
    const std::size_t numbers = std::size_t(2 * halves.keys + candidates);
    const std::size_t ids = std::size_t(2 * halves.n + candidates);
    return std::size_t(rows) * (numbers * sizeof(R) + ids * sizeof(std::int32_t)) + 64;  // four arrays, rounded up
  }

  SINKHORN_DEVICE void operator()(Thread& t) const {
    const int rows = t.warps(), keys = int(halves.keys), n = int(halves.n), count = int(candidates);
    const std::int64_t row = t.block() * rows + t.warp();
    const bool is_row = row < halves.rows;  // the last block may have warps to spare
    const Shared<R> all_scores = t.shared<R>(rows * 2 * keys), all_sums = t.shared<R>(rows * count);
    const Shared<std::int32_t> all_ranked = t.shared<std::int32_t>(rows * 2 * n);
    const Shared<std::int32_t> all_slots = t.shared<std::int32_t>(rows * count);
    const int own_scores = t.warp() * 2 * keys, own_sums = t.warp() * count, own_ranked = t.warp() * 2 * n;
    const auto score = [&](int half, int key) { return R(all_scores[own_scores + half * keys + key]); };
    const auto ranked = [&](int half, int rank) { return std::int32_t(all_ranked[own_ranked + half * n + rank]); };
    const auto sum = [&](int i, int j) { return rank_of(score(0, i) + score(1, j)); };
    for (int at = t.lane(); is_row && at < 2 * keys; at += kWarp) {
      const int half = at < keys ? 0 : 1;
      all_scores[own_scores + at] = rank_of(R(scores[(half * halves.rows + row) * keys + at - half * keys]));
    }
    t.sync();
    for (int half = 0; is_row && half < 2; ++half)
      in_order(
          t, keys, n,
          [&](int key) {
            return Best<R>{score(half, key), key};
          },
          [&](int rank, const Best<R>& best) {
            if (t.lane() == 0) all_ranked[own_ranked + half * n + rank] = best.column;
          });
    t.sync();
    // Either rank of a candidate is less than the root of n, so that a few rounds of all lanes list them.
    for (int a = 0, begin = 0; is_row && (a + 1) * (a + 1) <= n; ++a) {
      const int end = n / (a + 1);  // of the other rank
      for (int b = a + t.lane(); b < end; b += kWarp) {
        for (const bool swapped : {false, true}) {
          if (swapped && a == b) continue;
          const std::int32_t i = ranked(0, swapped ? b : a), j = ranked(1, swapped ? a : b);
          const int at = own_sums + begin + (swapped ? end - a + b - a - 1 : b - a);
          all_sums[at] = sum(i, j);
          all_slots[at] = i * keys + j;
        }
      }
      begin += 2 * (end - a) - 1;
    }
    t.sync();
    if (!is_row) return;
    // The sums in order, up to the n-th, whose value closes the list.
    int found = 0;  // so many lie strictly above
    R closing = 0;
    in_order(
        t, count, n,
        [&](int at) {
          return Best<R>{R(all_sums[own_sums + at]), std::int32_t(all_slots[own_sums + at])};
        },
        [&](int k, const Best<R>& next) {
          if (k == 0 || next.value < closing) found = k;
          closing = next.value;
          if (t.lane() == 0) picks[row * n + k] = next.column;
        });
    const std::int32_t best_second = ranked(1, 0);
    for (std::int32_t before = -1; found < n; ++found) {
      std::int32_t lowest = -1;
      for (int i = before < 0 ? 0 : before / keys; i < keys && lowest < 0; ++i) {
        if (sum(i, best_second) < closing) continue;
        for (int j = t.lane(); j < keys && lowest < 0; j += kWarp)
          if (i * keys + j > before && sum(i, j) == closing) lowest = i * keys + j;
        lowest = reduce_warp(t, lowest, LowerSlot{});
      }
      before = lowest;
      if (t.lane() == 0) picks[row * n + found] = before;
    }
  }
  // Gives the n best of `count` items, best first, to all lanes of a warp.
  template <class Item, class Give>
  SINKHORN_DEVICE static void in_order(const Thread& t, int count, int n, Item item, Give give) {
    Best<R> last = none<R>();
    for (int k = 0; k < n; ++k) {
      Best<R> best = none<R>();
      for (int i = t.lane(); i < count; i += kWarp) {
        const Best<R> x = item(i);
        if (is_after(x, last)) best = Better{}(best, x);
      }
      last = reduce_warp(t, best, Better{});
      give(k, last);
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
  if (!fixed) {
    using Kernel = FindSlots<T>;
    const std::int64_t candidates = Kernel::candidates_of(halves.n);
    int rows = Kernel::kMostRows;
    while (rows > 1 && Kernel::shared_bytes(halves, candidates, rows) > Kernel::kMostBytes / 2) rows /= 2;
    const std::size_t bytes = Kernel::shared_bytes(halves, candidates, rows);
    if (bytes > Kernel::kMostBytes)
      fail(op, ": ", halves.n, " picks of ", halves.keys, " keys a half take ", bytes,
           " bytes of shared memory, a GPU ", "has ", Kernel::kMostBytes, "; lower pkm_topk or pkm_num_keys");
    launch(op, pieces(halves.rows, rows), rows * kWarp, bytes, Kernel{halves, candidates, scores, picks});
  }
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
