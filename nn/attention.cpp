#include "nn/attention.h"

#include <cmath>

namespace sinkhorn {

SinkhornSelfAttention::SinkhornSelfAttention(const AttentionOptions& options, Initializer& init)
    : options(options),
      to_q(options.dim, options.heads * options.width, false, init),
      to_kv(options.dim, 2 * options.heads * options.width, false, init),
      to_out(options.heads * options.width, options.dim, true, init),
      null_keys(init.normal({options.heads - options.local, 1, options.width})),
      null_values(init.normal({options.heads - options.local, 1, options.width})) {
  if (options.simple_sort_net)
    sort_net =
        CausalSortNet::simple(options.heads - options.local, options.width, options.max_buckets, options.n_top, init);
}

Var SinkhornSelfAttention::operator()(const Scope& scope, const Var& x, const Tensor& mask) const {
  const AttentionOptions& o = options;
  const std::int64_t batch = x.shape()[0], length = x.shape()[1];
  if (length % o.bucket != 0)
    fail("attention: the length ", length, " is not a multiple of bucket_size ", o.bucket, "; pad to ",
         (length / o.bucket + 1) * o.bucket);
  const Var q = reshape(to_q(scope, x), {batch, length, o.heads, o.width});
  const Var kv = reshape(to_kv(scope, x), {batch, length, 2, o.heads, o.width});
  const Var y = twin ? twin(*this, scope, q, kv, mask) : heads(scope, q, kv, mask);
  scope.observe("heads", y.value);
  const Var out = to_out(scope, reshape(y, {batch, length, o.heads * o.width}));
  return scope.split(1).dropout(out, o.output_dropout);
}

Var SinkhornSelfAttention::heads(const Scope& scope, const Var& q, const Var& kv, const Tensor& mask) const {
  const AttentionOptions& o = options;
  const Routing routing = sort_net(scope, q, kv, o.bucket, o.local, o.n_top, o.temperature, mask);
  const Scope noise = scope.split(0);
  const auto attend = o.composed ? composed_attention : bucketed_attention;
  return attend(q, kv, routing, scope.leaf(null_keys), scope.leaf(null_values), o.bucket, o.local, mask,
                scope.active(o.dropout), noise.rng);
}

namespace {

// softmax(q k' / sqrt(d)) v within buckets: q (G, N, b, d), k and v (G, N, J, d), allowed (G, N, b, J).
Var attend(const Var& q, const Var& k, const Var& v, const Tensor& allowed, double dropout_rate, const Rng& rng) {
  const Var scores = scale(matmul(q, k, false, true), 1 / std::sqrt(double(q.shape()[3])));
  Var probabilities = softmax(scores, allowed);
  if (dropout_rate > 0) probabilities = dropout(probabilities, dropout_rate, rng);
  return matmul(probabilities, v);
}

// Fills a bool tensor (G, N, b, J) from a rule of (group, bucket, row, column).
template <class Rule>
Tensor allowed_where(Shape shape, Rule rule) {
  Tensor allowed(shape, DType::boolean);
  bool* out = allowed.data<bool>();
  for (std::int64_t g = 0; g < shape[0]; ++g)
    for (std::int64_t u = 0; u < shape[1]; ++u)
      for (std::int64_t i = 0; i < shape[2]; ++i)
        for (std::int64_t j = 0; j < shape[3]; ++j) *out++ = rule(g, u, i, j);
  return allowed;
}

}  // namespace

Var composed_attention(const Var& q, const Var& kv, const Routing& routing, const Var& null_keys,
                       const Var& null_values, std::int64_t bucket, std::int64_t local, const Tensor& mask,
                       double dropout_rate, Rng rng) {
  const Shape s = q.shape();  // (B, T, H, d)
  const std::int64_t batch = s[0], length = s[1], heads = s[2], width = s[3], buckets = length / bucket;
  const std::int64_t sorting = heads - local, unrotated = sorting / 2, n_top = routing.picks.shape()[3];
  auto is_real = [&](std::int64_t sequence, std::int64_t position) {
    return !mask || mask.data<bool>()[sequence * length + position];
  };

  // (B, T, H, d) -> (B, H, T, d)
  auto by_head = [](const Var& x) { return permute(x, {0, 2, 1, 3}); };
  auto part = [&](std::int64_t i) { return by_head(reshape(slice(kv, 2, i, i + 1), s)); };
  const Var q_heads = by_head(q), k_heads = part(0), v_heads = part(1);
  std::vector<Var> outputs;

  if (local > 0) {  // own window and the one before it
    const Shape windows{batch * local, buckets, bucket, width};
    auto group = [&](const Var& x) { return reshape(slice(x, 1, 0, local), windows); };
    auto with_previous = [&](const Var& x) {
      const Var rows = group(x);
      return concat({slice(pad(rows, 1, 1, 0), 1, 0, buckets), rows}, 2);
    };
    const Tensor allowed =
        allowed_where({batch * local, buckets, bucket, 2 * bucket}, [&](auto g, auto u, auto i, auto j) {
          const std::int64_t query = u * bucket + i, key = (u - 1) * bucket + j;
          return key >= 0 && key <= query && is_real(g / local, query) && is_real(g / local, key);
        });
    const Var y =
        attend(group(q_heads), with_previous(k_heads), with_previous(v_heads), allowed, dropout_rate, rng.split(0));
    outputs.push_back(reshape(y, {batch, local, length, width}));
  }
  if (sorting > 0) {
    const std::int64_t groups = batch * sorting;
    auto rotated = [&](const Var& x, std::int64_t shift) {  // the second half of the heads, along time
      return concat({slice(x, 1, 0, unrotated), rotate(slice(x, 1, unrotated, sorting), 2, shift)}, 1);
    };
    auto group = [&](const Var& x) {
      return reshape(rotated(slice(x, 1, local, heads), bucket - 1), {groups, buckets, bucket, width});
    };
    const Var weights = reshape(routing.weights, {groups, buckets, n_top});
    const Tensor picks = routing.picks.reshape({groups, buckets, n_top});
    auto sorted_and_own = [&](const Var& x, const Var& null) {  // n null blocks, chosen blocks, then the own bucket
      const Var rows = group(x);
      const Var nulls = broadcast_to(reshape(null, {1, sorting, 1, 1, width}), {batch, sorting, n_top, bucket, width});
      const Var source = concat({reshape(nulls, {groups, n_top, bucket, width}), rows}, 1);
      return concat({gather_buckets(source, weights, picks), rows}, 2);
    };
    const Shape scores{groups, buckets, bucket, (n_top + 1) * bucket};
    const Tensor allowed = allowed_where(scores, [&](auto g, auto u, auto i, auto j) {
      const bool is_rotated = g % sorting >= unrotated;
      auto slot_is_real = [&](std::int64_t slot) {
        return is_real(g / sorting, (slot + (is_rotated ? bucket - 1 : 0)) % length);
      };
      if (!slot_is_real(u * bucket + i)) return false;
      // Slots 1 .. b-1 of a rotated head's last bucket hold the tokens 0 .. b-2.
      const bool wrapped = is_rotated && u == buckets - 1 && i > 0;
      const std::int64_t own = j - n_top * bucket;
      if (own >= 0) return own <= i && !(wrapped && own == 0) && slot_is_real(u * bucket + own);
      const std::int64_t pick = picks.data<std::int32_t>()[(g * buckets + u) * n_top + j / bucket];
      return pick >= 0 && !wrapped && (pick < n_top || slot_is_real((pick - n_top) * bucket + j % bucket));
    });
    const Var y = attend(group(q_heads), sorted_and_own(k_heads, null_keys), sorted_and_own(v_heads, null_values),
                         allowed, dropout_rate, rng.split(1));
    outputs.push_back(rotated(reshape(y, {batch, sorting, length, width}), -(bucket - 1)));
  }
  return permute(concat(outputs, 1), {0, 2, 1, 3});
}

}  // namespace sinkhorn
