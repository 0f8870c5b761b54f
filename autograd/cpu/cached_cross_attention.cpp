#include "autograd/cached_cross_attention.h"

#include <algorithm>
#include <vector>

#include "autograd/cpu/one_query.h"

namespace sinkhorn::kernels {
namespace {

// One head of one remembered sequence and its context.
template <class T>
class Head {
 public:
  using R = Real<T>;
  using Memory = typename CachedCrossAttention<T>::Memory;

  Head(const Memory& memory, std::int64_t row, std::int64_t head)
      : m_(memory),
        s_(memory.shape),
        d_(s_.width),
        place_(row * s_.heads + head),
        keys_(m_.kv + (row * s_.context_length * 2 * s_.heads + head) * d_),
        mask_(m_.mask ? m_.mask + row * s_.context_length : nullptr),
        sums_(m_.query_sums + place_ * d_),
        weights_(m_.weights + place_ * s_.n_top),
        picks_(m_.picks + place_ * s_.n_top) {}

  // Tokens must come in order. `last`: the last position of this call; only its bucket needs its routing.
  void add(std::int64_t position, std::int64_t last, const T* q) const {
    if (position == 0) std::fill_n(sums_, d_, 0.0);
    for (std::int64_t e = 0; e < d_; ++e) sums_[e] += R(q[e]);
    const std::int64_t routed = s_.shared ? 0 : last / s_.bucket * s_.bucket;
    if (position == routed) route(1.0 / double(position + 1));
  }

  void attend(const T* q, T* y) const {
    std::vector<cpu::Stretch<T>> seen;
    const std::int64_t c = s_.key_bucket, distance = 2 * s_.heads * d_;
    for (std::int64_t i = 0; i < s_.n_top; ++i) {
      if (picks_[i] < 0) continue;
      const T* const keys = keys_ + picks_[i] * c * distance;
      seen.push_back(
          {keys, keys + s_.heads * d_, c, distance, R(weights_[i]), 1, mask_ ? mask_ + picks_[i] * c : nullptr});
    }
    cpu::attend_one_query(seen, d_, q, y);
  }

 private:
  bool is_open(std::int64_t bucket) const {
    if (!mask_) return true;
    const bool* const real = mask_ + bucket * s_.key_bucket;
    return std::find(real, real + s_.key_bucket, true) != real + s_.key_bucket;
  }

  void route(double share) const {
    std::vector<T> query(d_), scores(s_.key_buckets());
    for (std::int64_t e = 0; e < d_; ++e) query[e] = T(R(sums_[e] * share));
    for (std::int64_t j = 0; j < s_.key_buckets(); ++j) {
      scores[j] = is_open(j) ? cpu::summary_score(d_, query.data(), m_.summaries + (place_ * s_.key_buckets() + j) * d_)
                             : T(-std::numeric_limits<R>::infinity());
    }
    cpu::choose(scores, s_.n_top, m_.temperature, weights_, picks_);
  }

  const Memory& m_;
  const CrossCacheShape& s_;
  const std::int64_t d_, place_;  // place_ in (rows, H)
  const T* keys_;
  const bool* mask_;
  double* sums_;
  T* weights_;
  std::int32_t* picks_;
};

}  // namespace

template <class T>
void CachedCrossAttention<T>::remember(Cpu, const Memory& memory, const Placement& tokens, const T* q) {
  const CrossCacheShape& s = memory.shape;
  parallel_for(
      tokens.count * s.heads, grain_for(4 * tokens.length * s.width), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t item = begin; item < end; ++item) {
          const std::int64_t entry = item / s.heads, head = item % s.heads;
          const Head<T> one(memory, tokens.rows[entry], head);
          const std::int64_t first = tokens.begin[entry], length = tokens.lengths[entry];
          for (std::int64_t t = 0; t < length; ++t)
            one.add(first + t, first + length - 1, q + ((entry * tokens.length + t) * s.heads + head) * s.width);
        }
      });
}

template <class T>
void CachedCrossAttention<T>::attend(Cpu, const Memory& memory, const Placement& tokens, const T* q, T* y) {
  const CrossCacheShape& s = memory.shape;
  parallel_for(
      tokens.count * s.heads, grain_for(2 * s.n_top * s.key_bucket * s.width),
      [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t item = begin; item < end; ++item)
          Head<T>(memory, tokens.rows[item / s.heads], item % s.heads).attend(q + item * s.width, y + item * s.width);
      });
}

template struct CachedCrossAttention<float>;
template struct CachedCrossAttention<double>;
template struct CachedCrossAttention<bf16>;

}  // namespace sinkhorn::kernels
