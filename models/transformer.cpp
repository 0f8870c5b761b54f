#include "models/transformer.h"

namespace sinkhorn {

void require_supported(const ModelConfig& config) {
  auto refuse = [](bool asked, const char* what) {
    if (asked) fail<UsageError>(what, " is not supported by this version; it has the causal model");
  };
  refuse(!config.causal, "causal = false");
  refuse(config.receives_context, "receives_context");
  refuse(!config.pkm_layers.empty(), "pkm_layers");
}

SinkhornTransformer::SinkhornTransformer(const ModelConfig& config, Initializer& init) : config_(config) {
  validate(config);
  require_supported(config);
  const AttentionOptions attention{config.dim,
                                   config.heads,
                                   config.head_width(),
                                   config.bucket_size,
                                   config.n_local_attn_heads,
                                   config.n_top_buckets,
                                   config.max_buckets(),
                                   config.temperature,
                                   config.attn_dropout,
                                   config.attn_layer_dropout,
                                   config.use_simple_sort_net};
  if (config.embedding_width() != config.dim) project_in_.emplace(config.embedding_width(), config.dim, true, init);
  std::shared_ptr<SinkhornSelfAttention> attend;
  std::shared_ptr<FeedForward> feed_forward;
  for (std::int64_t layer = 0; layer < config.depth; ++layer) {
    const bool owns = layer == 0 || !config.weight_tie;
    if (owns) {
      attend = std::make_shared<SinkhornSelfAttention>(attention, init);
      feed_forward =
          std::make_shared<FeedForward>(config.dim, config.ff_glu, config.ff_dropout, config.ff_chunks, init);
    }
    blocks_.push_back({{attend, owns, config.dim, config.use_rezero, init},
                       {feed_forward, owns, config.dim, config.use_rezero, init}});
  }
  if (project_in_ && !config.return_embeddings) project_out_.emplace(config.dim, config.embedding_width(), true, init);
}

void SinkhornTransformer::use_composed_attention(bool composed) {
  for (TransformerBlock& block : blocks_) block.attention.fn->options.composed = composed;
}

void SinkhornTransformer::use_attention_twin(const AttentionTwin& twin) {
  for (TransformerBlock& block : blocks_) block.attention.fn->twin = twin;
}

// Layer dropout skips whole blocks in training; at least the first stays (behaviour 1.1).
std::vector<std::size_t> SinkhornTransformer::active_blocks(const Scope& scope) const {
  const RandomBits bits = scope.rng.split(0).bits();
  const double rate = scope.active(config_.layer_dropout);
  std::vector<std::size_t> active;
  for (std::size_t i = 0; i < blocks_.size(); ++i)
    if (rate == 0 || bits.uniform<double>(i) >= rate) active.push_back(i);
  if (active.empty() && !blocks_.empty()) active.push_back(0);
  return active;
}

Var SinkhornTransformer::run_reversible(const Scope& scope, const Var& x, const Tensor& mask) const {
  std::vector<ReversibleBlock> chain;
  for (std::size_t i : active_blocks(scope)) {
    TransformerBlock& block = blocks_[i];
    // The scope of a branch, fixed but for its tape and its choices: equal streams in forward and recomputation.
    auto branch_scope = [inner = scope.split(std::uint32_t(i + 1))](std::uint32_t tag, const Tape& tape,
                                                                    Choices& choices) {
      Scope s = inner.split(tag);
      s.tape = tape;
      s.choices = &choices;
      return s;
    };
    auto f = [&block, branch_scope, mask](const Tape& tape, const Var& from, const Var&, Choices& choices) {
      return block.attention(branch_scope(0, tape, choices), from, mask);
    };
    auto g = [&block, branch_scope](const Tape& tape, const Var& from, const Var&, Choices& choices) {
      return block.feed_forward(branch_scope(1, tape, choices), from);
    };
    chain.push_back({{f, block.attention.reached()}, {g, block.feed_forward.reached()}});
  }
  if (!keep_activations_) return reversible_chain(scope.tape, x, {}, std::move(chain));
  Var x1 = x, x2 = x;
  for (const ReversibleBlock& block : chain) {
    Choices f, g;
    x1 = add(x1, block.f.run(scope.tape, x2, {}, f));
    x2 = add(x2, block.g.run(scope.tape, x1, {}, g));
  }
  return add(x1, x2);
}

Var SinkhornTransformer::operator()(const Scope& scope, const Var& input, const Tensor& mask) const {
  const Shape s = input.shape();
  if (s.rank() != 3 || s[2] != config_.embedding_width())
    fail("transformer: expected (B, T, ", config_.embedding_width(), "), got ", s);
  Var x = project_in_ ? (*project_in_)(scope, input) : input;
  if (config_.reversible) {
    x = run_reversible(scope, x, mask);
  } else {
    for (std::size_t i : active_blocks(scope)) {
      const Scope inner = scope.split(std::uint32_t(i + 1));
      x = add(x, blocks_[i].attention(inner.split(0), x, mask));
      x = add(x, blocks_[i].feed_forward(inner.split(1), x));
    }
  }
  return project_out_ ? (*project_out_)(scope, x) : x;
}

}  // namespace sinkhorn
