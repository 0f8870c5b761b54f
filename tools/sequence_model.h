// What a run trains: a causal language model, or an encoder with a causal decoder; and the batches that both read.
#pragma once
#include <optional>

#include "models/encoder_decoder.h"

namespace sinkhorn {

/// Token ids i32 (B, T), what follows each of them, and as bool (B, T) which positions count (else all), and which hold
/// a token and no padding (else all). An encoder reads `source` (B, S) first.
struct Batch {
  Tensor inputs, targets, counted = {}, mask = {};
  MaskedIds source = {};

  Batch to(Device device) const;
};

/// The same options for both: the encoder sees all of its source and returns embeddings, which the decoder receives.
/// SortCut (n_sortcut) is the encoder's alone where the decoder is causal, which would see the future by it.
EncoderDecoderConfig encoder_and_decoder(const ModelConfig& config);

/// One type for both, so that optimizer, checkpoints and scores need not know which.
class SequenceModel {
 public:
  SequenceModel(const ModelConfig& config, bool encoder_decoder, const Rng& rng = Rng(0), EmbeddingScale scale = {});

  /// Logits (B, T, V) of what follows each input, for any T that the model reaches. The batch may lie on any device.
  Var operator()(const Scope& scope, const Batch& batch) const;
  /// Mean cross-entropy of the batch's targets in nats, over the positions that count.
  Var loss(const Scope& scope, const Batch& batch) const;

  bool has_encoder() const { return pair_.has_value(); }
  /// Where its parameters are, and its logits.
  Device device() const { return pair_ ? pair_->decoder().device() : language_model_->device(); }
  /// Each throws Error if the model is the other one.
  const SinkhornTransformerLM& language_model() const;
  const EncoderDecoder& encoder_decoder() const;
  SinkhornTransformerLM& language_model() {
    return const_cast<SinkhornTransformerLM&>(std::as_const(*this).language_model());
  }
  EncoderDecoder& encoder_decoder() { return const_cast<EncoderDecoder&>(std::as_const(*this).encoder_decoder()); }

  /// Names are those of the model inside.
  template <class See>
  void visit(See&& see) {
    if (language_model_) language_model_->visit(see);
    if (pair_) pair_->visit(see);
  }

 private:
  std::optional<SinkhornTransformerLM> language_model_;  // one of the two
  std::optional<EncoderDecoder> pair_;
};

/// At least so many parameters, before anything is allocated.
double least_parameters(const ModelConfig& config, bool encoder_decoder);

}  // namespace sinkhorn
