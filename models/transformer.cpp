#include "models/transformer.h"

#include <memory>

namespace sinkhorn {

namespace {

AttentionOptions attention_options(const ModelConfig& c, bool cross) {
  return {.dim = c.dim,
          .heads = c.heads,
          .width = c.head_width(),
          .bucket = c.bucket_size,
          .key_bucket = cross ? c.context_bucket() : c.key_bucket(),
          .local = cross ? 0 : c.n_local_attn_heads,
          .n_top = c.n_top_buckets,
          .sortcut = cross ? c.context_n_sortcut : c.n_sortcut,
          .max_buckets = c.max_buckets(),
          .temperature = c.temperature,
          .dropout = c.attn_dropout,
          .output_dropout = c.attn_layer_dropout,
          .sinkhorn_iterations = c.sinkhorn_iter,
          .causal = c.causal,
          .cross = cross,
          .project_context = c.context_kv_projection,
          .by_top_k = c.non_permutative,
          .simple_sort_net = c.use_simple_sort_net && !cross,
          .groups = cross ? 1 : c.head_groups};
}

ProductKeyOptions memory_options(const ModelConfig& c) {
  return {c.dim, c.pkm_heads, c.pkm_num_keys, c.pkm_dim_head, c.pkm_topk};
}

}  // namespace

void require_mask(const Tensor& mask, const Shape& masked, const char* where) {
  if (!mask) return;
  const Shape expected{masked[0], masked[1]};
  if (mask.dtype() != DType::boolean || mask.shape() != expected)
    fail(where, ": expected a mask of booleans ", expected, ", got ", mask.dtype(), " ", mask.shape());
}

SinkhornTransformer::SinkhornTransformer(const ModelConfig& config, Initializer& init) : config_(config) {
  validate(config);
  if (config.embedding_width() != config.dim) project_in_.emplace(config.embedding_width(), config.dim, true, init);
  add_blocks(init);
  if (project_in_ && !config.return_embeddings) project_out_.emplace(config.dim, config.embedding_width(), true, init);
}

void SinkhornTransformer::add_blocks(Initializer& init) {
  const ModelConfig& c = config_;
  struct Shared {
    std::shared_ptr<SinkhornAttention> attention;
    std::shared_ptr<FeedForwardOrMemory> feed_forward;
  };
  Shared shared[2];  // of self blocks and of cross blocks: with tied weights made once, else for every block
  for (std::int64_t layer = 0; layer < c.depth; ++layer) {
    for (const bool cross : {false, true}) {
      if (cross && !c.receives_context) continue;
      auto& [attention, feed_forward] = shared[cross];
      const bool owns = !attention || !c.weight_tie;
      if (owns) attention = std::make_shared<SinkhornAttention>(attention_options(c, cross), init);
      // Memories are never tied, so the first feed-forward may stand in a later layer than the first.
      const bool is_memory = c.has_pkm(layer) && !cross,
                 owns_feed_forward = is_memory || !feed_forward || !c.weight_tie;
      std::shared_ptr<FeedForwardOrMemory> second = feed_forward;
      if (is_memory)
        second = std::make_shared<FeedForwardOrMemory>(FeedForwardOrMemory{ProductKeyMemory(memory_options(c), init)});
      else if (owns_feed_forward)
        second = feed_forward = std::make_shared<FeedForwardOrMemory>(
            FeedForwardOrMemory{FeedForward(c.dim, c.ff_glu, c.ff_dropout, cross ? 0 : c.ff_chunks, init)});
      blocks_.push_back(
          {{attention, owns, c.dim, c.use_rezero, init}, {second, owns_feed_forward, c.dim, c.use_rezero, init}});
    }
  }
}

void SinkhornTransformer::use_composed_attention(bool composed) {
  for (TransformerBlock& block : blocks_) block.attention.fn->options.composed = composed;
}

void SinkhornTransformer::use_attention_twin(const AttentionTwin& twin) {
  for (TransformerBlock& block : blocks_)
    if (!block.attention.fn->options.cross) block.attention.fn->twin = twin;
}

// Layer dropout skips whole blocks in training; at least the first stays (behaviour 1.1).
std::vector<Switch> SinkhornTransformer::layer_switches(const Scope& scope) const {
  const double rate = scope.active(config_.layer_dropout);
  if (rate == 0) return std::vector<Switch>(blocks_.size());
  return draw_switches(scope.rng.split(0), std::int64_t(blocks_.size()), rate);
}

// For a stack that does without one of its layers on the host's word alone, which a graph would keep to for ever.
static bool is_on(const Switch& runs) {
  if (runs.word) Graph::require_not_recording("layer_dropout");
  return runs.on;
}

Var SinkhornTransformer::run_reversible(const Scope& scope, const Var& x, const AttentionContext& around) const {
  std::vector<ReversibleBlock> chain;
  const std::vector<Switch> runs = layer_switches(scope);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    if (!runs[i].on && !runs[i].word) continue;
    TransformerBlock& block = blocks_[i];
    // The scope of a branch, fixed but for its tape and its choices: equal streams in forward and recomputation. The
    // outer tape keeps the chain, so the chain must not keep that tape.
    Scope inner = scope.split(std::uint32_t(i + 1));
    inner.tape = Tape();
    auto branch_scope = [inner](std::uint32_t tag, const Tape& tape, Choices& choices) {
      Scope s = inner.split(tag);
      s.tape = tape;
      s.choices = &choices;
      return s;
    };
    std::vector<Branch> f;
    const std::int64_t groups = block.attention.fn->groups(scope);
    for (HeadGroup group{0, groups}; group.index < groups; ++group.index) {
      auto heads = [&block, branch_scope, group, mask = around.mask, context_mask = around.context_mask](
                       const Tape& tape, const Var& from, const Var& context, Choices& choices,
                       const Residual& residual) {
        return block.attention(branch_scope(0, tape, choices), residual, from,
                               AttentionContext{mask, context, context_mask}, group);
      };
      f.push_back({heads, block.attention.reached()});
    }
    auto g = [&block, branch_scope](const Tape& tape, const Var& from, const Var&, Choices& choices,
                                    const Residual& residual) {
      return block.feed_forward(branch_scope(1, tape, choices), residual, from);
    };
    const std::int64_t at_once =
        scope.observer ? 0 : block.feed_forward.fn->tokens_at_once(scope, x.shape()[0] * x.shape()[1]);
    chain.push_back({std::move(f), {{g, block.feed_forward.reached(), at_once}}, runs[i]});
  }
  if (!keep_activations_) return reversible_chain(scope.tape, x, around.context, std::move(chain));
  Var x1 = x, x2 = x;
  for (const ReversibleBlock& block : chain) {
    if (!is_on(block.runs)) continue;
    const auto run = [&](const std::vector<Branch>& branches, const Var& from, const Var& context, Var onto) {
      for (const Branch& branch : branches) {
        Choices choices;
        onto = branch.run(scope.tape, from, context, choices, {onto});
      }
      return onto;
    };
    x1 = run(block.f, x2, around.context, x1);
    x2 = run(block.g, x1, {}, x2);
  }
  return add(x1, x2);
}

