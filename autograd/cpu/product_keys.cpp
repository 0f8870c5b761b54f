#include "autograd/ops/product_keys.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "autograd/parallel.h"

namespace sinkhorn::kernels {
namespace {

template <class R>
struct Slot {
  R sum;
  std::int32_t id;
};

// What sums are compared by: a NaN counts as the least, so that there is an order.
template <class R>
R rank_of(R x) {
  return std::isnan(x) ? -std::numeric_limits<R>::infinity() : x;
}

// Finds the slots of one row after the other, without allocating for each.
template <class R>
class Search {
 public:
  Search(std::int64_t keys, std::int64_t n)
      : keys_(keys), n_(n), scores_(std::size_t(2 * keys)), order_(std::size_t(2 * keys)) {}

  R* half(int h) { return scores_.data() + h * keys_; }

  // A slot of rank (a, b) in its halves is matched or beaten by all of rank up to (a, b). So those of (a + 1)(b + 1) <=
  // n hold every sum above the n-th largest, and its value. Other slots may yet equal that value: numbers that differ
  // can round to one sum. Hence its places go to the lowest slots with it, wherever they rank.
  void run(std::int32_t* picks) {
    sort_half(0);
    sort_half(1);
    candidates_.clear();
    for (std::int64_t a = 0; a < n_; ++a)
      for (std::int64_t b = 0; (a + 1) * (b + 1) <= n_; ++b) candidates_.push_back(slot(order_[a], order_[keys_ + b]));
    std::sort(candidates_.begin(), candidates_.end(),
              [](const Slot<R>& x, const Slot<R>& y) { return x.sum != y.sum ? x.sum > y.sum : x.id < y.id; });
    const R last = candidates_[std::size_t(n_ - 1)].sum;
    std::int64_t found = 0;
    for (; candidates_[found].sum > last; ++found) picks[found] = candidates_[found].id;
    const std::int64_t best = order_[keys_];
    for (std::int64_t i = 0; found < n_; ++i) {
      if (slot(i, best).sum < last) continue;
      for (std::int64_t j = 0; j < keys_ && found < n_; ++j)
        if (const Slot<R> s = slot(i, j); s.sum == last) picks[found++] = s.id;
    }
  }

 private:
  Slot<R> slot(std::int64_t i, std::int64_t j) {
    return {rank_of(half(0)[i] + half(1)[j]), std::int32_t(i * keys_ + j)};
  }

  // Puts the n best of a half first. Equals may come in any order: a tie for the last place is decided among all slots.
  void sort_half(int h) {
    const auto begin = order_.begin() + h * keys_;
    std::iota(begin, begin + keys_, 0);
    std::partial_sort(begin, begin + n_, begin + keys_,
                      [x = half(h)](std::int32_t i, std::int32_t j) { return rank_of(x[i]) > rank_of(x[j]); });
  }

  std::int64_t keys_, n_;
  std::vector<R> scores_;            // of both halves
  std::vector<std::int32_t> order_;  // of both halves, the first n by rank
  std::vector<Slot<R>> candidates_;
};

}  // namespace

template <class T>
void ProductKeyTopK<T>::forward(Cpu, const KeyHalves& halves, const T* scores, const std::int32_t* fixed, T* sums,
                                std::int32_t* picks) {
  using R = Real<T>;
  const std::int64_t rows = halves.rows, keys = halves.keys, n = halves.n;
  for (std::int64_t i = 0; fixed && i < rows * n; ++i)
    if (fixed[i] < 0 || fixed[i] >= keys * keys)
      fail("product_key_top_k: pick ", fixed[i], " is none of ", keys * keys, " slots");
  parallel_for(rows, grain_for(16 * keys), [=](std::int64_t begin, std::int64_t end) {
    Search<R> search(keys, n);
    for (std::int64_t r = begin; r < end; ++r) {
      const T *first = scores + r * keys, *second = first + rows * keys;
      if (!fixed) {
        std::copy_n(first, keys, search.half(0));
        std::copy_n(second, keys, search.half(1));
        search.run(picks + r * n);
      }
      for (std::int64_t k = r * n; k < (r + 1) * n; ++k)
        sums[k] = R(first[picks[k] / keys]) + R(second[picks[k] % keys]);
    }
  });
}

template <class T>
void ProductKeyTopK<T>::backward(Cpu, const KeyHalves& halves, const std::int32_t* picks, const T* dsums, T* dscores) {
  using R = Real<T>;
  const std::int64_t rows = halves.rows, keys = halves.keys, n = halves.n;
  parallel_for(rows, grain_for(2 * keys), [=](std::int64_t begin, std::int64_t end) {
    std::vector<R> flow(std::size_t(2 * keys));
    for (std::int64_t r = begin; r < end; ++r) {
      std::fill(flow.begin(), flow.end(), R(0));
      for (std::int64_t k = r * n; k < (r + 1) * n; ++k) {
        flow[picks[k] / keys] += R(dsums[k]);
        flow[keys + picks[k] % keys] += R(dsums[k]);
      }
      std::copy_n(flow.begin(), keys, dscores + r * keys);
      std::copy_n(flow.begin() + keys, keys, dscores + (rows + r) * keys);
    }
  });
}

template struct ProductKeyTopK<float>;
template struct ProductKeyTopK<double>;
template struct ProductKeyTopK<bf16>;

}  // namespace sinkhorn::kernels
