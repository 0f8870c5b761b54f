// Which examples of a task a step sees, and how they stand in a batch.
#pragma once
#include "tools/sequence_model.h"
#include "tools/task.h"

namespace sinkhorn {

/// Streams of examples that share no random number.
enum class TaskStream : std::uint32_t { training = 0x7A50, validation, evaluation };

/// A row of a batch, as a function of these alone. The length is uniform on [shortest, longest].
struct TaskPlace {
  std::uint64_t seed = 0;
  TaskStream stream = TaskStream::training;
  std::int64_t step = 0, micro_step = 0, row = 0;
};
struct PlacedExample {
  TaskExample example;
  std::int64_t offset = 0;  // slots in front of it
};
/// Rows of a decoder-only model hold `source SEPARATOR target`; those of an encoder `source` and of its decoder
/// `SEPARATOR target`. Examples stand at the front of rows as long as the longest needs; if `stride` is above 0, at
/// uniformly drawn multiples of it in rows of `slots`.
struct TaskRows {
  bool encoder_decoder = false;
  std::int64_t slots = 0, stride = 0;
};
PlacedExample task_example(const Task& task, const TaskPlace& place, std::int64_t shortest, std::int64_t longest,
                           const TaskRows& rows);

/// The masks are true where an example stands. What counts is to predict target and END. Throws Error for an example
/// that does not fit.
Batch to_batch(const std::vector<PlacedExample>& examples, const TaskRows& rows);

}  // namespace sinkhorn
