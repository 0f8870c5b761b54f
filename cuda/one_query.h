// Attention of a single query by one block, for decoding token by token.
#pragma once
#include <cmath>

#include "cuda/elements.h"
#include "cuda/reduce.h"

namespace sinkhorn::cuda {

/// Keys and values that a query sees, `distance` numbers from one token to the next, and the weight of their block,
/// which multiplies both. Each token counts `copies` times (a null block is one token in every slot); with `real`, only
/// where that is true.
template <class T>
struct Stretch {
  Global<const T> keys, values;
  std::int64_t tokens, distance;
  Real<T> weight, copies;
  Global<const bool> real;
};

/// How many numbers the partial sums of attend_one_query<N> take, one row of `width` for each group of threads.
template <int N>
SINKHORN_HD constexpr std::int64_t partial_sums(std::int64_t width) {
  return width > kMaxThreads * N ? width : kMaxThreads * N;
}

/// Bytes of shared memory that attend_one_query<N> takes for `tokens` in all stretches.
template <int N, class R>
constexpr std::size_t one_query_bytes(std::int64_t tokens, std::int64_t width) {
  const auto bytes = [](std::int64_t count) { return (std::size_t(count) * sizeof(R) + 15) / 16 * 16; };
  return reducer_bytes<R>() + bytes(tokens) + bytes(partial_sums<N>(width));
}

/// y = softmax(w k q / sqrt(width)) w v over all tokens of stretch(0) .. stretch(count - 1), at most `most` tokens; 0
/// if there is none. Numbers are read in packs of N, to which width, distances and pointers must be aligned. First each
/// thread takes a token, and then a pack of columns for a share of the tokens: one block has little work, so that its
/// time is that of the loads it waits for.
template <int N, class T, class Stretches>
SINKHORN_DEVICE void attend_one_query(Thread& t, std::int64_t count, Stretches stretch, std::int64_t most,
                                      std::int64_t width, Global<const T> q, Global<T> y) {
  using R = Real<T>;
  constexpr R closed = -std::numeric_limits<R>::infinity();
  const BlockReducer<R> reduce(t);
  const Shared<R> scores = t.shared<R>(most), partial = t.shared<R>(partial_sums<N>(width));
  const R scale = 1 / std::sqrt(R(width));
  R largest = closed, sum = 0;
  std::int64_t first = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const Stretch<T> seen = stretch(i);
    for (std::int64_t j = t.index(); j < seen.tokens; j += t.size()) {
      R score = closed;
      if (!seen.real || seen.real[j]) {
        R dot = 0;
        for (std::int64_t e = 0; e < width; e += N) {
          const Pack<R, N> query = load_real<N>(q, e), key = load_real<N>(seen.keys, j * seen.distance + e);
          for (int n = 0; n < N; ++n) dot += query[n] * scale * key[n];
        }
        score = seen.weight * dot;
      }
      scores[first + j] = score;
      largest = Larger{}(largest, score);
    }
    first += seen.tokens;
  }
  largest = reduce.max(largest);
  first = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const Stretch<T> seen = stretch(i);
    for (std::int64_t j = t.index(); j < seen.tokens; j += t.size()) {
      const R score = scores[first + j], mass = score == closed ? R(0) : seen.copies * math::exp(score - largest);
      sum += mass;
      scores[first + j] = mass * seen.weight;
    }
    first += seen.tokens;
  }
  sum = reduce.sum(sum);
  t.sync();
  const std::int64_t packs = width / N, lanes = packs < t.size() ? packs : t.size(), groups = t.size() / lanes;
  const std::int64_t group = t.index() / lanes;
  for (std::int64_t pack = t.index() % lanes; group < groups && pack < packs; pack += lanes) {
    Pack<R, N> out = {};
    first = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const Stretch<T> seen = stretch(i);
      for (std::int64_t j = group; j < seen.tokens; j += groups) {
        const R factor = scores[first + j];
        const Pack<R, N> value = load_real<N>(seen.values, j * seen.distance + pack * N);
        for (int n = 0; n < N; ++n) out[n] += factor == 0 ? R(0) : factor * value[n];
      }
      first += seen.tokens;
    }
    for (int n = 0; n < N; ++n) partial[group * width + pack * N + n] = out[n];
  }
  t.sync();
  for (std::int64_t e = t.index(); e < width; e += t.size()) {
    R out = 0;
    for (std::int64_t i = 0; i < groups; ++i) out += partial[i * width + e];
    y[e] = sum == 0 ? R(0) : out / sum;
  }
}

/// The score of a bucket for the attention sort net: q k' / sqrt(width), rounded to T as the ops in the full forward
/// do. query(e) is the query's e-th number.
template <class T, class Query>
SINKHORN_DEVICE T summary_score(std::int64_t width, Query query, Global<const T> key) {
  using R = Real<T>;
  R sum = 0;
  for (std::int64_t e = 0; e < width; ++e) sum += R(query(e)) * R(key[e]);
  return T(R(1 / std::sqrt(double(width))) * R(T(sum)));
}

/// Takes over the choices of those items that were routed. Index (item, n).
template <class T>
struct KeepChoices {
  std::int64_t n, heads;
  Global<const std::int32_t> rows, routed;  // (entries), (entries, heads)
  Global<const T> weights;                  // (entries, heads, n)
  Global<const std::int32_t> picks;
  Global<T> kept_weights;  // (rows, heads, n)
  Global<std::int32_t> kept_picks;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t item = i / n, entry = item / heads, row = rows[entry];
    if (routed[item] == 0) return;
    const std::int64_t at = (row * heads + item % heads) * n + i % n;
    kept_weights[at] = weights[i];
    kept_picks[at] = picks[i];
  }
};

}  // namespace sinkhorn::cuda
