#include "autograd/cached_attention.h"
#include "autograd/maps.h"
#include "autograd/ops/routing.h"
#include "cuda/one_query.h"
#include "cuda/runtime.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

template <class T>
struct Remembered {
  explicit Remembered(const typename CachedAttention<T>::Memory& m)
      : s(m.shape),
        keys(m.keys),
        values(m.values),
        query_sums(m.query_sums),
        key_sums(m.key_sums),
        mean_sums(m.mean_sums),
        summaries(m.summaries) {}
  CacheShape s;
  Global<T> keys, values;
  Global<double> query_sums, key_sums, mean_sums;
  Global<T> summaries;
};

struct Places {
  explicit Places(const Placement& p) : length(p.length), rows(p.rows), begin(p.begin), lengths(p.lengths) {}
  std::int64_t length;
  Global<const std::int32_t> rows, begin, lengths;
};

// One block per entry and head walks its tokens in order; a thread owns some of the head's numbers. Where the last
// token's bucket begins, the block scores the choices; the top-k comes after.
template <class T>
struct AddTokens {
  using R = Real<T>;
  Remembered<T> m;
  Places tokens;
  Global<const T> qkv, table;
  std::int64_t columns;         // of the table
  Global<T> scores;             // (entries, h, n + buckets)
  Global<std::int32_t> routed;  // (entries, h)
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const CacheShape& s = m.s;
    const std::int64_t d = s.width, entry = t.block() / s.heads, head = t.block() % s.heads, row = tokens.rows[entry];
    const std::int64_t sorting = s.heads - s.local, own = head - s.local, place = row * sorting + own;
    const bool is_local = own < 0;
    const std::int64_t shift = !is_local && own >= sorting / 2 ? s.bucket - 1 : 0;
    const std::int64_t begin = tokens.begin[entry], length = tokens.lengths[entry], last = begin + length - 1;
    const std::int64_t choices = s.n_top + s.capacity / s.bucket, item = entry * sorting + own;
    bool is_routed = false;
    for (std::int64_t position = begin; position <= last; ++position) {
      const std::int64_t token = entry * tokens.length + position - begin;
      const auto query = qkv + (token * 3 * s.heads + head) * d, k = query + s.heads * d, v = k + s.heads * d;
      const std::int64_t slot = position - shift, bucket = slot < 0 ? -1 : slot / s.bucket;
      const std::int64_t cached = ((row * s.heads + head) * s.capacity + position) * d;
      const bool starts = slot >= 0 && slot % s.bucket == 0;
      for (std::int64_t e = t.index(); e < d; e += t.size()) {
        m.keys[cached + e] = k[e];
        m.values[cached + e] = v[e];
        if (is_local || slot < 0) continue;
        const std::int64_t at = place * d + e;
        m.query_sums[at] = (slot == 0 ? 0.0 : double(m.query_sums[at])) + double(R(query[e]));
        m.key_sums[at] = (slot == 0 ? 0.0 : double(m.key_sums[at])) + double(R(k[e]));
      }
      if (is_local || slot < 0) continue;
      const double share = 1.0 / double(slot + 1);
      if (starts && bucket == (last - shift) / s.bucket) {
        is_routed = true;
        t.sync();
        for (std::int64_t j = t.index(); j < choices; j += t.size())
          scores[item * choices + j] = score(j, place, own, bucket, share, k);
        t.sync();
      }
      for (std::int64_t e = t.index(); e < d; e += t.size()) {
        const std::int64_t at = place * d + e;
        const double means = (starts ? 0.0 : double(m.mean_sums[at])) + double(m.key_sums[at]) * share;
        m.mean_sums[at] = means;
        if (slot % s.bucket == s.bucket - 1)
          m.summaries[(place * (s.capacity / s.bucket) + bucket) * d + e] = T(R(means));
      }
    }
    if (t.index() == 0 && !is_local) routed[item] = is_routed;
  }
  // Of choice j: a null's is 0 without a table; -inf for buckets that are not behind.
  SINKHORN_DEVICE T score(std::int64_t j, std::int64_t place, std::int64_t own, std::int64_t bucket, double share,
                          Global<const T> k) const {
    const CacheShape& s = m.s;
    const std::int64_t d = s.width, source = j - s.n_top;
    if (source >= bucket) return T(-std::numeric_limits<R>::infinity());
    if (table) {
      R sum = 0;
      for (std::int64_t e = 0; e < 2 * d; ++e) {
        const R seen = e < d ? R(T(R(double(m.key_sums[place * d + e]) * share))) : R(k[e - d]);
        sum += seen * R(table[(own * 2 * d + e) * columns + j]);
      }
      return T(maps::LeakyRelu::f(R(T(sum))));
    }
    if (source < 0) return T(R(0));
    const Global<const T> summary = m.summaries + (place * (s.capacity / s.bucket) + source) * d;
    return summary_score<T>(
        d, [&](std::int64_t e) { return T(R(double(m.query_sums[place * d + e]) * share)); }, summary);
  }
};

