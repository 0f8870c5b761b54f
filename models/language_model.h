// The Sinkhorn transformer as a language model: embedding, axial positions, stack, norm, logits; padding and loss.
#pragma once
#include <optional>

#include "models/transformer.h"

namespace sinkhorn {

/// Standard deviations of the two embedding tables at the start; the published package has 1.
struct EmbeddingScale {
  double token = 1, position = 1;
};

/// Of a sequence, where padding goes.
enum class Side { left, right };

/// ids i32 (B, T) -> logits (B, T, V), or with `return_embeddings` normalised features (B, T, D). T must be a multiple
/// of the bucket sizes and at most max_seq_len rounded up to one; `padded` below takes any length.
class SinkhornTransformerLM {
 public:
  explicit SinkhornTransformerLM(const ModelConfig& config, Rng rng = Rng(0), DType dtype = DType::f32,
                                 EmbeddingScale scale = {});

  Var operator()(const Scope& scope, const Tensor& ids, const AttentionContext& around = {}) const;
  /// What logits are made of: the same but for the last projection, (B, T, E).
  Var features(const Scope& scope, const Tensor& ids, const AttentionContext& around = {}) const;

  /// Names are the published package's.
  template <class See>
  void visit(See&& see) {
    see("to_token_emb", token_embedding_);
    see("axial_pos_emb", positions_);
    see("sinkhorn_transformer", stack_);
    see("norm", norm_);
    if (to_logits_) see("to_logits", *to_logits_);
  }
  const ModelConfig& config() const { return stack_.config(); }
  /// Where its parameters are, and its inputs must be.
  Device device() const { return token_embedding_.weight.value.device(); }
  SinkhornTransformer& stack() { return stack_; }

 private:
  friend CrossEntropy next_token_loss(const SinkhornTransformerLM&, const Scope&, const Tensor&, const Tensor&,
                                      const Tensor&, const AttentionContext&, Side, std::optional<std::int32_t>);
  friend class IncrementalDecoder;  // runs the same parts on new tokens alone

  SinkhornTransformerLM(const ModelConfig& config, Initializer init, EmbeddingScale scale);

  Embedding token_embedding_;
  AxialPositions positions_;
  SinkhornTransformer stack_;
  LayerNorm norm_;
  std::optional<Linear> to_logits_;
};

/// Ids i32 (B, T) and which of them are real, bool (B, T); no mask: all.
struct MaskedIds {
  Tensor ids, mask;
};

/// The model on a batch of any length (the package's Autopadder): pads ids with 0 (vectors with zeros) on one side to
/// the next length the model takes, the context on the right, and the masks with false; runs; and cuts the result back
/// to (B, T, ...). Where nothing is added a missing mask stays missing.
Var padded(const SinkhornTransformerLM& model, const Scope& scope, const Tensor& ids,
           const AttentionContext& around = {}, Side side = Side::right);
Var padded(const SinkhornTransformer& model, const Scope& scope, const Var& x, const AttentionContext& around = {},
           Side side = Side::right);

/// A context brought to the next multiple of the context's bucket size, with zeros on the right, and its mask.
AttentionContext with_whole_buckets(const ModelConfig& config, const AttentionContext& around);

/// A ragged batch as ids (B, longest), filled with 0 on the right, and its mask.
MaskedIds from_sequences(const std::vector<std::vector<std::int32_t>>& sequences);

/// Mean cross-entropy in nats of what follows each of the ids (B, T), padded as above, with targets i32 (B, T): over
/// the positions that are true in `counted`, bool (B, T) or empty, and whose target is not `ignore_index`. The logits
/// are never there as a whole.
CrossEntropy next_token_loss(const SinkhornTransformerLM& model, const Scope& scope, const Tensor& ids,
                             const Tensor& targets, const Tensor& counted = {}, const AttentionContext& around = {},
                             Side side = Side::right, std::optional<std::int32_t> ignore_index = {});

struct LanguageModelLoss {
  Var loss;              // mean cross-entropy in nats over the counted positions, 0 if there is none
  std::int64_t counted;  // positions whose input and target are both real (and not ignored)
};

/// Next-token loss of ids (B, T), T >= 2: inputs ids[:, :-1], targets ids[:, 1:] (behaviour, rule 15). The mask of
/// `around` is (B, T) bool. Targets equal to `ignore_index`, if given, are not counted.
LanguageModelLoss autoregressive_loss(const SinkhornTransformerLM& model, const Scope& scope, const Tensor& ids,
                                      const AttentionContext& around = {}, Side side = Side::right,
                                      std::optional<std::int32_t> ignore_index = {});

/// Random truncation for training: each row keeps its first l tokens, l uniform in 2 .. its real length; the others
/// become padding. Rows must be padded on the right.
MaskedIds randomly_truncate(const Tensor& ids, const Tensor& mask, const Rng& rng);

}  // namespace sinkhorn
