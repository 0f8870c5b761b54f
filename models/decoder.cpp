#include "models/decoder.h"

#include <algorithm>

namespace sinkhorn {
namespace {

const SinkhornTransformerLM& checked(const SinkhornTransformerLM& model) {
  if (!model.config().causal || model.config().return_embeddings)
    fail<UsageError>("incremental decoding: needs a causal model with logits");
  return model;
}

std::int64_t whole_buckets(const ModelConfig& config, std::int64_t tokens) {
  if (tokens < 0 || tokens > config.max_length())
    fail("incremental decoding: capacity ", tokens, " is not within the ", config.max_length(), " tokens of the model");
  if (tokens == 0) return config.max_length();
  return (tokens + config.bucket_size - 1) / config.bucket_size * config.bucket_size;
}

Tensor indices(const std::vector<std::int32_t>& values) {
  return Tensor::from<std::int32_t>(values, {std::int64_t(values.size())});
}

}  // namespace

IncrementalDecoder::IncrementalDecoder(const SinkhornTransformerLM& model, std::int64_t rows, std::int64_t capacity,
                                       const AttentionContext& around)
    : model_(checked(model)),
      capacity_(whole_buckets(model.config(), capacity)),
      lengths_(std::size_t(rows)),
      positions_(model.positions_(Scope{}, capacity_).value),
      cache_(model.stack_.cache(rows, capacity_, with_whole_buckets(model.config(), around))),
      arena_(model.device()) {}

Tensor IncrementalDecoder::prefill(std::span<const std::int32_t> rows,
                                   const std::vector<std::vector<std::int32_t>>& texts) {
  check_rows(rows);
  if (texts.size() != rows.size()) fail("incremental decoding: ", texts.size(), " texts for ", rows.size(), " rows");
  std::vector<std::int32_t> lengths;
  for (const std::vector<std::int32_t>& text : texts) {
    if (text.empty() || std::int64_t(text.size()) > capacity_)
      fail("incremental decoding: a text of ", text.size(), " tokens; expected 1 to ", capacity_);
    for (std::int32_t token : text) check_token(token);
    lengths.push_back(std::int32_t(text.size()));
  }
  if (rows.empty()) return Tensor::zeros({0, model_.config().num_tokens}, positions_.dtype(), positions_.device());
  const std::int64_t longest = *std::max_element(lengths.begin(), lengths.end()), bucket = model_.config().bucket_size;
  const Tensor ids = pad(Var(from_sequences(texts).ids), 1, 0, (bucket - longest % bucket) % bucket).value;
  const std::int64_t count = ids.shape()[0], length = ids.shape()[1];
  const NewTokens tokens{indices({rows.begin(), rows.end()}), Tensor::zeros({count}, DType::i32), indices(lengths)};
  Tensor result = logits(ids, positions_.slice(0, length), tokens);
  for (std::size_t i = 0; i < rows.size(); ++i) lengths_[std::size_t(rows[i])] = lengths[i];
  return result;
}

Tensor IncrementalDecoder::step(std::span<const std::int32_t> rows, std::span<const std::int32_t> tokens) {
  check_rows(rows);
  if (tokens.size() != rows.size()) fail("incremental decoding: ", tokens.size(), " tokens for ", rows.size(), " rows");
  const std::int64_t count = std::int64_t(rows.size());
  std::vector<std::int32_t> input(tokens.begin(), tokens.end());
  input.insert(input.end(), rows.begin(), rows.end());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    check_token(tokens[i]);
    const std::int64_t length = lengths_[std::size_t(rows[i])];
    if (length == capacity_)
      fail("incremental decoding: row ", rows[i], " is full with ", capacity_, " tokens; prefill its recent ones");
    input.push_back(std::int32_t(length));
  }
  input.resize(4 * rows.size(), 1);
  if (count == 0) return Tensor::zeros({0, model_.config().num_tokens}, positions_.dtype(), positions_.device());
  Step& step = steps_[count];
  const bool is_first = !step.input;
  if (is_first) step.input = Tensor({4, count}, DType::i32, model_.device());
  step.input.assign(Tensor::from<std::int32_t>(input, {4, count}));
  Tensor result;
  if (is_first || model_.device() == Device::cpu || !Graph::are_enabled()) {
    result = run(step);
  } else {
    if (!step.graph) step.graph.emplace(arena_, [&] { step.logits = run(step); });
    step.graph->launch();
    result = step.logits.clone();  // the next launch writes there
  }
  for (std::int32_t row : rows) ++lengths_[std::size_t(row)];
  return result;
}

Tensor IncrementalDecoder::run(const Step& step) const {
  const std::int64_t count = step.input.shape()[1];
  const auto line = [&](std::int64_t i) { return step.input.slice(i, i + 1).reshape({count}); };
  const NewTokens added{line(1), line(2), line(3)};
  return logits(line(0).reshape({count, 1}), embedding(positions_, added.begin.reshape({count, 1})).value, added);
}

// ids (R, T), their positions' embeddings (R, T, E) or (T, E) -> (R, V), for the last token of each entry alone.
Tensor IncrementalDecoder::logits(const Tensor& ids, const Tensor& positions, const NewTokens& tokens) const {
  const Scope scope;
  const Device device = model_.device();
  const Var features = model_.stack_(add(model_.token_embedding_(scope, ids.to(device)), positions), cache_, tokens);
  const std::int64_t count = ids.shape()[0], length = ids.shape()[1], width = features.shape()[2];
  if (length == 1) return (*model_.to_logits_)(scope, model_.norm_(scope, reshape(features, {count, width}))).value;
  Tensor last = tokens.lengths.clone();
  for (std::int64_t i = 0; i < count; ++i) last.data<std::int32_t>()[i] += std::int32_t(i * length - 1);
  const Var row = embedding(reshape(features, {count * length, width}), last.to(device));
  return (*model_.to_logits_)(scope, model_.norm_(scope, row)).value;
}

void IncrementalDecoder::check_rows(std::span<const std::int32_t> rows) const {
  std::vector<bool> seen(lengths_.size());
  for (std::int32_t row : rows) {
    if (row < 0 || std::size_t(row) >= seen.size()) fail("incremental decoding: row ", row, " of ", seen.size());
    if (seen[std::size_t(row)]) fail("incremental decoding: row ", row, " is named twice");
    seen[std::size_t(row)] = true;
  }
}

void IncrementalDecoder::check_token(std::int32_t token) const {
  if (token < 0 || token >= model_.config().num_tokens)
    fail<UsageError>("incremental decoding: token ", token, " is outside the vocabulary of ",
                     model_.config().num_tokens);
}

}  // namespace sinkhorn
