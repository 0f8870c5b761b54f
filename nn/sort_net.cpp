#include "nn/sort_net.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "autograd/best_of_stream.h"
#include "autograd/choices.h"

namespace sinkhorn {
namespace {

void observe(const Scope& scope, const Var& scores, const TopK& chosen) {
  scope.observe("scores", scores.value);
  scope.observe("picks", chosen.picks);
  scope.observe("weights", chosen.weights.value);
}

// What choose(picks) chooses: the picks of an earlier run, where a reversible chain replays one, else what it finds.
template <class Choose>
TopK chosen_once(const Scope& scope, Choose choose) {
  TopK chosen = choose(scope.choices ? scope.choices->replayed() : Tensor());
  if (scope.choices) scope.choices->record(chosen.picks);
  return chosen;
}

// Keys and values, and which part of them the keys are: queries come first where all are packed.
struct Keys {
  Keys(const Var& q, const Var& kv) : packed(kv.value ? kv : q), part(kv.value ? 0 : 1) {}
  Var summary(Summary kind, std::int64_t bucket, std::int64_t local, const Tensor& mask, bool rotates = true) const {
    return bucket_summary(packed, kind, bucket, local, part, mask, rotates);
  }
  const Var& packed;
  std::int64_t part;
};

// Whether scores are looked at one tile after the other.
bool streams(const Scope& scope, bool is_simple, bool composed, std::int64_t n_top) {
  return !is_simple && !composed && !scope.observer && n_top <= kMostStreamedPicks;
}

}  // namespace

Tensor causal_choices(std::int64_t batch, std::int64_t heads, std::int64_t buckets, std::int64_t bucket,
                      std::int64_t n_top, const Tensor& given_mask, Device device) {
  const ChoiceShape shape{batch, heads, buckets, bucket, n_top};
  const Tensor mask = given_mask ? given_mask.to(device) : Tensor();
  Tensor open({batch, heads, buckets, shape.columns()}, DType::boolean, device);
  dispatch_device(
      open, [&](auto space) { kernels::Choices::causal(space, shape, mask.data_or_null<bool>(), open.data<bool>()); });
  return open;
}

Var CausalSortNet::scores(const Scope& scope, const Var& q, const Var& kv, std::int64_t bucket, std::int64_t local,
                          std::int64_t n_top, const Tensor& mask, const HeadGroup& group) const {
  auto of_keys = [&](Summary kind) { return Keys(q, kv).summary(kind, bucket, local, mask); };
  if (!linear.value) {
    const Var queries = bucket_summary(q, Summary::mean_at_first, bucket, local, 0, mask),
              keys = of_keys(Summary::sum_of_means);
    const Shape s = keys.shape();  // (B, h, N, d)
    const Var real = scale(matmul(queries, keys, false, true), 1 / std::sqrt(double(s[3])));
    const Var nulls = Tensor::zeros({s[0], s[1], s[2], n_top}, real.value.dtype(), real.value.device());
    return concat({nulls, real}, -1);
  }
  const Var seen = concat({of_keys(Summary::mean_at_first), of_keys(Summary::value_at_first)}, -1);
  const Shape s = seen.shape();  // (B, h, N, 2d)
  const Shape table = linear.value.shape();
  if (n_top + s[2] > table[3])
    fail("sort net: ", s[2], " buckets exceed the ", table[3] - n_top, " of the simple sort net; raise max_seq_len");
  const Var all = cast(group.part(scope.leaf(linear), 1, 1), seen.value.dtype());
  const Var columns = slice(all, 3, 0, n_top + s[2]);
  return leaky_relu(matmul(seen, broadcast_to(columns, {s[0], s[1], s[3], n_top + s[2]})));
}

Routing CausalSortNet::operator()(const Scope& scope, const Var& q, const Var& kv, std::int64_t bucket,
                                  std::int64_t local, std::int64_t n_top, double temperature, const Tensor& mask,
                                  bool composed, const HeadGroup& group) const {
  const Shape s = q.shape();  // (B, T, H, d) or (B, T, 3, H, d)
  if (streams(scope, bool(linear.value), composed, n_top)) {
    const BucketScores seen{bucket_summary(q, Summary::mean_at_first, bucket, local, 0, mask),
                            Keys(q, kv).summary(Summary::sum_of_means, bucket, local, mask),
                            rotated_buckets_with_tokens(mask, bucket, q.value.device())};
    TopK chosen =
        chosen_once(scope, [&](const Tensor& picks) { return route_buckets(seen, n_top, temperature, picks); });
    return {chosen.weights, chosen.picks};
  }
  const Tensor allowed = causal_choices(s[0], s[-2] - local, s[1] / bucket, bucket, n_top, mask, q.value.device());
  const Var open = mask_fill(scores(scope, q, kv, bucket, local, n_top, mask, group), allowed,
                             -std::numeric_limits<double>::infinity());
  TopK chosen = chosen_once(scope, [&](const Tensor& picks) { return top_k(open, n_top, temperature, picks); });
  observe(scope, open, chosen);
  return {chosen.weights, chosen.picks};
}

Tensor rotated_buckets_with_tokens(const Tensor& given_mask, std::int64_t bucket, Device device) {
  if (!given_mask) return {};
  const Tensor mask = given_mask.to(device);
  const std::int64_t batch = mask.shape()[0], length = mask.shape()[1];
  const Var rotated = concat({slice(mask, 1, bucket - 1, length), slice(mask, 1, 0, bucket - 1)}, 1);
  const Var both = concat({reshape(mask, {batch, 1, length}), reshape(rotated, {batch, 1, length})}, 1);
  return buckets_with_tokens(2 * batch, length, bucket, both.value.reshape({2 * batch, length}), device)
      .reshape({batch, 2, length / bucket});
}

Tensor buckets_with_tokens(std::int64_t batch, std::int64_t length, std::int64_t bucket, const Tensor& given_mask,
                           Device device) {
  const Shape shape{batch, length / bucket};
  if (!given_mask) return Tensor::full(shape, 1, DType::boolean, device);
  const Tensor mask = given_mask.to(device);
  Tensor some(shape, DType::boolean, device);
  dispatch_device(some, [&](auto space) {
    kernels::Choices::with_tokens(space, some.count(), bucket, mask.data<bool>(), some.data<bool>());
  });
  return some;
}

BucketScores SortNet::compared(const Var& q, const Var& kv, const SortOptions& o, const AttentionMasks& masks,
                               bool one_row) const {
  const AttentionPattern& p = o.pattern;
  return {
      bucket_summary(q, o.causal_queries ? Summary::mean_at_first : Summary::mean,
                     one_row ? std::max<std::int64_t>(q.shape()[1], 1) : p.bucket, p.local, 0, masks.queries, false),
      Keys(q, kv).summary(Summary::mean, p.key_bucket, p.local, masks.keys, false),
      {},
      false};
}

Var SortNet::scores(const Scope& scope, const Var& q, const Var& kv, const SortOptions& o, const AttentionMasks& masks,
                    bool one_row) const {
  if (!linear.value) {
    const BucketScores seen = compared(q, kv, o, masks, one_row);
    return scale(matmul(seen.queries, seen.keys, false, true), 1 / std::sqrt(double(seen.keys.shape()[3])));
  }
  const AttentionPattern& p = o.pattern;
  const Var seen = concat({bucket_summary(q, Summary::sum, p.bucket, p.local, 0, masks.queries, false),
                           Keys(q, kv).summary(Summary::sum, p.key_bucket, p.local, masks.keys, false)},
                          -1);
  const Shape s = seen.shape(), table = linear.value.shape();  // (B, h, N, 2d), (1, h, 2d, M)
  if (s[2] != table[3])
    fail("sort net: ", s[2], " buckets, but the simple sort net is made for exactly ", table[3],
         "; pad to max_seq_len");
  const Var columns = cast(o.group.part(scope.leaf(linear), 1, 1), seen.value.dtype());
  return relu(matmul(seen, broadcast_to(columns, {s[0], s[1], s[3], table[3]})));
}

Routing SortNet::route(const Scope& scope, const Var& q, const Var& kv, const SortOptions& o,
                       const AttentionMasks& masks) const {
  const bool one_row = o.sortcut > 0 && !linear.value;  // SortCut picks once, for the whole sequence
  // Without key buckets there is one pick, and it finds nothing to choose.
  const Shape keys = Keys(q, kv).packed.shape();
  const std::int64_t batch = keys[0], buckets = keys[1] / o.pattern.key_bucket,
                     most = std::max<std::int64_t>(buckets, 1), shared = std::min(o.sortcut, most),
                     n = one_row ? shared : std::min(o.n_top, most);
  const auto open = [&](Shape shape) {
    return buckets_with_tokens(batch, keys[1], o.pattern.key_bucket, masks.keys, q.value.device()).reshape(shape);
  };
  if (streams(scope, bool(linear.value), o.composed, n)) {
    BucketScores seen = compared(q, kv, o, masks, one_row);
    if (masks.keys) seen.open = open({batch, 1, buckets});
    TopK chosen = chosen_once(scope, [&](const Tensor& picks) { return route_buckets(seen, n, o.temperature, picks); });
    return {chosen.weights, chosen.picks};
  }
  const Var choices = mask_fill(scores(scope, q, kv, o, masks, one_row), open({batch, 1, 1, buckets}),
                                -std::numeric_limits<double>::infinity());
  TopK chosen = chosen_once(scope, [&](const Tensor& picks) { return top_k(choices, n, o.temperature, picks); });
  observe(scope, choices, chosen);
  if (shared == 0 || one_row) return {chosen.weights, chosen.picks};
  // The simple sort net sorts first; SortCut then cuts the list of all picks, bucket after bucket.
  const Shape s = chosen.picks.shape(), list{s[0], s[1], 1, s[2] * s[3]};
  const std::int64_t kept = std::min(shared, list[3]);
  return {slice(reshape(chosen.weights, list), 3, 0, kept), slice(Var(chosen.picks.reshape(list)), 3, 0, kept).value};
}

Var SortNet::sorting_matrix(const Scope& scope, const Var& q, const Var& kv, const SortOptions& o,
                            const AttentionMasks& masks) const {
  const Var raw = scores(scope, q, kv, o, masks, false);
  const Shape s = raw.shape();  // (B, h, N, M)
  Var log_scores = log(scale(relu(raw), 1, 1e-6));
  scope.observe("log_scores", log_scores.value);
  if (const Tensor noise = scope.split(2).gumbel({s[0] * s[1], s[2], s[3]}, raw.value.dtype(), raw.value.device()))
    log_scores = add(log_scores, noise.reshape(s));
  const std::int64_t key_length = Keys(q, kv).packed.shape()[1];
  const Tensor open = buckets_with_tokens(s[0], key_length, o.pattern.key_bucket, masks.keys, raw.value.device());
  scope.observe("open", open);
  const Var matrix = sinkhorn(scale(log_scores, 1 / o.temperature), open.reshape({s[0], 1, s[3]}), o.iterations);
  scope.observe("sorting_matrix", matrix.value);
  const std::int64_t rows = o.sortcut > 0 ? std::min({o.sortcut, s[3], s[2]}) : s[2];
  return cast(slice(matrix, 2, 0, rows), q.value.dtype());
}

}  // namespace sinkhorn
