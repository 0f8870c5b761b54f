#include "models/language_model.h"

#include <algorithm>

namespace sinkhorn {

SinkhornTransformerLM::SinkhornTransformerLM(const ModelConfig& config, Rng rng, DType dtype, EmbeddingScale scale)
    : SinkhornTransformerLM((validate(config), config), Initializer(std::move(rng), dtype), scale) {}

SinkhornTransformerLM::SinkhornTransformerLM(const ModelConfig& config, Initializer init, EmbeddingScale scale)
    : token_embedding_(config.num_tokens, config.embedding_width(), scale.token, init),
      positions_(config.max_buckets(), config.bucket_size, config.embedding_width(), scale.position, init),
      stack_(config, init),
      // With return_embeddings nothing projects back, so the norm takes what leaves the stack (rule 13).
      norm_(config.return_embeddings ? config.dim : config.embedding_width(), init) {
  if (!config.return_embeddings) to_logits_.emplace(config.embedding_width(), config.num_tokens, true, init);
}

Var SinkhornTransformerLM::operator()(const Scope& scope, const Tensor& ids, const Tensor& mask) const {
  if (ids.shape().rank() != 2) fail("language model: expected ids (B, T), got ", ids.shape());
  const std::int64_t length = ids.shape()[1];
  if (length > config().max_length())
    fail("language model: length ", length, " exceeds max_seq_len ", config().max_seq_len, " (", config().max_length(),
         " in whole buckets)");
  const Var embedded = add(token_embedding_(scope, ids), positions_(scope, length));
  const Var x = scope.split(0).dropout(embedded, config().emb_dropout);
  const Var features = norm_(scope, stack_(scope.split(1), x, mask));
  return to_logits_ ? (*to_logits_)(scope, features) : features;
}

namespace {

// x (B, T, ...) with `before` and `after` zero slots on the time axis; for ids, masks and vectors alike.
Tensor pad_time(const Tensor& x, std::int64_t before, std::int64_t after) { return pad(x, 1, before, after).value; }

std::int64_t missing(std::int64_t length, std::int64_t multiple) { return (multiple - length % multiple) % multiple; }

}  // namespace

Padded pad_to_multiple(const Tensor& ids, const Tensor& mask, std::int64_t multiple, Side side) {
  const Shape s = ids.shape();
  const std::int64_t added = missing(s[1], multiple), before = side == Side::left ? added : 0;
  if (added == 0) return {ids, mask, 0};
  const Tensor real = mask ? mask : Tensor::full({s[0], s[1]}, 1, DType::boolean, ids.device());
  return {pad_time(ids, before, added - before), pad_time(real, before, added - before), before};
}

Var padded(const SinkhornTransformerLM& model, const Scope& scope, const Tensor& ids, const Tensor& mask, Side side) {
  const Padded batch = pad_to_multiple(ids, mask, model.config().length_multiple(), side);
  const Var y = model(scope, batch.ids, batch.mask);
  return slice(y, 1, batch.before, batch.before + ids.shape()[1]);
}

Var padded(const SinkhornTransformer& model, const Scope& scope, const Var& x, const Tensor& mask, Side side) {
  const Shape s = x.shape();
  const std::int64_t added = missing(s[1], model.config().length_multiple()), before = side == Side::left ? added : 0;
  if (added == 0) return model(scope, x, mask);
  const Tensor all = Tensor::full({s[0], s[1]}, 1, DType::boolean, x.value.device());
  const Tensor real = pad_time(mask ? mask : all, before, added - before);
  return slice(model(scope, pad(x, 1, before, added - before), real), 1, before, before + s[1]);
}

Padded from_sequences(const std::vector<std::vector<std::int32_t>>& sequences) {
  std::size_t longest = 0;
  for (const auto& sequence : sequences) longest = std::max(longest, sequence.size());
  const Shape shape{std::int64_t(sequences.size()), std::int64_t(longest)};
  Padded batch{Tensor::zeros(shape, DType::i32), Tensor::zeros(shape, DType::boolean), 0};
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    std::copy(sequences[i].begin(), sequences[i].end(), batch.ids.data<std::int32_t>() + i * longest);
    std::fill_n(batch.mask.data<bool>() + i * longest, sequences[i].size(), true);
  }
  return batch;
}

LanguageModelLoss autoregressive_loss(const SinkhornTransformerLM& model, const Scope& scope, const Tensor& ids,
                                      const Tensor& mask, Side side, std::optional<std::int32_t> ignore_index) {
  const Shape s = ids.shape();
  if (s.rank() != 2 || s[1] < 2) fail("autoregressive loss: expected ids (B, T) with T >= 2, got ", s);
  if (mask && mask.shape() != s)
    fail("autoregressive loss: the mask ", mask.shape(), " does not have the shape of ids ", s);
  if (!model.config().causal) fail("autoregressive loss: the model is not causal; set causal = true");
  const std::int64_t length = s[1] - 1;
  auto from = [&](const Tensor& x, std::int64_t begin) { return slice(Var(x), 1, begin, begin + length).value; };
  const Tensor inputs = from(ids, 0), targets = from(ids, 1);
  Tensor input_mask, counted;
  if (mask) {
    input_mask = from(mask, 0);
    const Tensor target_mask = from(mask, 1).to(Device::cpu);
    counted = input_mask.to(Device::cpu).clone();
    for (std::int64_t i = 0; i < counted.count(); ++i) counted.data<bool>()[i] &= target_mask.data<bool>()[i];
    counted = counted.to(mask.device());
  }
  const Var logits = padded(model, scope, inputs, input_mask, side);
  const CrossEntropy result = cross_entropy(logits, targets, counted, ignore_index);
  return {result.loss, std::int64_t(result.count.item()), logits};
}

Padded randomly_truncate(const Tensor& ids, const Tensor& mask, const Rng& rng) {
  const Shape s = ids.shape();
  if (s.rank() != 2 || s[1] < 2) fail("random truncation: expected ids (B, T) with T >= 2, got ", s);
  Padded batch{ids.clone(), Tensor::zeros(s, DType::boolean), 0};
  const RandomBits bits = rng.bits();
  for (std::int64_t i = 0; i < s[0]; ++i) {
    bool* kept = batch.mask.data<bool>() + i * s[1];
    const bool* real = mask ? mask.data<bool>() + i * s[1] : nullptr;
    const std::int64_t length = real ? std::count(real, real + s[1], true) : s[1];
    if (real && std::find(real, real + s[1], false) - real != length)
      fail("random truncation: row ", i, " is not padded on the right");
    const std::int64_t choices = std::max<std::int64_t>(length - 1, 1);
    const std::int64_t keep = std::min(length, 2 + std::int64_t(std::uint64_t(bits.word(i)) * choices >> 32));
    std::fill_n(kept, keep, true);
    std::fill_n(batch.ids.data<std::int32_t>() + i * s[1] + keep, s[1] - keep, 0);
  }
  return batch;
}

}  // namespace sinkhorn
