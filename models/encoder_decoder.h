// An encoder and a decoder that attends to what the encoder makes of a source: sequence to sequence.
#pragma once
#include "models/generate.h"
#include "models/language_model.h"

namespace sinkhorn {

/// Both are language models in shape: the encoder returns embeddings, the decoder receives them as its context.
struct EncoderDecoderConfig {
  ModelConfig encoder, decoder;
};

/// Throws UsageError, with the reason, for configs that are wrong alone or do not fit together.
void validate(const EncoderDecoderConfig& config);

/// Source ids (B, S) and target ids (B, T) of any lengths, which may differ; padding goes to the right.
class EncoderDecoder {
 public:
  explicit EncoderDecoder(const EncoderDecoderConfig& config, Rng rng = Rng(0), DType dtype = DType::f32,
                          EmbeddingScale scale = {});

  /// What the encoder makes of the source: (B, S, D). Padding is added and cut off again.
  Var encode(const Scope& scope, const MaskedIds& source) const;
  /// Logits (B, T, V) of the decoder on target ids (B, T), with encode()'s result and the source's mask as context.
  Var decode(const Scope& scope, const MaskedIds& target, const Var& encoded, const Tensor& source_mask) const;
  Var operator()(const Scope& scope, const MaskedIds& source, const MaskedIds& target) const;

  /// Mean cross-entropy of what follows each of the inputs (B, T), given the source: next_token_loss of the decoder.
  CrossEntropy loss(const Scope& scope, const MaskedIds& source, const MaskedIds& inputs, const Tensor& targets,
                    const Tensor& counted) const;
  /// Next-token loss of the target (B, T), T >= 2, given the source: inputs target[:, :-1], targets target[:, 1:]
  /// (behaviour, rule 15). The first target token is the start of every answer.
  LanguageModelLoss loss(const Scope& scope, const MaskedIds& source, const MaskedIds& target,
                         std::optional<std::int32_t> ignore_index = {}) const;

  /// "encoder." and "decoder." before the names of the published package.
  template <class See>
  void visit(See&& see) {
    see("encoder", encoder_);
    see("decoder", decoder_);
  }
  SinkhornTransformerLM& encoder() { return encoder_; }
  SinkhornTransformerLM& decoder() { return decoder_; }
  const SinkhornTransformerLM& encoder() const { return encoder_; }
  const SinkhornTransformerLM& decoder() const { return decoder_; }

 private:
  SinkhornTransformerLM encoder_, decoder_;
};

/// Continues `starts`, one for every source, by up to `count` tokens; as generate() of a language model. The decoder
/// must be causal.
std::vector<std::vector<std::int32_t>> generate(const EncoderDecoder& model,
                                                const std::vector<std::vector<std::int32_t>>& sources,
                                                const std::vector<std::vector<std::int32_t>>& starts,
                                                std::int64_t count, const Sampling& sampling, const Rng& rng,
                                                const OnToken& on_token = {});

}  // namespace sinkhorn
