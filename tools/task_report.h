// How well a model does a task: its answers scored, teacher-forced and generated, at one length.
#pragma once
#include "tools/sequence_score.h"
#include "tools/task_batches.h"

namespace sinkhorn {

/// Teacher-forced: each token of the answer is the likeliest after the right ones before it. Generated: after the
/// model's own; where no END comes, one token more than the answer has. A model can be good at the first alone.
struct TaskScore {
  std::int64_t length = 0;
  SequenceScore forced, generated;
};

/// What a model generates for each source: up to `count` tokens, the last of them an END if it comes.
std::vector<std::vector<std::int32_t>> answer(const SequenceModel& model,
                                              const std::vector<std::vector<std::int32_t>>& sources, std::int64_t count,
                                              const Sampling& sampling, const Rng& rng, const OnToken& on_token = {});

/// Scores on `examples` fresh examples of one length, the same at every call.
TaskScore score_task(const Task& task, const SequenceModel& model, std::uint64_t seed, std::int64_t length,
                     std::int64_t examples, std::int64_t batch_size);

/// "length 32  generated     exact match  98.4 %  token accuracy  99.1 %  edit distance 0.004", and such a line for
/// teacher-forced.
std::vector<std::string> to_lines(const TaskScore& score);

/// One line for each of a few examples: source, the model's answer, and what would have been right.
std::vector<std::string> answer_lines(const Task& task, const SequenceModel& model, std::uint64_t seed,
                                      std::int64_t length, std::int64_t examples);

}  // namespace sinkhorn
