// The Sinkhorn transformer: a stack of attention and feed-forward blocks over vectors, sequential or reversible.
#pragma once
#include <optional>
#include <variant>
#include <vector>

#include "models/config.h"
#include "nn/attention.h"
#include "nn/product_key_memory.h"
#include "nn/sublayer.h"

namespace sinkhorn {

/// What follows attention: a feed-forward, or the memory that takes its place. Both work on each token for itself.
struct FeedForwardOrMemory {
  Var operator()(const Scope& scope, const Var& x, const Residual& residual) const {
    if (const auto* memory = std::get_if<ProductKeyMemory>(&either)) return add_to(residual, (*memory)(scope, x));
    return std::get<FeedForward>(either)(scope, x, residual);
  }
  /// For the reversible chain: how many of `tokens` to go back through at once; 0: all of them.
  std::int64_t tokens_at_once(const Scope& scope, std::int64_t tokens) const {
    const auto* feed_forward = std::get_if<FeedForward>(&either);
    return feed_forward ? FeedForward::tokens_at_once(tokens, feed_forward->chunks, scope.active(feed_forward->dropout))
                        : 0;
  }
  template <class See>
  void visit(See&& see) {
    std::visit([&](auto& module) { module.visit(see); }, either);
  }

  std::variant<FeedForward, ProductKeyMemory> either;
};

/// Throws Error, beginning with `where`, unless a mask, if there is one, is bool and has the first two extents (B, T)
/// of what it belongs to.
void require_mask(const Tensor& mask, const Shape& masked, const char* where);

/// Attention, then feed-forward or product-key memory. With a context every layer has two: self-attention, then
/// cross-attention.
struct TransformerBlock {
  Sublayer<SinkhornAttention> attention;
  Sublayer<FeedForwardOrMemory> feed_forward;
};

/// What the stack remembers of sequences that grow: one cache a block.
using StackCache = std::vector<LayerCache>;

/// (B, T, D) -> (B, T, D). T must be a multiple of the bucket sizes (fixed_length() where the config has one). Masks
/// are bool (B, T) and (B, S), true = real, none = all real; the context is (B, S, D). With `emb_dim` other than `dim`
/// the stack stands between two linear layers and takes (B, T, E). Sequential: x + f(x), then x + g(x), block by block.
/// Reversible: the same blocks on a pair (x, x); returns its sum.
class SinkhornTransformer {
 public:
  SinkhornTransformer(const ModelConfig& config, Initializer& init);
  SinkhornTransformer(const SinkhornTransformer&) = delete;

  Var operator()(const Scope& scope, const Var& x, const AttentionContext& around = {}) const;

  /// Inference on new tokens of cached sequences, (R, T, E): T = 1, or sequences from their beginning (nn/attention.h).
  Var operator()(const Var& x, const StackCache& cache, const NewTokens& tokens) const;
  StackCache cache(std::int64_t rows, std::int64_t capacity, const AttentionContext& around) const;

  /// Names are the published package's.
  template <class See>
  void visit(See&& see) {
    const std::string stack = project_in_ ? "fn." : "";
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const std::string block = stack + (config_.reversible ? "layers.blocks." : "layers.layers.") + std::to_string(i);
      see(block + (config_.reversible ? ".f.net" : ".0"), blocks_[i].attention);
      see(block + (config_.reversible ? ".g.net" : ".1"), blocks_[i].feed_forward);
    }
    if (project_in_) see("project_in", *project_in_);
    if (project_out_) see("project_out", *project_out_);
  }

  const ModelConfig& config() const { return config_; }
  /// Computes attention from small ops instead of the fused one, for lessons and comparisons.
  void use_composed_attention(bool composed);
  /// Puts another computation in the place of every layer's attention; an empty one restores it.
  void use_attention_twin(const AttentionTwin& twin);
  /// Runs a reversible stack's equations on the plain tape, for comparisons: same numbers, all activations kept.
  void keep_activations(bool keep) { keep_activations_ = keep; }

 private:
  void add_blocks(Initializer& init);
  void check(const Shape& input, const AttentionContext& around) const;
  std::vector<Switch> layer_switches(const Scope& scope) const;
  Var run_reversible(const Scope& scope, const Var& x, const AttentionContext& around) const;

  ModelConfig config_;
  mutable std::vector<TransformerBlock> blocks_;
  std::optional<Linear> project_in_, project_out_;
  bool keep_activations_ = false;
};

}  // namespace sinkhorn
