#include "models/language_model.h"

#include <algorithm>

#include "autograd/choices.h"

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

Var SinkhornTransformerLM::operator()(const Scope& scope, const Tensor& ids, const AttentionContext& around) const {
  const Var y = features(scope, ids, around);
  return to_logits_ ? (*to_logits_)(scope, y) : y;
}

Var SinkhornTransformerLM::features(const Scope& scope, const Tensor& ids, const AttentionContext& around) const {
  if (ids.shape().rank() != 2) fail("language model: expected ids (B, T), got ", ids.shape());
  const std::int64_t length = ids.shape()[1];
  if (length > config().max_length())
    fail("language model: length ", length, " exceeds max_seq_len ", config().max_seq_len, " (", config().max_length(),
         " in whole buckets)");
  const Var embedded = add(token_embedding_(scope, ids), positions_(scope, length));
  const Var x = scope.split(0).dropout(embedded, config().emb_dropout);
  // Embeddings that nothing follows stay in full: they may be another model's context.
  return norm_(to_logits_ ? scope : scope.in_full(), stack_(scope.split(1), x, around));
}

namespace {

// Zero slots in front of and behind a sequence.
struct Margins {
  std::int64_t before, after;
};

Margins margins(std::int64_t length, std::int64_t wanted, Side side) {
  const std::int64_t added = wanted - length;
  return side == Side::left ? Margins{added, 0} : Margins{0, added};
}

std::int64_t next_multiple(std::int64_t length, std::int64_t multiple) {
  return (length + multiple - 1) / multiple * multiple;
}

// The next length that a model takes.
std::int64_t next_length(const ModelConfig& config, std::int64_t length) {
  const auto fixed = config.fixed_length();
  if (fixed && length > *fixed)
    fail("padding: length ", length, " exceeds the fixed length ", *fixed, " of this model (max_seq_len)");
  return fixed.value_or(next_multiple(length, config.length_multiple()));
}

// The mask (B, T) of a sequence to which margins are added.
Tensor padded_mask(const Tensor& mask, const Shape& shape, const Margins& m, Device device) {
  require_mask(mask, shape, "padding");
  if (m.before + m.after == 0) return mask;
  const Tensor real = mask ? mask : Tensor::full({shape[0], shape[1]}, 1, DType::boolean, device);
  return pad(Var(real), 1, m.before, m.after).value;
}

// run(x, around) on whole buckets of x (B, T, ...), and of what comes out the rows of x alone.
template <class Run>
Var run_padded(const ModelConfig& config, const Var& x, const AttentionContext& around, Side side, Run run) {
  const Shape s = x.shape();
  if (s.rank() < 2) fail("padding: expected (B, T, ...), got ", s);
  const Margins m = margins(s[1], next_length(config, s[1]), side);
  const Var wider = m.before + m.after > 0 ? pad(x, 1, m.before, m.after) : x;
  AttentionContext wider_around = with_whole_buckets(config, around);
  wider_around.mask = padded_mask(around.mask, s, m, x.value.device());
  const Var y = run(wider, wider_around);
  return m.before + m.after > 0 ? slice(y, 1, m.before, m.before + s[1]) : y;
}

}  // namespace

AttentionContext with_whole_buckets(const ModelConfig& config, const AttentionContext& around) {
  if (!around.context.value) return around;
  AttentionContext wider = around;
  const Shape c = around.context.shape();
  if (c.rank() != 3) fail("padding: expected a context (B, S, D), got ", c);
  const Margins right{0, next_multiple(c[1], config.context_bucket()) - c[1]};
  wider.context_mask = padded_mask(around.context_mask, c, right, around.context.value.device());
  if (right.after > 0) wider.context = pad(around.context, 1, 0, right.after);
  return wider;
}

Var padded(const SinkhornTransformerLM& model, const Scope& scope, const Tensor& ids, const AttentionContext& around,
           Side side) {
  return run_padded(model.config(), ids, around, side, [&](const Var& wider, const AttentionContext& wider_around) {
    return model(scope, wider.value, wider_around);
  });
}

Var padded(const SinkhornTransformer& model, const Scope& scope, const Var& x, const AttentionContext& around,
           Side side) {
  return run_padded(model.config(), x, around, side, [&](const Var& wider, const AttentionContext& wider_around) {
    return model(scope, wider, wider_around);
  });
}

