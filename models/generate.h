// Sampling from a language model, one token after the other.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "models/language_model.h"

namespace sinkhorn {

/// Temperature comes first, then the filters (behaviour, rule 16).
struct Sampling {
  double temperature = 1;                      // 0: the most likely token
  std::int64_t top_k = 0;                      // keep this many tokens; 0: all
  double top_p = 1;                            // keep the smallest set of tokens whose mass reaches this
  std::optional<std::int32_t> end_token = {};  // a row that draws it is finished
};

/// Throws UsageError for a negative temperature or top_k, or a top_p outside (0, 1].
void validate(const Sampling& sampling);

/// Draws a token from one row of logits; `uniform` in (0, 1) decides. Equal logits: the lowest index first.
std::int32_t sample(std::span<const double> logits, const Sampling& sampling, double uniform);

/// Called with each new token; false stops the generation.
using OnToken = std::function<bool(std::size_t row, std::int32_t token)>;

/// Continues every prompt by up to `count` tokens and returns the new ones only, without what follows an end token
/// (which is kept). Rows may differ in length; the same rng gives the same tokens whatever stands in the other rows.
/// When max_seq_len is full, the oldest half goes in whole buckets. An empty prompt, or a token outside the vocabulary,
/// is a UsageError. `around`: the context (B, S, D) of the prompts and its mask, where the model receives one.
std::vector<std::vector<std::int32_t>> generate(const SinkhornTransformerLM& model,
                                                const std::vector<std::vector<std::int32_t>>& prompts,
                                                std::int64_t count, const Sampling& sampling, const Rng& rng,
                                                const OnToken& on_token = {}, const AttentionContext& around = {});

}  // namespace sinkhorn
