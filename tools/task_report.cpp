#include "tools/task_report.h"

#include <fmt/format.h>

#include <algorithm>

namespace sinkhorn {
namespace {

std::vector<PlacedExample> drawn(const Task& task, std::uint64_t seed, std::int64_t length, std::int64_t first,
                                 std::int64_t count) {
  std::vector<PlacedExample> examples;
  for (std::int64_t i = 0; i < count; ++i)
    examples.push_back(task_example(
        task, {.seed = seed, .stream = TaskStream::evaluation, .step = length, .row = first + i}, length, length, {}));
  return examples;
}

/// The likeliest token at each position that counts, row by row.
std::vector<std::vector<std::int32_t>> forced_answers(const SequenceModel& model,
                                                      const std::vector<PlacedExample>& examples) {
  const Batch batch = to_batch(examples, {.encoder_decoder = model.has_encoder()});
  const Tensor logits = model(Scope{}, batch).value;
  const std::vector<double> numbers = logits.to_vector();
  const std::int64_t slots = logits.shape()[1], tokens = logits.shape()[2];
  std::vector<std::vector<std::int32_t>> answers(examples.size());
  for (std::int64_t at = 0; at < std::int64_t(examples.size()) * slots; ++at) {
    if (!batch.counted.data<bool>()[at]) continue;
    const auto first = numbers.begin() + at * tokens;
    answers[std::size_t(at / slots)].push_back(std::int32_t(std::max_element(first, first + tokens) - first));
  }
  return answers;
}

std::vector<std::vector<std::int32_t>> generated_answers(const SequenceModel& model,
                                                         const std::vector<PlacedExample>& examples) {
  std::vector<std::vector<std::int32_t>> sources;
  std::size_t longest = 0;
  for (const auto& [example, offset] : examples) {
    sources.push_back(example.source);
    longest = std::max(longest, example.target.size() + 1);
  }
  return answer(model, sources, std::int64_t(longest), {.temperature = 0, .end_token = Task::end}, Rng(0));
}

}  // namespace

std::vector<std::vector<std::int32_t>> answer(const SequenceModel& model,
                                              const std::vector<std::vector<std::int32_t>>& sources, std::int64_t count,
                                              const Sampling& sampling, const Rng& rng, const OnToken& on_token) {
  if (model.has_encoder()) {
    const std::vector<std::vector<std::int32_t>> starts(sources.size(), {Task::separator});
    return generate(model.encoder_decoder(), sources, starts, count, sampling, rng, on_token);
  }
  std::vector<std::vector<std::int32_t>> prompts = sources;
  for (auto& prompt : prompts) prompt.push_back(Task::separator);
  return generate(model.language_model(), prompts, count, sampling, rng, on_token);
}

TaskScore score_task(const Task& task, const SequenceModel& model, std::uint64_t seed, std::int64_t length,
                     std::int64_t examples, std::int64_t batch_size) {
  TaskScore score{.length = length, .forced = {}, .generated = {}};
  for (std::int64_t first = 0; first < examples; first += batch_size) {
    const auto batch = drawn(task, seed, length, first, std::min(batch_size, examples - first));
    const auto forced = forced_answers(model, batch);
    const auto generated = generated_answers(model, batch);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      score.forced.add(forced[i], batch[i].example.target, Task::end);
      score.generated.add(generated[i], batch[i].example.target, Task::end);
    }
  }
  return score;
}

std::vector<std::string> to_lines(const TaskScore& score) {
  std::vector<std::string> lines;
  for (const auto& [how, s] : {std::pair("generated", &score.generated), {"teacher-forced", &score.forced}})
    lines.push_back(fmt::format(
        "length {:>3}, {:<15} exact match {:5.1f} %, token accuracy {:5.1f} %, edit distance {:.3f}", score.length,
        std::string(how) + ":", 100 * s->exact_match(), 100 * s->token_accuracy(), s->edit_distance()));
  return lines;
}

std::vector<std::string> answer_lines(const Task& task, const SequenceModel& model, std::uint64_t seed,
                                      std::int64_t length, std::int64_t examples) {
  const Tokenizer tokenizer = task.tokenizer();
  const auto batch = drawn(task, seed, length, 0, examples);
  const auto answers = generated_answers(model, batch);
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    std::vector<std::int32_t> right = batch[i].example.target;
    right.push_back(Task::end);
    lines.push_back(tokenizer.decode(batch[i].example.source) + "/" + tokenizer.decode(answers[i]) +
                    (answers[i] == right ? "  right" : "  wrong: " + tokenizer.decode(right)));
  }
  return lines;
}

}  // namespace sinkhorn
