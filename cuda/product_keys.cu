#include <bit>
#include <cmath>
#include <limits>

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

// Lower slots first; -1 is none.
struct LowerSlot {
  SINKHORN_DEVICE std::int32_t operator()(std::int32_t a, std::int32_t b) const {
    return b < 0 || (a >= 0 && a < b) ? a : b;
  }
};

// One warp per row, which has the row's scores in shared memory, and sorts there. A slot of rank (a, b) in its halves
// is matched or beaten by all of rank up to (a, b). So those of (a + 1)(b + 1) <= n, the candidates, hold every sum
// above the n-th largest, and its value. Other slots may yet equal that value: numbers that differ can round to one
// sum. Hence its places go to the lowest slots with it, wherever they rank.
template <class T>
struct FindSlots {
  using R = Real<T>;
  static constexpr int kMostRows = 4;  // of a block
  static constexpr int kThreads = kMostRows * kWarp, kBlocksOfMultiprocessor = 8;
  static constexpr std::size_t kMostBytes = 96 << 10;  // of shared memory, which every card has
  KeyHalves halves;
  std::int64_t candidates, room;  // room: of a list that is sorted, a power of two
  Global<const T> scores;
  Global<std::int32_t> picks;

  FindSlots(const KeyHalves& halves, const T* scores, std::int32_t* picks)
      : halves(halves), candidates(0), scores(scores), picks(picks) {
    for (std::int64_t a = 1; a <= halves.n; ++a) candidates += halves.n / a;
    room = std::int64_t(std::bit_ceil(std::uint64_t(std::max(halves.keys, candidates))));
  }
  // What a block of `rows` warps needs.
  std::size_t shared_bytes(int rows) const {
    const auto numbers = std::size_t(2 * halves.keys + room), ids = std::size_t(2 * halves.n + room);
    return std::size_t(rows) * (numbers * sizeof(R) + ids * sizeof(std::int32_t)) + 64;  // four arrays, rounded up
  }

  SINKHORN_DEVICE void operator()(Thread& t) const {
    const int rows = t.warps(), keys = int(halves.keys), n = int(halves.n);
    const std::int64_t row = t.block() * rows + t.warp();
    const bool is_row = row < halves.rows;  // the last block may have warps to spare
    const Shared<R> all_scores = t.shared<R>(rows * 2 * keys);
    const Shared<std::int32_t> all_ranked = t.shared<std::int32_t>(rows * 2 * n);
    const List list(t, int(room));
    const int own_scores = t.warp() * 2 * keys, own_ranked = t.warp() * 2 * n;
    const auto score = [&](int half, int key) { return R(all_scores[own_scores + half * keys + key]); };
    const auto ranked = [&](int half, int rank) { return std::int32_t(all_ranked[own_ranked + half * n + rank]); };
    const auto sum = [&](int i, int j) { return rank_of(score(0, i) + score(1, j)); };
    for (int at = t.lane(); is_row && at < 2 * keys; at += kWarp) {
      const int half = at < keys ? 0 : 1;
      all_scores[own_scores + at] = rank_of(R(scores[(half * halves.rows + row) * keys + at - half * keys]));
    }
    t.sync();
    for (const int half : {0, 1}) {
      for (int key = t.lane(); is_row && key < keys; key += kWarp) list.put(key, {score(half, key), key});
      list.sort(t, keys);
      for (int rank = t.lane(); is_row && rank < n; rank += kWarp)
        all_ranked[own_ranked + half * n + rank] = list.at(rank).column;
      t.sync();
    }
    // One rank of a candidate is less than the root of n, so that a few rounds of all lanes list them.
    for (int a = 0, begin = 0; is_row && (a + 1) * (a + 1) <= n; ++a) {
      const int end = n / (a + 1);  // of the other rank
      for (int b = a + t.lane(); b < end; b += kWarp)
        for (const bool swapped : {false, true}) {
          if (swapped && a == b) continue;
          const std::int32_t i = ranked(0, swapped ? b : a), j = ranked(1, swapped ? a : b);
          list.put(begin + b - a + (swapped ? end - a - 1 : 0), {sum(i, j), i * keys + j});
        }
      begin += 2 * (end - a) - 1;
    }
    list.sort(t, int(candidates));
    if (!is_row) return;
    // The n-th closes the list; so many lie strictly above it.
    const R closing = list.at(n - 1).value;
    int found = n - 1;
    while (found > 0 && list.at(found - 1).value == closing) --found;
    for (int k = t.lane(); k < found; k += kWarp) picks[row * n + k] = list.at(k).column;
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

 private:
  // Of each warp of a block one list of scored things.
  struct List {
    SINKHORN_DEVICE List(Thread& t, int room)
        : values(t.shared<R>(t.warps() * room)), ids(t.shared<std::int32_t>(t.warps() * room)), own(t.warp() * room) {}
    SINKHORN_DEVICE Best<R> at(int i) const { return {R(values[own + i]), std::int32_t(ids[own + i])}; }
    SINKHORN_DEVICE void put(int i, const Best<R>& x) const {
      values[own + i] = x.value;
      ids[own + i] = x.column;
    }
    // The first `count` that were put, best first: a bitonic sort, all barriers included. All threads call it.
    SINKHORN_DEVICE void sort(const Thread& t, int count) const {
      constexpr std::int32_t last = std::numeric_limits<std::int32_t>::max();
      int size = 1;
      while (size < count) size *= 2;
      for (int i = count + t.lane(); i < size; i += kWarp) put(i, {-std::numeric_limits<R>::infinity(), last});
      t.sync();
      for (int length = 2; length <= size; length *= 2)
        for (int step = length / 2; step > 0; step /= 2) {
          for (int pair = t.lane(); pair < size / 2; pair += kWarp) {
            const int one = 2 * pair - (pair & (step - 1)), other = one + step;
            const Best<R> x = at(one), y = at(other);
            const bool is_in_order = x.value > y.value || (x.value == y.value && x.column < y.column);
            if (is_in_order == ((one & length) == 0)) continue;
            put(one, y);
            put(other, x);
          }
          t.sync();
        }
    }
    Shared<R> values;
    Shared<std::int32_t> ids;
    int own;
  };
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
    const Kernel kernel(halves, scores, picks);
    int rows = Kernel::kMostRows;
    while (rows > 1 && kernel.shared_bytes(rows) > Kernel::kMostBytes / 2) rows /= 2;
    const std::size_t bytes = kernel.shared_bytes(rows);
    if (bytes > Kernel::kMostBytes)
      fail(op, ": ", halves.n, " picks of ", halves.keys, " keys a half take ", bytes,
           " bytes of shared memory, a GPU has ", Kernel::kMostBytes, "; lower pkm_topk or pkm_num_keys");
    launch(op, pieces(halves.rows, rows), rows * kWarp, bytes, kernel);
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