template <class T, int N>
struct AttendLast {
  using R = Real<T>;
  CacheShape s;
  Global<const T> keys, values, weights;
  Global<const std::int32_t> picks;
  Places tokens;
  Global<const T> qkv, null_keys, null_values;
  Global<T> y;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const std::int64_t d = s.width, b = s.bucket, entry = t.block() / s.heads, head = t.block() % s.heads;
    const std::int64_t row = tokens.rows[entry], sorting = s.heads - s.local, own = head - s.local;
    const std::int64_t position = tokens.begin[entry] + tokens.lengths[entry] - 1;
    const std::int64_t shift = own >= 0 && own >= sorting / 2 ? b - 1 : 0, slot = position - shift;
    const std::int64_t cached = (row * s.heads + head) * s.capacity * d, choice = (row * sorting + own) * s.n_top;
    const std::int64_t chosen = own >= 0 && slot >= 0 ? s.n_top : 0;
    const std::int64_t window = position / b - 1;
    const std::int64_t first = own < 0 ? (window > 0 ? window : 0) * b : slot >= 0 ? slot / b * b + shift : 0;
    const auto stretch = [&](std::int64_t i) -> Stretch<T> {
      if (i == chosen)
        return {keys + (cached + first * d), values + (cached + first * d), position + 1 - first, d, 1, 1, {}};
      const std::int64_t pick = picks[choice + i], begin = (pick - s.n_top) * b + shift;
      const R w = weights[choice + i];
      if (pick < s.n_top) return {null_keys + own * d, null_values + own * d, 1, d, w, R(b), {}};
      return {keys + (cached + begin * d), values + (cached + begin * d), b, d, w, 1, {}};
    };
    attend_one_query<N, T>(t, chosen + 1, stretch, most(s), d, qkv + (entry * 3 * s.heads + head) * d,
                           y + t.block() * d);
  }
  // A local head sees up to two windows, and before the first bucket of a rotated head there is less than one.
  SINKHORN_HD static std::int64_t most(const CacheShape& s) { return (s.n_top + 2) * s.bucket; }
};

}  // namespace

template <class T>
void CachedAttention<T>::remember(Cuda, const Memory& memory, const Placement& tokens, const T* qkv, const T* table,
                                  std::int64_t columns) {
  const std::string_view op = "cached_attention";
  const CacheShape& s = memory.shape;
  const std::int64_t items = tokens.count * s.sorting(), choices = s.n_top + s.buckets();
  const Tensor scores = workspace({items, choices}, dtype_of<T>), routed = workspace({items}, DType::i32);
  const Tensor weights = workspace({items, s.n_top}, dtype_of<T>), picks = workspace({items, s.n_top}, DType::i32);
  scores.fill(0);
  launch(op, tokens.count * s.heads, threads_for(s.width), 0,
         AddTokens<T>{Remembered<T>(memory), Places(tokens), qkv, table, columns, scores.data<T>(),
                      routed.data<std::int32_t>()});
  if (items == 0 || s.n_top == 0) return;
  TopK<T>::forward(Cuda{}, Rows(scores.shape()), s.n_top, Real<T>(memory.temperature), scores.data<T>(), nullptr,
                   weights.data<T>(), picks.data<std::int32_t>());
  for_each(op, items * s.n_top,
           KeepChoices<T>{s.n_top, s.sorting(), tokens.rows, routed.data<std::int32_t>(), weights.data<T>(),
                          picks.data<std::int32_t>(), memory.weights, memory.picks});
}

template <class T>
void CachedAttention<T>::attend(Cuda, const Memory& memory, const Placement& tokens, const T* qkv, const T* null_keys,
                                const T* null_values, T* y) {
  const CacheShape& s = memory.shape;
  const auto attend = [&]<int N>(Width<N>) {
    using Attend = AttendLast<T, N>;
    launch("cached_attention", tokens.count * s.heads, kMaxThreads,
           one_query_bytes<N, Real<T>>(Attend::most(s), s.width),
           Attend{s, memory.keys, memory.values, memory.weights, memory.picks, Places(tokens), qkv, null_keys,
                  null_values, y});
  };
  constexpr int kPack = pack_width<T>();
  if (s.width % kPack == 0 && is_aligned<kPack>(memory.keys, memory.values, qkv, null_keys, null_values))
    attend(Width<kPack>{});
  else
    attend(Width<1>{});
}

template struct CachedAttention<float>;
template struct CachedAttention<double>;
template struct CachedAttention<bf16>;

}  // namespace sinkhorn::kernels
