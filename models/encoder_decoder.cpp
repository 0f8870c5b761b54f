#include "models/encoder_decoder.h"

namespace sinkhorn {

void validate(const EncoderDecoderConfig& config) {
  const ModelConfig &e = config.encoder, &d = config.decoder;
  validate(e);
  validate(d);
  const auto refuse = [](const auto&... parts) { fail<UsageError>("encoder-decoder: ", parts...); };
  if (e.num_tokens == 0 || d.num_tokens == 0) refuse("both parts read tokens: give num_tokens to encoder and decoder");
  if (!e.return_embeddings) refuse("the decoder reads the encoder's embeddings: set the encoder's return_embeddings");
  if (e.receives_context) refuse("nothing stands before the encoder: set its receives_context false");
  if (!d.receives_context) refuse("the decoder must read the encoder: set its receives_context true");
  if (d.return_embeddings) refuse("the decoder gives logits: set its return_embeddings false");
  if (e.dim != d.dim)
    refuse("the encoder's dim ", e.dim, " is the width of the decoder's context, so it must be the decoder's dim ",
           d.dim);
}

EncoderDecoder::EncoderDecoder(const EncoderDecoderConfig& config, Rng rng, DType dtype, EmbeddingScale scale)
    : encoder_((validate(config), config.encoder), rng.split(0), dtype, scale),
      decoder_(config.decoder, rng.split(1), dtype, scale) {}

Var EncoderDecoder::encode(const Scope& scope, const MaskedIds& source) const {
  return padded(encoder_, scope.split(0), source.ids, source.mask);
}

Var EncoderDecoder::decode(const Scope& scope, const MaskedIds& target, const Var& encoded,
                           const Tensor& source_mask) const {
  return padded(decoder_, scope.split(1), target.ids, {target.mask, encoded, source_mask});
}

Var EncoderDecoder::operator()(const Scope& scope, const MaskedIds& source, const MaskedIds& target) const {
  return decode(scope, target, encode(scope, source), source.mask);
}

CrossEntropy EncoderDecoder::loss(const Scope& scope, const MaskedIds& source, const MaskedIds& inputs,
                                  const Tensor& targets, const Tensor& counted) const {
  return next_token_loss(decoder_, scope.split(1), inputs.ids, targets, counted,
                         {inputs.mask, encode(scope, source), source.mask});
}

LanguageModelLoss EncoderDecoder::loss(const Scope& scope, const MaskedIds& source, const MaskedIds& target,
                                       std::optional<std::int32_t> ignore_index) const {
  return autoregressive_loss(decoder_, scope.split(1), target.ids, {target.mask, encode(scope, source), source.mask},
                             Side::right, ignore_index);
}

std::vector<std::vector<std::int32_t>> generate(const EncoderDecoder& model,
                                                const std::vector<std::vector<std::int32_t>>& sources,
                                                const std::vector<std::vector<std::int32_t>>& starts,
                                                std::int64_t count, const Sampling& sampling, const Rng& rng,
                                                const OnToken& on_token) {
  validate(sampling);
  if (!model.decoder().config().causal) fail<UsageError>("generate: needs a causal decoder");
  if (sources.size() != starts.size())
    fail<UsageError>("generate: ", sources.size(), " sources, but ", starts.size(), " starts");
  for (std::size_t i = 0; i < sources.size(); ++i)
    if (sources[i].empty() || starts[i].empty())
      fail<UsageError>("generate: source and start ", i, " must have at least one token each");
  if (sources.empty()) return {};
  const MaskedIds host = from_sequences(sources);
  const Device device = model.decoder().device();
  const MaskedIds source{host.ids.to(device), host.mask.to(device)};
  return generate(model.decoder(), starts, count, sampling, rng, on_token,
                  {{}, model.encode(Scope{}, source).value, source.mask});
}

}  // namespace sinkhorn
