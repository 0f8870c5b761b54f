#include "autograd/cached_attention.h"

#include <algorithm>
#include <vector>

#include "autograd/cpu/one_query.h"
#include "autograd/maps.h"

namespace sinkhorn::kernels {
namespace {

// One head of one remembered sequence.
template <class T>
class Head {
 public:
  using R = Real<T>;
  using Memory = typename CachedAttention<T>::Memory;

  Head(const Memory& memory, std::int64_t row, std::int64_t head)
      : m_(memory),
        s_(memory.shape),
        d_(s_.width),
        is_local_(head < s_.local),
        shift_(is_local_ ? 0 : s_.shift(head - s_.local)),
        sorting_(row * s_.sorting() + head - s_.local),
        keys_(m_.keys + (row * s_.heads + head) * s_.capacity * d_),
        values_(m_.values + (row * s_.heads + head) * s_.capacity * d_) {}

  // Tokens must come in order. `last`: the last position of this call; only its bucket needs its routing.
  void add(std::int64_t position, std::int64_t last, const T* q, const T* k, const T* v, const T* table,
           std::int64_t columns) {
    std::copy_n(k, d_, keys_ + position * d_);
    std::copy_n(v, d_, values_ + position * d_);
    const std::int64_t slot = position - shift_, bucket = slot / s_.bucket;
    if (is_local_ || slot < 0) return;
    double *const queries = m_.query_sums + sorting_ * d_, *const keys = m_.key_sums + sorting_ * d_;
    double* const means = m_.mean_sums + sorting_ * d_;
    if (slot == 0) {
      std::fill_n(queries, d_, 0.0);
      std::fill_n(keys, d_, 0.0);
    }
    for (std::int64_t e = 0; e < d_; ++e) queries[e] += R(q[e]);
    for (std::int64_t e = 0; e < d_; ++e) keys[e] += R(k[e]);
    const double share = 1.0 / double(slot + 1);
    if (slot % s_.bucket == 0) {
      std::fill_n(means, d_, 0.0);
      if (bucket == (last - shift_) / s_.bucket) {
        if (table)
          route_by_table(bucket, share, k, table, columns);
        else
          route_by_summaries(bucket, share);
      }
    }
    for (std::int64_t e = 0; e < d_; ++e) means[e] += keys[e] * share;
    if (slot % s_.bucket == s_.bucket - 1)
      for (std::int64_t e = 0; e < d_; ++e) summary(bucket)[e] = T(R(means[e]));
  }

  void attend(std::int64_t position, const T* q, const T* null_key, const T* null_value, T* y) const {
    std::vector<cpu::Stretch<T>> seen;
    const std::int64_t slot = position - shift_, b = s_.bucket;
    std::int64_t own = 0;  // the first token of its own bucket or window
    if (is_local_) {
      own = std::max<std::int64_t>(position / b - 1, 0) * b;
    } else if (slot >= 0) {
      own = slot / b * b + shift_;
      for (std::int64_t i = sorting_ * s_.n_top; i < (sorting_ + 1) * s_.n_top; ++i) {
        const std::int64_t pick = m_.picks[i], begin = (pick - s_.n_top) * b + shift_;
        if (pick < s_.n_top)
          seen.push_back({null_key, null_value, 1, d_, R(m_.weights[i]), R(b)});
        else
          seen.push_back({keys_ + begin * d_, values_ + begin * d_, b, d_, R(m_.weights[i])});
      }
    }
    seen.push_back({keys_ + own * d_, values_ + own * d_, position + 1 - own, d_});
    cpu::attend_one_query(seen, d_, q, y);
  }

 private:
  T* summary(std::int64_t bucket) const { return m_.summaries + (sorting_ * s_.buckets() + bucket) * d_; }

  void route_by_summaries(std::int64_t bucket, double share) const {
    std::vector<T> query(d_), scores(s_.n_top + bucket);  // a null's score is 0
    for (std::int64_t e = 0; e < d_; ++e) query[e] = T(R(m_.query_sums[sorting_ * d_ + e] * share));
    for (std::int64_t j = 0; j < bucket; ++j) scores[s_.n_top + j] = cpu::summary_score(d_, query.data(), summary(j));
    choose(scores);
  }

  void route_by_table(std::int64_t bucket, double share, const T* k, const T* table, std::int64_t columns) const {
    const std::int64_t choices = s_.n_top + bucket;
    const T* row = table + sorting_ % s_.sorting() * 2 * d_ * columns;
    std::vector<R> sums(choices);
    for (std::int64_t e = 0; e < 2 * d_; ++e, row += columns) {
      const R seen = e < d_ ? R(T(R(m_.key_sums[sorting_ * d_ + e] * share))) : R(k[e - d_]);
      for (std::int64_t j = 0; j < choices; ++j) sums[j] += seen * R(row[j]);
    }
    std::vector<T> scores(choices);
    for (std::int64_t j = 0; j < choices; ++j) scores[j] = T(maps::LeakyRelu::f(R(T(sums[j]))));
    choose(scores);
  }

  void choose(const std::vector<T>& scores) const {
    cpu::choose(scores, s_.n_top, m_.temperature, m_.weights + sorting_ * s_.n_top, m_.picks + sorting_ * s_.n_top);
  }

  const Memory& m_;
  const CacheShape& s_;
  const std::int64_t d_;
  const bool is_local_;
  const std::int64_t shift_, sorting_;  // sorting_: place of this head in (rows, h)
  T *keys_, *values_;
};

}  // namespace

template <class T>
void CachedAttention<T>::remember(Cpu, const Memory& memory, const Placement& tokens, const T* qkv, const T* table,
                                  std::int64_t columns) {
  const CacheShape& s = memory.shape;
  parallel_for(tokens.count * s.heads, grain_for(8 * tokens.length * s.width),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t item = begin; item < end; ++item) {
                   const std::int64_t entry = item / s.heads, head = item % s.heads;
                   Head<T> one(memory, tokens.rows[entry], head);
                   const std::int64_t first = tokens.begin[entry], length = tokens.lengths[entry];
                   for (std::int64_t t = 0; t < length; ++t) {
                     const std::int64_t token = entry * tokens.length + t;
                     const T* const q = qkv + (token * 3 * s.heads + head) * s.width;
                     const T *const k = q + s.heads * s.width, *const v = k + s.heads * s.width;
                     one.add(first + t, first + length - 1, q, k, v, table, columns);
                   }
                 }
               });
}

template <class T>
void CachedAttention<T>::attend(Cpu, const Memory& memory, const Placement& tokens, const T* qkv, const T* null_keys,
                                const T* null_values, T* y) {
  const CacheShape& s = memory.shape;
  parallel_for(tokens.count * s.heads, grain_for(2 * (s.n_top + 1) * s.bucket * s.width),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t item = begin; item < end; ++item) {
                   const std::int64_t entry = item / s.heads, head = item % s.heads;
                   const std::int64_t null = std::max<std::int64_t>(head - s.local, 0) * s.width;
                   Head<T>(memory, tokens.rows[entry], head)
                       .attend(tokens.begin[entry] + tokens.lengths[entry] - 1,
                               qkv + (entry * 3 * s.heads + head) * s.width, null_keys + null, null_values + null,
                               y + item * s.width);
                 }
               });
}

template struct CachedAttention<float>;
template struct CachedAttention<double>;
template struct CachedAttention<bf16>;

}  // namespace sinkhorn::kernels
