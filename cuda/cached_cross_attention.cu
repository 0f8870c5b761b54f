#include "autograd/cached_cross_attention.h"
#include "autograd/ops/routing.h"
#include "cuda/one_query.h"
#include "cuda/runtime.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

struct Places {
  explicit Places(const Placement& p) : length(p.length), rows(p.rows), begin(p.begin), lengths(p.lengths) {}
  std::int64_t length;
  Global<const std::int32_t> rows, begin, lengths;
};

// One block per entry and head adds up its queries; where the last one's bucket begins, it scores the key buckets.
template <class T>
struct AddQueries {
  using R = Real<T>;
  CrossCacheShape s;
  Global<const T> summaries;
  Global<const bool> mask;
  Global<double> query_sums;
  Places tokens;
  Global<const T> q;
  Global<T> scores;             // (entries, H, M)
  Global<std::int32_t> routed;  // (entries, H)
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const std::int64_t d = s.width, buckets = s.context_length / s.key_bucket, entry = t.block() / s.heads;
    const std::int64_t head = t.block() % s.heads, row = tokens.rows[entry], place = row * s.heads + head;
    const std::int64_t begin = tokens.begin[entry], last = begin + tokens.lengths[entry] - 1;
    const std::int64_t first = s.shared ? 0 : last / s.bucket * s.bucket;  // where the choice is made
    for (std::int64_t position = begin; position <= last; ++position) {
      const auto query = q + ((entry * tokens.length + position - begin) * s.heads + head) * d;
      for (std::int64_t e = t.index(); e < d; e += t.size())
        query_sums[place * d + e] = (position == 0 ? 0.0 : double(query_sums[place * d + e])) + double(R(query[e]));
      if (position != first) continue;
      t.sync();
      const double share = 1.0 / double(position + 1);
      for (std::int64_t j = t.index(); j < buckets; j += t.size())
        scores[t.block() * buckets + j] =
            is_open(row, j) ? summary_score<T>(
                                  d, [&](std::int64_t e) { return T(R(double(query_sums[place * d + e]) * share)); },
                                  summaries + (place * buckets + j) * d)
                            : T(-std::numeric_limits<R>::infinity());
      t.sync();
    }
    if (t.index() == 0) routed[t.block()] = first >= begin && first <= last;
  }
  SINKHORN_DEVICE bool is_open(std::int64_t row, std::int64_t bucket) const {
    if (!mask) return true;
    for (std::int64_t i = 0; i < s.key_bucket; ++i)
      if (mask[row * s.context_length + bucket * s.key_bucket + i]) return true;
    return false;
  }
};

template <class T, int N>
struct AttendContext {
  using R = Real<T>;
  CrossCacheShape s;
  Global<const T> kv, weights;
  Global<const std::int32_t> picks;
  Global<const bool> mask;
  Places tokens;
  Global<const T> q;
  Global<T> y;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const std::int64_t d = s.width, c = s.key_bucket, entry = t.block() / s.heads, head = t.block() % s.heads;
    const std::int64_t row = tokens.rows[entry], choice = (row * s.heads + head) * s.n_top;
    const auto stretch = [&](std::int64_t i) -> Stretch<T> {
      const std::int64_t pick = picks[choice + i], slot = row * s.context_length + (pick < 0 ? 0 : pick) * c;
      const auto keys = kv + (slot * 2 * s.heads + head) * d;
      return {keys, keys + s.heads * d,       pick < 0 ? 0 : c, 2 * s.heads * d, R(weights[choice + i]),
              1,    mask ? mask + slot : mask};
    };
    attend_one_query<N, T>(t, s.n_top, stretch, s.n_top * c, d, q + t.block() * d, y + t.block() * d);
  }
};

}  // namespace

template <class T>
void CachedCrossAttention<T>::remember(Cuda, const Memory& memory, const Placement& tokens, const T* q) {
  const std::string_view op = "cached_cross_attention";
  const CrossCacheShape& s = memory.shape;
  const std::int64_t items = tokens.count * s.heads;
  const Tensor scores = workspace({items, s.key_buckets()}, dtype_of<T>), routed = workspace({items}, DType::i32);
  const Tensor weights = workspace({items, s.n_top}, dtype_of<T>), picks = workspace({items, s.n_top}, DType::i32);
  scores.fill(0);
  launch(op, items, threads_for(s.width), 0,
         AddQueries<T>{s, memory.summaries, memory.mask, memory.query_sums, Places(tokens), q, scores.data<T>(),
                       routed.data<std::int32_t>()});
  if (items == 0 || s.n_top == 0) return;
  TopK<T>::forward(Cuda{}, Rows(scores.shape()), s.n_top, Real<T>(memory.temperature), scores.data<T>(), nullptr,
                   weights.data<T>(), picks.data<std::int32_t>());
  for_each(op, items * s.n_top,
           KeepChoices<T>{s.n_top, s.heads, tokens.rows, routed.data<std::int32_t>(), weights.data<T>(),
                          picks.data<std::int32_t>(), memory.weights, memory.picks});
}

template <class T>
void CachedCrossAttention<T>::attend(Cuda, const Memory& memory, const Placement& tokens, const T* q, T* y) {
  const CrossCacheShape& s = memory.shape;
  const auto attend = [&]<int N>(Width<N>) {
    launch("cached_cross_attention", tokens.count * s.heads, kMaxThreads,
           one_query_bytes<N, Real<T>>(s.n_top * s.key_bucket, s.width),
           AttendContext<T, N>{s, memory.kv, memory.weights, memory.picks, memory.mask, Places(tokens), q, y});
  };
  constexpr int kPack = pack_width<T>();
  if (s.width % kPack == 0 && is_aligned<kPack>(memory.kv, q))
    attend(Width<kPack>{});
  else
    attend(Width<1>{});
}

template struct CachedCrossAttention<float>;
template struct CachedCrossAttention<double>;
template struct CachedCrossAttention<bf16>;

}  // namespace sinkhorn::kernels
