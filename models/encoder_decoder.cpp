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
  const ModelConfig& config = model.decoder().config();
  if (!config.causal) fail<UsageError>("generate: needs a causal decoder");
  if (sources.size() != starts.size())
    fail<UsageError>("generate: ", sources.size(), " sources, but ", starts.size(), " starts");
  for (std::size_t i = 0; i < sources.size(); ++i)
    if (sources[i].empty() || starts[i].empty())
      fail<UsageError>("generate: source and start ", i, " must have at least one token each");
  std::vector<std::vector<std::int32_t>> seen = starts, made(starts.size());
  std::vector<bool> finished(starts.size());
  const MaskedIds source = from_sequences(sources);
  const Tensor encoded = model.encode(Scope{}, source).value;
  for (std::int64_t step = 0; step < count; ++step) {
    const MaskedIds target = from_sequences(seen);
    const Tensor logits = model.decode(Scope{}, target, encoded, source.mask).value;  // (B, T, V)
    const Tensor rows = logits.reshape({-1, config.num_tokens});
    bool all_finished = true;
    for (std::size_t i = 0; i < seen.size(); ++i) {
      if (finished[i]) continue;
      const std::int64_t last = std::int64_t(i) * logits.shape()[1] + std::int64_t(seen[i].size()) - 1;
      const double uniform = rng.split(std::uint32_t(i)).bits().uniform<double>(std::uint64_t(step));
      const std::int32_t token = sample(rows.slice(last, last + 1).to_vector(), sampling, uniform);
      made[i].push_back(token);
      seen[i].push_back(token);
      if (on_token && !on_token(i, token)) return made;
      finished[i] = sampling.end_token == token;
      all_finished &= finished[i];
    }
    if (all_finished) break;
  }
  return made;
}

}  // namespace sinkhorn
