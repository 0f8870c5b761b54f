#include "nn/attention.h"

#include <algorithm>
#include <array>

#include "nn/composed_attention.h"

namespace sinkhorn {
namespace {

std::optional<Linear> key_value_projection(const AttentionOptions& o, Initializer& init) {
  if (o.cross && !o.project_context) return std::nullopt;
  return Linear(o.dim, 2 * o.heads * o.width, false, init);
}

void require_whole(std::int64_t length, std::int64_t bucket, const char* what, const char* option) {
  if (length % bucket != 0)
    fail("attention: the ", what, " ", length, " is not a multiple of ", option, " ", bucket, "; pad to ",
         (length / bucket + 1) * bucket);
}

}  // namespace

SinkhornAttention::SinkhornAttention(const AttentionOptions& options, Initializer& init)
    : options(options),
      to_q(options.dim, options.heads * options.width, false, init),
      to_kv(key_value_projection(options, init)),
      to_out(options.heads * options.width, options.dim, true, init) {
  if (!options.cross) lay_together(std::array{&to_q.weight, &to_kv->weight}, to_q.weight.value.device());
  const std::int64_t sorting = options.heads - options.local;
  if (is_causal()) {
    null_keys = init.normal({sorting, 1, options.width});
    null_values = init.normal({sorting, 1, options.width});
  }
  if (!options.simple_sort_net) return;
  if (is_causal())
    causal_sort_net = CausalSortNet::simple(sorting, options.width, options.max_buckets, options.n_top, init);
  else
    sort_net = SortNet::simple(sorting, options.width, options.max_buckets, init);
}

void SinkhornAttention::check(const AttentionContext& around, std::int64_t batch) const {
  const AttentionOptions& o = options;
  if (!o.cross) return;
  const Shape c = around.context.shape();
  if (!around.context.value) fail("attention: a cross-attention layer needs a context (B, S, ", o.dim, ")");
  if (c.rank() != 3 || c[0] != batch || c[2] != o.dim)
    fail("attention: expected a context (", batch, ", S, ", o.dim, "), got ", c);
  require_whole(c[1], o.key_bucket, "context length", "context_bucket_size");
}

// Of self-attention: (B, T, D) -> queries, keys and values of a group's heads (B, T, 3, H, d), in one product.
Var SinkhornAttention::packed(const Scope& scope, const Var& x, const HeadGroup& group) const {
  return reshape(beside(scope, x, to_q, *to_kv, group, options.width),
                 {x.shape()[0], x.shape()[1], 3, group.share(options.heads), options.width});
}

// (B, T, D) -> (B, T, H, d)
Var SinkhornAttention::queries(const Scope& scope, const Var& x) const {
  return reshape(to_q(scope, x), {x.shape()[0], x.shape()[1], options.heads, options.width});
}

// (B, S, D) -> (B, S, 2, H, d)
Var SinkhornAttention::keys_and_values(const Scope& scope, const Var& source) const {
  const Var kv = to_kv ? (*to_kv)(scope, source) : concat({source, source}, -1);
  return reshape(kv, {source.shape()[0], source.shape()[1], 2, options.heads, options.width});
}

// Attention of a group's heads: q (B, T, H, d), kv (B, S, 2, H, d), or all packed in q and no kv -> (B, T, H, d)
Var SinkhornAttention::heads(const Scope& layer, const Var& q, const Var& kv, const AttentionMasks& masks,
                             const HeadGroup& group) const {
  const AttentionOptions& o = options;
  const AttentionPattern seen = pattern(group);
  // Tags below 3 are those of a layer's own draws.
  const Scope scope = group.is_all() ? layer : layer.split(std::uint32_t(3 + group.index));
  const AttentionDropout dropout{scope.active(o.dropout), scope.split(0).rng};
  const auto attend = o.composed ? composed_attention : bucketed_attention;
  if (seen.causal) {
    const Routing routing =
        causal_sort_net(scope, q, kv, o.bucket, seen.local, o.n_top, o.temperature, masks.queries, o.composed, group);
    const auto null = [&](const Parameter& all) { return group.part(scope.leaf(all, q.value.dtype()), 0, 1); };
    return attend(q, kv, routing, {null(null_keys), null(null_values)}, seen, masks, dropout);
  }
  const SortOptions sort{seen, o.n_top, o.sortcut, o.temperature, o.sinkhorn_iterations, o.causal, o.composed, group};
  if (o.by_top_k || o.causal || o.local == o.heads)
    return attend(q, kv, sort_net.route(scope, q, kv, sort, masks), {}, seen, masks, dropout);
  return blended_attention(q, kv, sort_net.sorting_matrix(scope, q, kv, sort, masks), o.sortcut > 0, seen, masks,
                           dropout);
}

// A group's heads (B, T, H, d) -> (B, T, D); the first group brings the bias.
Var SinkhornAttention::merge(const Scope& scope, const Var& heads, const Residual& residual,
                             const HeadGroup& group) const {
  const Shape s = heads.shape();
  const Var merged = reshape(heads, {s[0], s[1], s[2] * s[3]});
  const auto out = [&](const Residual& onto) {
    if (group.is_all()) return to_out(scope, merged, onto);
    const Var weight = group.part(scope.leaf(to_out.weight), 1, s[3]);
    return linear(merged, weight, group.index == 0 ? scope.leaf(to_out.bias) : Var(), {}, onto);
  };
  if (scope.active(options.output_dropout) == 0) return out(residual);
  return add_to(residual, scope.split(1).dropout(out({}), options.output_dropout));
}

Var SinkhornAttention::operator()(const Scope& scope, const Var& x, const AttentionContext& around,
                                  const HeadGroup& group, const Residual& residual) const {
  const AttentionOptions& o = options;
  require_whole(x.shape()[1], o.bucket, "length", "bucket_size");
  if (!o.cross) require_whole(x.shape()[1], o.key_bucket, "length", "kv_bucket_size");
  check(around, x.shape()[0]);
  const AttentionMasks masks{around.mask, o.cross ? around.context_mask : around.mask};
  Var q = o.cross ? queries(scope, x) : packed(scope, x, group), kv;
  if (o.cross) kv = keys_and_values(scope, cast(around.context, x.value.dtype()));
  const auto by_twin = [&] {
    const Shape s = q.shape();
    if (o.cross) return twin(*this, scope, q, kv, masks);
    return twin(*this, scope, reshape(slice(q, 2, 0, 1), {s[0], s[1], s[3], s[4]}), slice(q, 2, 1, 3), masks);
  };
  const Var y = twin ? by_twin() : heads(scope, q, kv, masks, group);
  scope.observe("heads", y.value);
  return merge(scope, y, residual, group);
}

Var SinkhornAttention::operator()(const Scope& scope, const Var& x, const LayerCache& cache, const NewTokens& tokens,
                                  const Residual& residual) const {
  if (const auto* past = std::get_if<AttentionCache>(&cache)) {
    const Var qkv = packed(scope, x);
    past->remember(tokens, qkv.value, causal_sort_net.linear.value);
    if (x.shape()[1] > 1) return merge(scope, heads(scope, qkv, {}, {}), residual);
    return merge(scope, past->attend(tokens, qkv.value, null_keys.value, null_values.value), residual);
  }
  const Var q = queries(scope, x);
  const Shape s = q.shape();
  const Tensor newest = q.value.reshape({s[0] * s[1], s[2], s[3]});
  const auto& context = std::get<CrossAttentionCache>(cache);
  context.remember(tokens, q.value);
  if (s[1] > 1) return merge(scope, heads(scope, q, context.kv(tokens), {{}, context.mask(tokens)}), residual);
  return merge(scope, context.attend(tokens, newest).reshape(s), residual);
}

LayerCache SinkhornAttention::cache(std::int64_t rows, std::int64_t capacity, const AttentionContext& around) const {
  const AttentionOptions& o = options;
  if (!o.cross)
    return AttentionCache({rows, capacity, o.heads, o.local, o.width, o.bucket, o.n_top}, o.temperature,
                          to_q.weight.value.dtype(), to_q.weight.value.device());
  check(around, rows);
  const std::int64_t length = around.context.shape()[1];
  const bool shared = o.sortcut > 0;
  const CrossCacheShape shape{rows,
                              length,
                              o.heads,
                              o.width,
                              o.bucket,
                              o.key_bucket,
                              std::min(shared ? o.sortcut : o.n_top, length / o.key_bucket),
                              shared};
  return CrossAttentionCache(shape, o.temperature, keys_and_values(Scope{}, around.context.value).value,
                             around.context_mask);
}

}  // namespace sinkhorn
