#include "autograd/ops/product_keys.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {
namespace {

// What scores and sums are compared by: a NaN counts as the least, so that there is an order.
template <class R>
R rank_of(R x) {
  return std::isnan(x) ? -std::numeric_limits<R>::infinity() : x;
}

// A key of a half, or a slot.
template <class R>
struct Entry {
  R score;
  std::int32_t id;
  // Comes earlier: the larger score, the lower id among equals.
  bool operator<(const Entry& other) const { return score != other.score ? score > other.score : id < other.id; }
};

// Sorts the first n entries in front.
template <class R>
void take_first(std::vector<Entry<R>>& entries, std::int64_t n) {
  std::nth_element(entries.begin(), entries.begin() + n - 1, entries.end());
  std::sort(entries.begin(), entries.begin() + n);
}

// Finds the slots of one row after the other, without allocating for each.
template <class R>
class Search {
 public:
  Search(std::int64_t keys, std::int64_t n) : keys_(keys), n_(n), scores_(std::size_t(2 * keys)) {}

  R* half(int h) { return scores_.data() + h * keys_; }

  // A slot of rank (a, b) in its halves is matched or beaten by all of rank up to (a, b). So those of (a + 1)(b + 1) <=
  // n hold every sum above the n-th largest, and its value. Other slots may yet equal that value: numbers that differ
  // can round to one sum. Hence its places go to the lowest slots with it, wherever they rank.
  void run(std::int32_t* picks) {
    for (int h : {0, 1}) {
      best_[h].clear();
      for (std::int64_t i = 0; i < keys_; ++i) best_[h].push_back({rank_of(half(h)[i]), std::int32_t(i)});
      take_first(best_[h], n_);
    }
    slots_.clear();
    for (std::int64_t a = 0; a < n_; ++a)
      for (std::int64_t b = 0; (a + 1) * (b + 1) <= n_; ++b) {
        const std::int64_t i = best_[0][a].id, j = best_[1][b].id;
        slots_.push_back({sum(i, j), std::int32_t(i * keys_ + j)});
      }
    take_first(slots_, n_);
    const R last = slots_[n_ - 1].score;
    std::int64_t found = 0;
    for (; slots_[found].score > last; ++found) picks[found] = slots_[found].id;
    for (std::int64_t i = 0; found < n_; ++i) {
      if (sum(i, best_[1][0].id) < last) continue;
      if (cpu::row_sum<R>(keys_, [=, this](std::int64_t j) { return sum(i, j) == last; }) == 0) continue;
      for (std::int64_t j = 0; j < keys_ && found < n_; ++j)
        if (sum(i, j) == last) picks[found++] = std::int32_t(i * keys_ + j);
    }
  }

 private:
  R sum(std::int64_t i, std::int64_t j) const { return rank_of(scores_[i] + scores_[keys_ + j]); }

  std::int64_t keys_, n_;
  std::vector<R> scores_;  // of both halves
  std::vector<Entry<R>> best_[2], slots_;
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
