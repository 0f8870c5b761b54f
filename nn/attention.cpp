#include "nn/attention.h"

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

// Attention of all heads: q (B, T, H, d), kv (B, S, 2, H, d) -> (B, T, H, d)
Var SinkhornAttention::heads(const Scope& scope, const Var& q, const Var& kv, const AttentionMasks& masks) const {
  const AttentionOptions& o = options;
  const AttentionPattern seen = pattern();
  const AttentionDropout dropout{scope.active(o.dropout), scope.split(0).rng};
  const auto attend = o.composed ? composed_attention : bucketed_attention;
  if (seen.causal) {
    const Routing routing = causal_sort_net(scope, q, kv, o.bucket, o.local, o.n_top, o.temperature, masks.queries);
    return attend(q, kv, routing, {scope.leaf(null_keys), scope.leaf(null_values)}, seen, masks, dropout);
  }
  const SortOptions sort{seen, o.n_top, o.sortcut, o.temperature, o.sinkhorn_iterations, o.causal};
  if (o.by_top_k || o.causal || o.local == o.heads)
    return attend(q, kv, sort_net.route(scope, q, kv, sort, masks), {}, seen, masks, dropout);
  return blended_attention(q, kv, sort_net.sorting_matrix(scope, q, kv, sort, masks), o.sortcut > 0, seen, masks,
                           dropout);
}

Var SinkhornAttention::operator()(const Scope& scope, const Var& x, const AttentionContext& around) const {
  const AttentionOptions& o = options;
  const std::int64_t batch = x.shape()[0], length = x.shape()[1];
  require_whole(length, o.bucket, "length", "bucket_size");
  if (o.cross) {
    const Shape c = around.context.shape();
    if (!around.context.value) fail("attention: a cross-attention layer needs a context (B, S, ", o.dim, ")");
    if (c.rank() != 3 || c[0] != batch || c[2] != o.dim)
      fail("attention: expected a context (", batch, ", S, ", o.dim, "), got ", c);
    require_whole(c[1], o.key_bucket, "context length", "context_bucket_size");
  } else {
    require_whole(length, o.key_bucket, "length", "kv_bucket_size");
  }
  const Var& source = o.cross ? around.context : x;
  const AttentionMasks masks{around.mask, o.cross ? around.context_mask : around.mask};
  const Var q = reshape(to_q(scope, x), {batch, length, o.heads, o.width});
  const Var kv = to_kv ? (*to_kv)(scope, source) : concat({source, source}, -1);
  const Var mixed = heads(scope, q, reshape(kv, {batch, -1, 2, o.heads, o.width}), masks);
  const Var out = to_out(scope, reshape(mixed, {batch, length, o.heads * o.width}));
  return scope.split(1).dropout(out, o.output_dropout);
}

}  // namespace sinkhorn
