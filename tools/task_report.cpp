#include "tools/task_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "models/generate.h"

namespace sinkhorn {
namespace {

std::vector<PlacedExample> drawn(const Task& task, std::uint64_t seed, std::int64_t length, std::int64_t first,
                                 std::int64_t count) {
  std::vector<PlacedExample> examples;
  for (std::int64_t i = 0; i < count; ++i)
    examples.push_back(task_example(task, {.seed = seed, .stream = TaskStream::evaluation, .step = length, .row = first + i},
                                    length, length, task.input_length(length), /*stride=*/0));
  return examples;
}

/// The likeliest token at each position that counts, row by row.
std::vector<std::vector<std::int32_t>> forced_answers(const SinkhornTransformerLM& model, const Batch& batch) {
  const std::vector<double> logits = padded(model, Scope{}, batch.inputs, batch.mask).value.to_vector();
  const std::int64_t rows = batch.inputs.shape()[0], slots = batch.inputs.shape()[1],
                     tokens = model.config().num_tokens;
  std::vector<std::vector<std::int32_t>> answers(static_cast<std::size_t>(rows));
  for (std::int64_t at = 0; at < rows * slots; ++at) {
    if (!batch.counted.data<bool>()[at]) continue;
    const auto first = logits.begin() + at * tokens;
    answers[std::size_t(at / slots)].push_back(std::int32_t(std::max_element(first, first + tokens) - first));
  }
  return answers;
}

std::vector<std::vector<std::int32_t>> generated_answers(const SinkhornTransformerLM& model,
                                                         const std::vector<PlacedExample>& examples) {
  std::vector<std::vector<std::int32_t>> prompts;
  std::size_t longest = 0;
  for (const auto& [example, offset] : examples) {
    prompts.push_back(example.source);
    prompts.back().push_back(Task::separator);
    longest = std::max(longest, example.target.size() + 1);
  }
  return generate(model, prompts, std::int64_t(longest), {.temperature = 0, .end_token = Task::end}, Rng(0));
}

}  // namespace

TaskScore score_task(const Task& task, const SinkhornTransformerLM& model, std::uint64_t seed, std::int64_t length,
                     std::int64_t examples, std::int64_t batch_size) {
  TaskScore score{.length = length, .forced = {}, .generated = {}};
  for (std::int64_t first = 0; first < examples; first += batch_size) {
    const auto batch = drawn(task, seed, length, first, std::min(batch_size, examples - first));
    const auto forced = forced_answers(model, to_batch(batch, task.input_length(length)));
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
    lines.push_back(fmt::format("length {:>3}, {:<15} exact match {:5.1f} %, token accuracy {:5.1f} %, edit distance {:.3f}",
                                score.length, std::string(how) + ":", 100 * s->exact_match(), 100 * s->token_accuracy(),
                                s->edit_distance()));
  return lines;
}

std::vector<std::string> answer_lines(const Task& task, const SinkhornTransformerLM& model, std::uint64_t seed,
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
