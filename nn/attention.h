// Sinkhorn attention: local heads beside heads that attend to the buckets chosen by a sort net.
#pragma once
#include <functional>
#include <optional>
#include <variant>

#include "nn/attention_cache.h"
#include "nn/cross_attention_cache.h"
#include "nn/layers.h"
#include "nn/sort_net.h"

namespace sinkhorn {

struct AttentionOptions {
  std::int64_t dim, heads, width;  // D, H, d
  std::int64_t bucket = 1, key_bucket = 1, local = 0, n_top = 1, sortcut = 0, max_buckets = 0;
  double temperature = 1, dropout = 0, output_dropout = 0;
  std::int64_t sinkhorn_iterations = 1;
  bool causal = true;
  bool cross = false;           // keys and values come from a context, which may have another length
  bool project_context = true;  // off: the context itself is split into heads, as keys and as values
  bool by_top_k = true;         // off: by Gumbel-Sinkhorn; causal models are always by top-k
  bool simple_sort_net = false;
  bool composed = false;    // from small ops, instead of the fused op; the numbers agree
  std::int64_t groups = 1;  // of heads, for those who compute them one after the other; see SinkhornAttention::groups()
};

/// What an attention layer reads beside its input: masks (B, T) and (B, S), true = real, missing: all real; and for
/// cross-attention the context (B, S, D).
struct AttentionContext {
  AttentionContext(Tensor mask = {}, Var context = {}, Tensor context_mask = {})
      : mask(std::move(mask)), context(std::move(context)), context_mask(std::move(context_mask)) {}
  Tensor mask;
  Var context;
  Tensor context_mask;
};

/// What a layer of a causal model remembers of sequences that grow.
using LayerCache = std::variant<AttentionCache, CrossAttentionCache>;

struct SinkhornAttention;
/// Computes the heads' outputs (B, T, H, d) of a layer in its place, from q (B, T, H, d) and kv (B, S, 2, H, d): for
/// lessons and for checks of checks.
using AttentionTwin = std::function<Var(const SinkhornAttention& layer, const Scope& scope, const Var& q, const Var& kv,
                                        const AttentionMasks& masks)>;

/// Self-attention or cross-attention of one layer (behaviour 1.2, 2.6, 2.9, 2.10; rules 4 to 9): (B, T, D) -> (B, T,
/// D), T a multiple of the bucket size, S of the key bucket size. Added to the residual, if there is one.
struct SinkhornAttention {
  SinkhornAttention(const AttentionOptions& options, Initializer& init);

  Var operator()(const Scope& scope, const Var& x, const AttentionContext& around = {},
                 const Residual& residual = {}) const {
    return (*this)(scope, x, around, HeadGroup{}, residual);
  }

  /// A group's share of that: the shares of all groups add up to it, to rounding. In training a group draws dropout of
  /// probabilities and Gumbel noise from a stream of its own, while dropout of the output falls alike on all groups.
  Var operator()(const Scope& scope, const Var& x, const AttentionContext& around, const HeadGroup& group,
                 const Residual& residual = {}) const;
  /// In how many groups to compute the heads of a self-attention: in one where a twin stands for them, somebody looks
  /// at them, or noise is given for all of them.
  std::int64_t groups(const Scope& scope) const {
    return twin || scope.observer || scope.injected ? 1 : options.groups;
  }

  /// The same in inference, for new tokens of cached sequences, which it remembers: x (R, T, D) -> (R, T, D). With T =
  /// 1 they continue sequences of any length, and only what they see is read. With more, a multiple of the bucket size,
  /// they must begin at position 0; that is one full attention.
  Var operator()(const Scope& scope, const Var& x, const LayerCache& cache, const NewTokens& tokens,
                 const Residual& residual = {}) const;
  /// For `rows` sequences of up to `capacity` tokens; a cross-attention layer keeps the context (rows, S, D) and its
  /// mask.
  LayerCache cache(std::int64_t rows, std::int64_t capacity, const AttentionContext& around) const;

  template <class See>
  void visit(See&& see) {
    see("to_q", to_q);
    if (to_kv) see("to_kv", *to_kv);
    see("to_out", to_out);
    see("sinkhorn_attention.null_keys", null_keys);
    see("sinkhorn_attention.null_values", null_values);
    see("sinkhorn_attention", causal_sort_net);
    see("sinkhorn_attention", sort_net);
  }
  /// Causal self-attention; cross-attention never is, though it routes without the future in a causal model.
  bool is_causal() const { return options.causal && !options.cross; }
  AttentionPattern pattern(const HeadGroup& group = {}) const {
    return {options.bucket, options.key_bucket, group.share(options.local), is_causal(), !options.cross};
  }

  AttentionOptions options;
  Linear to_q;
  std::optional<Linear> to_kv;
  Linear to_out;
  Parameter null_keys, null_values;  // (h, 1, d), if causal
  CausalSortNet causal_sort_net;
  SortNet sort_net;
  AttentionTwin twin = {};

 private:
  Var packed(const Scope& scope, const Var& x, const HeadGroup& group = {}) const;
  Var queries(const Scope& scope, const Var& x) const;
  Var keys_and_values(const Scope& scope, const Var& source) const;
  Var heads(const Scope& scope, const Var& q, const Var& kv, const AttentionMasks& masks,
            const HeadGroup& group = {}) const;
  Var merge(const Scope& scope, const Var& heads, const Residual& residual, const HeadGroup& group = {}) const;
  void check(const AttentionContext& around, std::int64_t batch) const;
};

}  // namespace sinkhorn