MaskedIds from_sequences(const std::vector<std::vector<std::int32_t>>& sequences) {
  std::size_t longest = 0;
  for (const auto& sequence : sequences) longest = std::max(longest, sequence.size());
  const Shape shape{std::int64_t(sequences.size()), std::int64_t(longest)};
  MaskedIds batch{Tensor::zeros(shape, DType::i32), Tensor::zeros(shape, DType::boolean)};
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    std::copy(sequences[i].begin(), sequences[i].end(), batch.ids.data<std::int32_t>() + i * longest);
    std::fill_n(batch.mask.data<bool>() + i * longest, sequences[i].size(), true);
  }
  return batch;
}

CrossEntropy next_token_loss(const SinkhornTransformerLM& model, const Scope& scope, const Tensor& ids,
                             const Tensor& targets, const Tensor& counted, const AttentionContext& around, Side side,
                             std::optional<std::int32_t> ignore_index) {
  if (!model.to_logits_) fail("loss: the model returns embeddings; set return_embeddings = false");
  const Var features =
      run_padded(model.config(), ids, around, side, [&](const Var& wider, const AttentionContext& wider_around) {
        return model.features(scope, wider.value, wider_around);
      });
  const Linear& last = *model.to_logits_;
  return linear_cross_entropy(features, scope.leaf(last.weight), scope.leaf(last.bias),
                              {last.weight.rounded, last.bias.rounded}, targets, counted, ignore_index);
}

LanguageModelLoss autoregressive_loss(const SinkhornTransformerLM& model, const Scope& scope, const Tensor& ids,
                                      const AttentionContext& around, Side side,
                                      std::optional<std::int32_t> ignore_index) {
  const Shape s = ids.shape();
  const Tensor& mask = around.mask;
  if (s.rank() != 2 || s[1] < 2) fail("autoregressive loss: expected ids (B, T) with T >= 2, got ", s);
  require_mask(mask, s, "autoregressive loss");
  if (!model.config().causal) fail("autoregressive loss: the model is not causal; set causal = true");
  if (model.config().return_embeddings)
    fail("autoregressive loss: the model returns embeddings; set return_embeddings = false");
  const std::int64_t length = s[1] - 1;
  auto from = [&](const Tensor& x, std::int64_t begin) { return slice(Var(x), 1, begin, begin + length).value; };
  const Tensor inputs = from(ids, 0), targets = from(ids, 1);
  AttentionContext inputs_around = around;
  Tensor counted;
  if (mask) {
    const Tensor input_mask = inputs_around.mask = from(mask, 0), target_mask = from(mask, 1);
    counted = mask.like(input_mask.shape());
    dispatch_device(counted, [&](auto space) {
      kernels::Choices::both(space, counted.count(), input_mask.data<bool>(), target_mask.data<bool>(),
                             counted.data<bool>());
    });
  }
  const CrossEntropy result =
      next_token_loss(model, scope, inputs, targets, counted, inputs_around, side, ignore_index);
  return {result.loss, std::int64_t(result.count.item())};
}

MaskedIds randomly_truncate(const Tensor& ids, const Tensor& mask, const Rng& rng) {
  const Shape s = ids.shape();
  if (s.rank() != 2 || s[1] < 2) fail("random truncation: expected ids (B, T) with T >= 2, got ", s);
  require_mask(mask, s, "random truncation");
  MaskedIds batch{ids.clone(), Tensor::zeros(s, DType::boolean)};
  const RandomBits bits = rng.bits();
  for (std::int64_t i = 0; i < s[0]; ++i) {
    bool* kept = batch.mask.span<bool>().data() + i * s[1];
    const bool* real = mask ? mask.span<bool>().data() + i * s[1] : nullptr;
    const std::int64_t length = real ? std::count(real, real + s[1], true) : s[1];
    if (real && std::find(real, real + s[1], false) - real != length)
      fail("random truncation: row ", i, " is not padded on the right");
    const std::int64_t choices = std::max<std::int64_t>(length - 1, 1);
    const std::int64_t keep = std::min(length, 2 + std::int64_t(std::uint64_t(bits.word(i)) * choices >> 32));
    std::fill_n(kept, keep, true);
    std::fill_n(batch.ids.span<std::int32_t>().data() + i * s[1] + keep, s[1] - keep, 0);
  }
  return batch;
}

}  // namespace sinkhorn
