// Which examples of a task a step sees, and how they stand in a batch: `source SEPARATOR target END` in each row.
#pragma once
#include "tools/task.h"
#include "tools/trainer.h"

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
/// `slots` is the length of the row that the example is to stand in. It stands at its front, or, if `stride` is above 0,
/// at a uniformly drawn multiple of it.
PlacedExample task_example(const Task& task, const TaskPlace& place, std::int64_t shortest, std::int64_t longest,
                           std::int64_t slots, std::int64_t stride);

/// Rows of `slots` tokens. The mask is true where an example stands; the tokens that count are those of target and END.
/// Throws Error for an example that does not fit.
Batch to_batch(const std::vector<PlacedExample>& examples, std::int64_t slots);

}  // namespace sinkhorn
