#include "tools/planted_attention.h"

#include <cmath>
#include <limits>

#include "models/fields.h"

namespace sinkhorn {
namespace {

using Mistake = Plant::Mistake;

/// A bool tensor (N, b, J) from a rule of (bucket, row, column).
template <class Rule>
Tensor allowed_where(Shape shape, Rule rule) {
  Tensor allowed(shape, DType::boolean);
  bool* out = allowed.data<bool>();
  for (std::int64_t u = 0; u < shape[0]; ++u)
    for (std::int64_t i = 0; i < shape[1]; ++i)
      for (std::int64_t j = 0; j < shape[2]; ++j) *out++ = rule(u, i, j);
  return allowed;
}

/// softmax(q k' / sqrt(d)) v: q (G, N, b, d), k and v (G, N, J, d), allowed (G, N, b, J).
Var attend(const Var& q, const Var& k, const Var& v, const Tensor& allowed, Mistake mistake) {
  const Var scores = scale(matmul(q, k, false, true), 1 / std::sqrt(double(q.shape()[3])));
  if (mistake == Mistake::softmax_before_mask) return matmul(mask_fill(softmax(scores), allowed, 0), v);
  return matmul(softmax(scores, allowed), v);
}

std::int64_t position(std::int64_t at, Mistake mistake) {
  return mistake == Mistake::local_positions_bf16 ? std::int64_t(float(bf16(float(at)))) : at;
}

/// Heads as (B, H, T, d).
struct Heads {
  Var q, k, v;
};

/// Local heads: the own window and the one before.
Var local_heads(const Heads& h, const AttentionOptions& o, Mistake mistake) {
  const std::int64_t batch = h.q.shape()[0], length = h.q.shape()[2], buckets = length / o.bucket;
  const auto windows = [&](const Var& x) {
    return reshape(slice(x, 1, 0, o.local), {batch * o.local, buckets, o.bucket, o.width});
  };
  const auto with_previous = [&](const Var& x) {
    const Var own = windows(x);
    return concat({slice(pad(own, 1, 1, 0), 1, 0, buckets), own}, 2);
  };
  const Tensor rule = allowed_where({buckets, o.bucket, 2 * o.bucket}, [&](auto u, auto i, auto j) {
    const std::int64_t query = u * o.bucket + i, key = (u - 1) * o.bucket + j;
    return key >= 0 && position(key, mistake) <= position(query, mistake);
  });
  const Tensor allowed =
      stretch(rule.reshape({1, buckets, o.bucket, 2 * o.bucket}), {batch * o.local, buckets, o.bucket, 2 * o.bucket});
  const Var y = attend(windows(h.q), with_previous(h.k), with_previous(h.v), allowed, mistake);
  return reshape(y, {batch, o.local, length, o.width});
}

/// Routing of the sorting heads, with a mistake in it.
Routing planted_routing(const Var& q, const Var& kv, const AttentionOptions& o, Mistake mistake) {
  const Summary of_queries = mistake == Mistake::whole_bucket_routing ? Summary::sum_of_means : Summary::mean_at_first;
  const Var queries = bucket_summary(q, of_queries, o.bucket, o.local);
  const Var keys = bucket_summary(kv, Summary::sum_of_means, o.bucket, o.local);
  const Shape s = keys.shape();  // (B, h, N, d)
  const Var real = scale(matmul(queries, keys, false, true), 1 / std::sqrt(double(s[3])));
  const Var scores = concat({Var(Tensor::zeros({s[0], s[1], s[2], o.n_top}, real.value.dtype())), real}, -1);
  const Tensor allowed = causal_choices(s[0], s[1], s[2], o.bucket, o.n_top, {});
  if (mistake == Mistake::choose_itself) {
    const std::int64_t columns = o.n_top + s[2];
    for (std::int64_t row = 0; row < s[0] * s[1] * s[2]; ++row)
      allowed.data<bool>()[row * columns + o.n_top + row % s[2]] = true;
  }
  const TopK chosen =
      top_k(mask_fill(scores, allowed, -std::numeric_limits<double>::infinity()), o.n_top, o.temperature);
  return {chosen.weights, chosen.picks};
}

/// Sorting heads: nulls and chosen buckets, then the own bucket; the second half of them rotated.
Var sorting_heads(const Heads& h, const Routing& routing, const Var& null_keys, const Var& null_values,
                  const AttentionOptions& o, Mistake mistake) {
  const std::int64_t batch = h.q.shape()[0], length = h.q.shape()[2], buckets = length / o.bucket;
  const std::int64_t sorting = o.heads - o.local, unrotated = sorting / 2, groups = batch * sorting, n = o.n_top;
  const auto rotated = [&](const Var& x, std::int64_t shift) {
    return concat({slice(x, 1, 0, unrotated), rotate(slice(x, 1, unrotated, sorting), 2, shift)}, 1);
  };
  const auto bucketed = [&](const Var& x) {
    return reshape(rotated(slice(x, 1, o.local, o.heads), o.bucket - 1), {groups, buckets, o.bucket, o.width});
  };
  const Tensor picks = routing.picks.reshape({groups, buckets, n});
  const auto seen = [&](const Var& x, const Var& null) {
    const Var own = bucketed(x);
    const Var nulls = broadcast_to(reshape(null, {1, sorting, 1, 1, o.width}), {batch, sorting, n, o.bucket, o.width});
    const Var source = concat({reshape(nulls, {groups, n, o.bucket, o.width}), own}, 1);
    return concat({gather_buckets(source, reshape(routing.weights, {groups, buckets, n}), picks), own}, 2);
  };
  const std::int64_t columns = (n + 1) * o.bucket;
  const auto rule = [&](bool is_rotated) {
    return allowed_where({buckets, o.bucket, columns}, [&](auto u, auto i, auto j) {
      // Slots 1 .. b-1 of a rotated head's last bucket hold the tokens 0 .. b-2.
      const bool wrapped = is_rotated && u == buckets - 1 && i > 0 && mistake != Mistake::no_wrap_mask;
      const std::int64_t own = j - n * o.bucket;
      if (own < 0) return !wrapped;
      return (own <= i || mistake == Mistake::no_triangle) && !(wrapped && own == 0);
    });
  };
  const Shape one{1, 1, buckets, o.bucket, columns};
  const Tensor plain = stretch(rule(false).reshape(one), {batch, unrotated, buckets, o.bucket, columns});
  const Tensor turned = stretch(rule(true).reshape(one), {batch, sorting - unrotated, buckets, o.bucket, columns});
  const Tensor allowed = concat({Var(plain), Var(turned)}, 1).value.reshape({groups, buckets, o.bucket, columns});
  const Var y = attend(bucketed(h.q), seen(h.k, null_keys), seen(h.v, null_values), allowed, mistake);
  return rotated(reshape(y, {batch, sorting, length, o.width}), -(o.bucket - 1));
}

}  // namespace

const std::vector<Plant>& plants() {
  static const std::vector<Plant> all = {
      {"none", "no leak, in the same small ops as the others", Mistake::none, false, false, false},
      {"local-positions-bf16", "local heads compare positions rounded to bf16: beyond 256, neighbours are equal",
       Mistake::local_positions_bf16, true, false, false},
      {"no-triangle", "inside its own bucket a query sees later tokens", Mistake::no_triangle, false, true, false},
      {"choose-itself", "a bucket may choose itself among the earlier ones", Mistake::choose_itself, false, true, true},
      {"whole-bucket-routing", "routing reads all queries of a bucket, not those up to its first",
       Mistake::whole_bucket_routing, false, true, true},
      {"no-wrap-mask", "the last bucket of rotated heads, which holds the first tokens, lacks its mask",
       Mistake::no_wrap_mask, false, true, false},
      {"softmax-before-mask", "the softmax sums over masked scores too", Mistake::softmax_before_mask, false, false,
       false},
  };
  return all;
}

const Plant& find_plant(const std::string& name) {
  std::vector<std::string> names;
  for (const Plant& plant : plants()) {
    if (plant.name == name) return plant;
    names.push_back(plant.name);
  }
  const std::string near = nearest(name, names);
  std::string all;
  for (const std::string& each : names) all += (all.empty() ? "" : ", ") + each;
  fail<UsageError>("--plant: there is no ", name, near.empty() ? "" : "; did you mean " + near + "?", " (known: ", all,
                   ")");
}

AttentionTwin planted_attention(const Plant& plant) {
  return [mistake = plant.mistake](const SinkhornAttention& layer, const Scope& scope, const Var& q, const Var& kv,
                                   const AttentionMasks& masks) {
    if (masks.queries) fail("planted attention: takes whole buckets without padding");
    const AttentionOptions& o = layer.options;
    const auto by_head = [](const Var& x) { return permute(x, {0, 2, 1, 3}); };
    const auto part = [&](std::int64_t i) { return by_head(reshape(slice(kv, 2, i, i + 1), q.shape())); };
    const Heads heads{by_head(q), part(0), part(1)};
    std::vector<Var> outputs;
    if (o.local > 0) outputs.push_back(local_heads(heads, o, mistake));
    if (o.local < o.heads) {
      const bool routed = mistake == Mistake::choose_itself || mistake == Mistake::whole_bucket_routing;
      const Routing routing = routed
                                  ? planted_routing(q, kv, o, mistake)
                                  : layer.causal_sort_net(scope, q, kv, o.bucket, o.local, o.n_top, o.temperature, {});
      outputs.push_back(
          sorting_heads(heads, routing, scope.leaf(layer.null_keys), scope.leaf(layer.null_values), o, mistake));
    }
    return permute(concat(outputs, 1), {0, 2, 1, 3});
  };
}

}  // namespace sinkhorn
