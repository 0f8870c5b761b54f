// Attention of a single query, and the choice of the blocks that it looks at; for decoding, token by token.
#pragma once
#include <cmath>
#include <limits>
#include <vector>

#include "autograd/cpu/reduce.h"
#include "autograd/ops/routing.h"

namespace sinkhorn::cpu {

/// Keys and values that a query sees, `distance` numbers from one token to the next, and the weight of their block,
/// which multiplies both. Each token counts `copies` times (a null block is one token in every slot); with `real`, only
/// where that is true.
template <class T>
struct Stretch {
  const T *keys, *values;
  std::int64_t tokens, distance;
  Real<T> weight = 1, copies = 1;
  const bool* real = nullptr;
};

/// y = softmax(w k q / sqrt(width)) w v over all tokens of all stretches; 0 if there is none.
template <class T>
void attend_one_query(const std::vector<Stretch<T>>& seen, std::int64_t width, const T* q, T* y) {
  using R = Real<T>;
  constexpr R kClosed = -std::numeric_limits<R>::infinity();
  std::vector<R> query(width), scores, out(width);
  const R scale = 1 / std::sqrt(R(width));
  for (std::int64_t e = 0; e < width; ++e) query[e] = R(q[e]) * scale;
  R largest = kClosed;
  for (const Stretch<T>& stretch : seen)
    for (std::int64_t j = 0; j < stretch.tokens; ++j) {
      R score = kClosed;
      if (!stretch.real || stretch.real[j]) {
        const T* const key = stretch.keys + j * stretch.distance;
        score = stretch.weight * row_sum<R>(width, [&](std::int64_t e) { return query[e] * R(key[e]); });
      }
      scores.push_back(score);
      largest = std::max(largest, score);
    }
  R sum = 0;
  std::size_t next = 0;
  for (const Stretch<T>& stretch : seen)
    for (std::int64_t j = 0; j < stretch.tokens; ++j) {
      const R score = scores[next++];
      if (score == kClosed) continue;
      const R mass = stretch.copies * math::exp(score - largest), factor = mass * stretch.weight;
      const T* const value = stretch.values + j * stretch.distance;
      sum += mass;
      for (std::int64_t e = 0; e < width; ++e) out[e] += factor * R(value[e]);
    }
  for (std::int64_t e = 0; e < width; ++e) y[e] = T(sum == 0 ? R(0) : out[e] / sum);
}

/// The score of a bucket for the attention sort net: q k' / sqrt(width), rounded to T as the ops in the full forward
/// do.
template <class T>
T summary_score(std::int64_t width, const T* query, const T* key) {
  using R = Real<T>;
  const T product = row_sum<R>(width, [=](std::int64_t e) { return R(query[e]) * R(key[e]); });
  return T(R(1 / std::sqrt(double(width))) * R(product));
}

/// top_k of one row of scores.
template <class T>
void choose(const std::vector<T>& scores, std::int64_t n, double temperature, T* weights, std::int32_t* picks) {
  kernels::TopK<T>::forward(Cpu{}, kernels::Rows(Shape{1, std::int64_t(scores.size())}), n, Real<T>(temperature),
                            scores.data(), nullptr, weights, picks);
}

}  // namespace sinkhorn::cpu
