#include "models/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "autograd/parallel.h"
#include "models/decoder.h"

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
                                                const OnToken& on_token, const AttentionContext& around) {
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
  std::int64_t needed = 1;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (seen[i].empty()) fail<UsageError>("generate: prompt ", i, " is empty; give at least one token");
    for (std::int32_t token : seen[i])
      if (token < 0 || token >= config.num_tokens)
        fail<UsageError>("generate: token ", token, " is outside the vocabulary of ", config.num_tokens);
    keep_recent(seen[i]);
    needed = std::max(needed, std::int64_t(seen[i].size()));
  }
  if (seen.empty() || count <= 0) return made;

  IncrementalDecoder decoder(model, std::int64_t(seen.size()), needed + std::min(count, longest - needed), around);
  std::vector<std::vector<double>> logits(seen.size());  // what follows each row, while it is not finished
  const auto keep = [&](const std::vector<std::int32_t>& rows, const Tensor& batch) {
    const Tensor here = batch.to(Device::cpu);
    for (std::size_t r = 0; r < rows.size(); ++r)
      logits[std::size_t(rows[r])] = here.slice(std::int64_t(r), std::int64_t(r) + 1).to_vector();
  };
  std::vector<std::int32_t> active(seen.size());
  std::iota(active.begin(), active.end(), 0);
  keep(active, decoder.prefill(active, seen));
  for (std::int64_t step = 0;; ++step) {
    std::vector<std::int32_t> unfinished, drawn(active.size());
    parallel_for(std::int64_t(active.size()), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::size_t at = std::size_t(begin); at < std::size_t(end); ++at) {
        const RandomBits bits = rng.split(std::uint32_t(active[at])).bits();
        drawn[at] = sample(logits[std::size_t(active[at])], sampling, bits.uniform<double>(std::uint64_t(step)));
      }
    });
    for (std::size_t at = 0; at < active.size(); ++at) {
      const std::int32_t row = active[at], token = drawn[at];
      const std::size_t i = std::size_t(row);
      made[i].push_back(token);
      seen[i].push_back(token);
      if (on_token && !on_token(i, token)) return made;
      if (sampling.end_token != token) unfinished.push_back(row);
    }
    active = std::move(unfinished);
    if (active.empty() || step + 1 == count) return made;

    std::vector<std::int32_t> growing, tokens, full;
    std::vector<std::vector<std::int32_t>> recent;
    for (const std::int32_t row : active) {
      std::vector<std::int32_t>& text = seen[std::size_t(row)];
      if (std::int64_t(text.size()) <= longest) {
        growing.push_back(row);
        tokens.push_back(text.back());
      } else {
        keep_recent(text);
        full.push_back(row);
        recent.push_back(text);
      }
    }
    keep(growing, decoder.step(growing, tokens));
    keep(full, decoder.prefill(full, recent));
  }
}

}  // namespace sinkhorn
