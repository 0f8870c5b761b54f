#include <fmt/format.h>

#include <cmath>

#include "nn/composed_attention.h"
#include "nn/sort_net.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/15_causality/exercise.h"

namespace sinkhorn::lesson {
namespace {

struct Size {
  std::int64_t heads, buckets, bucket, width;
};

Layer layer_of(const Size& size, Rng rng) {
  const std::int64_t length = size.buckets * size.bucket;
  const auto draw = [&](std::uint32_t tag, Shape shape) {
    return uniform(rng.split(tag), shape, -1.5, 1.5, DType::f64);
  };
  return {draw(0, {size.heads, length, size.width}),
          draw(1, {size.heads, length, size.width}),
          draw(2, {size.heads, length, size.width}),
          draw(3, {size.heads, size.width}),
          draw(4, {size.heads, size.width}),
          size.bucket,
          0.75};
}

// The library's rule on the same numbers.
Tensor library(const Layer& layer) {
  const Shape s = layer.q.shape();  // (h, T, d)
  const auto packed = [&](const Tensor& x) { return reshape(permute(Var(x), {1, 0, 2}), {1, s[1], 1, s[0], s[2]}); };
  const Var q = reshape(packed(layer.q), {1, s[1], s[0], s[2]}), kv = concat({packed(layer.k), packed(layer.v)}, 2);
  const Routing routing = CausalSortNet{}(Scope{}, q, kv, layer.bucket, 0, 1, layer.temperature, {});
  const NullBlock null{layer.null_key.reshape({s[0], 1, s[2]}), layer.null_value.reshape({s[0], 1, s[2]})};
  const AttentionPattern pattern{layer.bucket, layer.bucket, 0, true, true};
  return permute(reshape(composed_attention(q, kv, routing, null, pattern), {s[1], s[0], s[2]}), {1, 0, 2}).value;
}

// Rows of q, k and v from `first` to `last` changed, by amounts of that size, in every head.
Layer changed(const Layer& layer, std::int64_t first, std::int64_t last, double size, const Rng& rng) {
  Layer other = layer;
  std::uint32_t tag = 0;
  for (Tensor* x : {&other.q, &other.k, &other.v}) {
    *x = x->clone();
    const Shape s = x->shape();
    const Tensor noise = uniform(rng.split(tag++), s, 0.25 * size, size, DType::f64);
    for (std::int64_t head = 0; head < s[0]; ++head)
      for (std::int64_t at = (head * s[1] + first) * s[2]; at < (head * s[1] + last + 1) * s[2]; ++at)
        x->span<double>()[std::size_t(at)] += noise.span<double>()[std::size_t(at)];
  }
  return other;
}

// The largest change of row t of a head between two outputs.
double change(const Tensor& a, const Tensor& b, std::int64_t head, std::int64_t t) {
  const Shape s = a.shape();
  double largest = 0;
  for (std::int64_t at = (head * s[1] + t) * s[2]; at < (head * s[1] + t + 1) * s[2]; ++at) {
    const double difference = std::abs(a.span<double>()[std::size_t(at)] - b.span<double>()[std::size_t(at)]);
    if (!(difference <= largest)) largest = difference;  // NaN counts as a change
  }
  return largest;
}

std::string head_name(const Shape& shape, std::int64_t head) {
  return fmt::format("head {} of {}{}", head, shape[0], head >= shape[0] / 2 ? " (rotated)" : "");
}

// Changes everything behind each position in turn; nothing up to it may move.
void no_future(lessons::Checks& checks, const std::string& name, const Layer& layer, double size, const Rng& rng) {
  const Shape s = layer.q.shape();
  const Tensor y = causal_attention(layer);
  if (y.shape() != s || y.dtype() != DType::f64)
    return checks.that(name, false, "the output must be f64 of the shape of q");
  for (std::int64_t cut = 0; cut + 1 < s[1]; ++cut) {
    const Tensor other = causal_attention(changed(layer, cut + 1, s[1] - 1, size, rng.split(std::uint32_t(cut))));
    for (std::int64_t head = 0; head < s[0]; ++head)
      for (std::int64_t t = 0; t <= cut; ++t)
        if (const double moved = change(y, other, head, t); moved != 0)
          return checks.that(
              name, false,
              fmt::format("{}, bucket size {}: output {} moved by {:.2g} when the rows from {} on were changed",
                          head_name(s, head), layer.bucket, t, moved, cut + 1));
  }
  checks.that(name, true);
}

// Changes one row after the other: what moves must be what moves in the library.
void same_influence(lessons::Checks& checks, const std::string& name, const Layer& layer, const Rng& rng) {
  const Shape s = layer.q.shape();
  const Tensor y = causal_attention(layer), want = library(layer);
  if (y.shape() != s || y.dtype() != DType::f64)
    return checks.that(name, false, "the output must be f64 of the shape of q");
  for (std::int64_t row = 0; row < s[1]; ++row) {
    const Layer other = changed(layer, row, row, 1, rng.split(std::uint32_t(row)));
    const Tensor got = causal_attention(other), expected = library(other);
    for (std::int64_t head = 0; head < s[0]; ++head)
      for (std::int64_t t = row; t < s[1]; ++t) {
        const bool moves = change(y, got, head, t) > 1e-9, should = change(want, expected, head, t) > 1e-9;
        if (moves != should)
          return checks.that(
              name, false,
              fmt::format("{}, bucket size {}: a change of row {} must {}move output {}, and does{}",
                          head_name(s, head), layer.bucket, row, should ? "" : "not ", t, moves ? "" : " not"));
      }
  }
  checks.that(name, true);
}

}  // namespace

void check(lessons::Checks& checks) {
  const std::vector<Size> sizes = {{4, 3, 4, 3}, {1, 4, 3, 2}, {3, 5, 2, 4}, {2, 1, 4, 3}, {2, 5, 1, 2}};
  std::uint32_t round = 0;
  for (const Rng& rng : checks.rounds()) {
    // Every round has the first size, and one of the others.
    for (const std::size_t which : {std::size_t(0), std::size_t(1 + round % 4)}) {
      const Size& size = sizes[which];
      const Layer layer = layer_of(size, rng.split(std::uint32_t(which)));
      const std::string where = fmt::format(": {} head{}, {} bucket{} of {}", size.heads, size.heads == 1 ? "" : "s",
                                            size.buckets, size.buckets == 1 ? "" : "s", size.bucket);
      const auto attempt = [&](const std::string& name, auto body) { checks.attempt(name, [&] { body(name); }); };
      attempt("no output moves with its future" + where,
              [&](const std::string& name) { no_future(checks, name, layer, 1, rng.split(10)); });
      attempt("not even if the future is enormous" + where,
              [&](const std::string& name) { no_future(checks, name, layer, 1000, rng.split(11)); });
      attempt("all that is allowed has its influence" + where,
              [&](const std::string& name) { same_influence(checks, name, layer, rng.split(12)); });
      attempt("equal to the library" + where,
              [&](const std::string& name) { checks.near(name, causal_attention(layer), library(layer)); });
    }
    ++round;
  }
}

}  // namespace sinkhorn::lesson
