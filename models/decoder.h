// Incremental decoding: the logits of a causal language model for texts that grow token by token.
#pragma once
#include <map>
#include <optional>
#include <span>

#include "autograd/graph.h"
#include "models/language_model.h"

namespace sinkhorn {

/// Holds `rows` texts and what the layers remember of them. The logits are those of the full forward over the same
/// tokens (to rounding); a token costs its own attention and feed-forward, however long its text is. The model must
/// outlive the decoder and stay as it is.
class IncrementalDecoder {
 public:
  /// Texts of up to `capacity` tokens, rounded up to whole buckets; 0: as many as the model takes. Where the model
  /// receives a context, it is (rows, S, D) of any length, with its mask; the rows keep it. A UsageError unless the
  /// model is causal and has logits.
  IncrementalDecoder(const SinkhornTransformerLM& model, std::int64_t rows, std::int64_t capacity = 0,
                     const AttentionContext& around = {});

  /// Replaces the text of row rows[i] by texts[i], in one full forward. Returns the logits (R, V) that follow them.
  Tensor prefill(std::span<const std::int32_t> rows, const std::vector<std::vector<std::int32_t>>& texts);
  /// Adds one token to the text of each of these rows. Returns the logits (R, V) that follow. On a GPU the second step
  /// of R rows is recorded, and it and those after it are one launch.
  Tensor step(std::span<const std::int32_t> rows, std::span<const std::int32_t> tokens);

  /// Tokens that a row holds.
  std::int64_t length(std::int64_t row) const { return lengths_.at(std::size_t(row)); }
  std::int64_t capacity() const { return capacity_; }

 private:
  /// A token for each of R rows: where it is written to before, and the recorded work with its result.
  struct Step {
    Tensor input;  // i32 (4, R): ids, rows, positions, and ones
    Tensor logits;
    std::optional<Graph> graph;
  };
  Tensor run(const Step& step) const;
  Tensor logits(const Tensor& ids, const Tensor& positions, const NewTokens& tokens) const;
  void check_rows(std::span<const std::int32_t> rows) const;
  void check_token(std::int32_t token) const;

  const SinkhornTransformerLM& model_;
  std::int64_t capacity_;
  std::vector<std::int64_t> lengths_;
  Tensor positions_;  // (capacity, E)
  StackCache cache_;
  Arena arena_;
  std::map<std::int64_t, Step> steps_;  // by R
};

}  // namespace sinkhorn
