#include "tools/sequence_model.h"

namespace sinkhorn {

EncoderDecoderConfig encoder_and_decoder(const ModelConfig& config) {
  EncoderDecoderConfig pair{config, config};
  pair.encoder.causal = false;
  pair.encoder.return_embeddings = true;
  pair.decoder.receives_context = true;
  if (config.causal) pair.decoder.n_sortcut = 0;
  return pair;
}

Batch Batch::to(Device device) const {
  const auto there = [device](const Tensor& x) { return x ? x.to(device) : x; };
  return {there(inputs), there(targets), there(counted), there(mask), {there(source.ids), there(source.mask)}};
}

SequenceModel::SequenceModel(const ModelConfig& config, bool encoder_decoder, const Rng& rng, EmbeddingScale scale) {
  if (encoder_decoder) {
    pair_.emplace(encoder_and_decoder(config), rng, DType::f32, scale);
  } else {
    language_model_.emplace(config, rng, DType::f32, scale);
  }
}

Var SequenceModel::operator()(const Scope& scope, const Batch& batch) const {
  const Batch there = batch.to(device());
  if (pair_) return (*pair_)(scope, there.source, {there.inputs, there.mask});
  return padded(*language_model_, scope, there.inputs, there.mask);
}

Var SequenceModel::loss(const Scope& scope, const Batch& batch) const {
  const Batch there = batch.to(device());
  if (pair_) return pair_->loss(scope, there.source, {there.inputs, there.mask}, there.targets, there.counted).loss;
  return next_token_loss(*language_model_, scope, there.inputs, there.targets, there.counted, there.mask).loss;
}

const SinkhornTransformerLM& SequenceModel::language_model() const {
  if (!language_model_) fail("sequence model: an encoder-decoder is no language model");
  return *language_model_;
}

const EncoderDecoder& SequenceModel::encoder_decoder() const {
  if (!pair_) fail("sequence model: a language model has no encoder");
  return *pair_;
}

double least_parameters(const ModelConfig& config, bool encoder_decoder) {
  if (!encoder_decoder) return config.least_parameters();
  const EncoderDecoderConfig pair = encoder_and_decoder(config);
  return pair.encoder.least_parameters() + pair.decoder.least_parameters();
}

}  // namespace sinkhorn