void SinkhornTransformer::check(const Shape& s, const AttentionContext& around) const {
  if (s.rank() != 3 || s[2] != config_.embedding_width())
    fail("transformer: expected (B, T, ", config_.embedding_width(), "), got ", s);
  if (const auto length = config_.fixed_length(); length && s[1] != *length)
    fail("transformer: the simple sort net of a model that is not causal takes sequences of ", *length,
         " (max_seq_len) alone, got ", s[1], "; pad to it");
  require_mask(around.mask, s, "transformer");
  const Shape c = around.context.shape();
  if (config_.receives_context != bool(around.context.value))
    fail(config_.receives_context ? "transformer: receives_context is on, but no context is given"
                                  : "transformer: a context is given, but receives_context is off");
  if (around.context.value && (c.rank() != 3 || c[0] != s[0] || c[2] != config_.dim))
    fail("transformer: expected a context (", s[0], ", S, ", config_.dim, "), got ", c);
  if (around.context_mask && !around.context.value) fail("transformer: a context mask is given, but no context");
  if (around.context.value) require_mask(around.context_mask, c, "transformer, context");
}

Var SinkhornTransformer::operator()(const Scope& scope, const Var& input, const AttentionContext& around) const {
  check(input.shape(), around);
  const auto project = [&](const Linear& linear, const Var& from) {
    return cast(linear(scope, scope.rounded(from)), from.value.dtype());
  };
  Var x = project_in_ ? project(*project_in_, input) : input;
  if (config_.reversible) {
    x = run_reversible(scope, x, around);
  } else {
    const std::vector<Switch> runs = layer_switches(scope);
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      if (!is_on(runs[i])) continue;
      const Scope inner = scope.split(std::uint32_t(i + 1));
      x = blocks_[i].attention(inner.split(0), {x}, x, around);
      x = blocks_[i].feed_forward(inner.split(1), {x}, x);
    }
  }
  return project_out_ ? project(*project_out_, x) : x;
}

Var SinkhornTransformer::operator()(const Var& input, const StackCache& cache, const NewTokens& tokens) const {
  const Scope scope;
  Var x1 = project_in_ ? (*project_in_)(scope, input) : input, x2 = x1;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    x1 = blocks_[i].attention(scope, {x1}, x2, cache[i], tokens);
    if (!config_.reversible) x2 = x1;
    x2 = blocks_[i].feed_forward(scope, {x2}, x1);
    if (!config_.reversible) x1 = x2;
  }
  const Var x = config_.reversible ? add(x1, x2) : x1;
  return project_out_ ? (*project_out_)(scope, x) : x;
}

StackCache SinkhornTransformer::cache(std::int64_t rows, std::int64_t capacity, const AttentionContext& around) const {
  if (around.mask) fail("transformer: a cache knows its rows by their lengths; leave the mask out");
  check({rows, capacity, config_.embedding_width()}, around);
  StackCache cache;
  for (const TransformerBlock& block : blocks_) cache.push_back(block.attention.fn->cache(rows, capacity, around));
  return cache;
}

}  // namespace sinkhorn
