#include "models/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sinkhorn {

void validate(const Sampling& s) {
  if (!(s.temperature >= 0) || std::isinf(s.temperature))
    fail<UsageError>("temperature ", s.temperature, " must be 0 (most likely token) or a positive number");
  if (s.top_k < 0) fail<UsageError>("top_k ", s.top_k, " must be 0 (all tokens) or the number of tokens to keep");
  if (!(s.top_p > 0 && s.top_p <= 1))
    fail<UsageError>("top_p ", s.top_p, " must be the mass to keep, above 0 and at most 1");
}

std::int32_t sample(std::span<const double> logits, const Sampling& sampling, double uniform) {
  if (logits.empty()) fail("sample: no logits");
  for (double logit : logits)
    if (std::isnan(logit)) fail<NonFinite>("sample: a logit is NaN; the model's weights are not usable");
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
  if (sampling.temperature == 0) return order[0];
  if (sampling.top_k > 0) order.resize(std::min(order.size(), std::size_t(sampling.top_k)));

  std::vector<double> mass;
  double total = 0;
  for (std::int32_t token : order) {
    mass.push_back(std::exp((logits[token] - logits[order[0]]) / sampling.temperature));
    total += mass.back();
  }
  // The nucleus: as many of the likeliest as are needed to reach top_p of the mass.
  double kept = 0;
  std::size_t count = 0;
  while (count < mass.size() && (count == 0 || kept < sampling.top_p * total)) kept += mass[count++];
  double threshold = uniform * kept;
  for (std::size_t i = 0; i < count; ++i) {
    threshold -= mass[i];
    if (threshold < 0) return order[i];
  }
  return order[count - 1];
}

std::vector<std::vector<std::int32_t>> generate(const SinkhornTransformerLM& model,
                                                const std::vector<std::vector<std::int32_t>>& prompts,
                                                std::int64_t count, const Sampling& sampling, const Rng& rng,
                                                const OnToken& on_token) {
  validate(sampling);
  const ModelConfig& config = model.config();
  if (!config.causal || config.return_embeddings) fail<UsageError>("generate: needs a causal model with logits");
  const std::int64_t longest = config.max_length(), bucket = config.bucket_size;
  // What the model still sees of each row. Beyond the longest sequence the oldest half goes, in whole buckets.
  std::vector<std::vector<std::int32_t>> seen = prompts, made(prompts.size());
  const auto keep_recent = [&](std::vector<std::int32_t>& row) {
    const std::int64_t dropped = std::max<std::int64_t>(longest / bucket / 2, 1) * bucket;
    while (std::int64_t(row.size()) > longest) row.erase(row.begin(), row.begin() + dropped);
  };
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (seen[i].empty()) fail<UsageError>("generate: prompt ", i, " is empty; give at least one token");
    for (std::int32_t token : seen[i])
      if (token < 0 || token >= config.num_tokens)
        fail<UsageError>("generate: token ", token, " is outside the vocabulary of ", config.num_tokens);
    keep_recent(seen[i]);
  }

  std::vector<bool> finished(prompts.size());
  for (std::int64_t step = 0; step < count; ++step) {
    std::vector<std::size_t> rows;
    std::vector<std::vector<std::int32_t>> batch;
    for (std::size_t i = 0; i < seen.size(); ++i) {
      if (finished[i]) continue;
      rows.push_back(i);
      batch.push_back(seen[i]);
    }
    if (rows.empty()) break;
    const MaskedIds input = from_sequences(batch);
    const Tensor logits = padded(model, Scope{}, input.ids, input.mask).value;  // (rows, T, V)
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const std::size_t i = rows[r];
      const std::int64_t last = std::int64_t(r) * logits.shape()[1] + std::int64_t(seen[i].size()) - 1;
      const std::vector<double> row = logits.reshape({-1, config.num_tokens}).slice(last, last + 1).to_vector();
      const double uniform = rng.split(std::uint32_t(i)).bits().uniform<double>(std::uint64_t(step));
      const std::int32_t token = sample(row, sampling, uniform);
      made[i].push_back(token);
      seen[i].push_back(token);
      keep_recent(seen[i]);
      if (on_token && !on_token(i, token)) return made;
      finished[i] = sampling.end_token == token;
    }
  }
  return made;
}

}  // namespace sinkhorn
