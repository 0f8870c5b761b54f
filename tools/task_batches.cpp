#include "tools/task_batches.h"

#include <algorithm>

namespace sinkhorn {

PlacedExample task_example(const Task& task, const TaskPlace& place, std::int64_t shortest, std::int64_t longest,
                           std::int64_t slots, std::int64_t stride) {
  const Rng stream = Rng(place.seed).split(std::uint32_t(place.stream)).split(std::uint32_t(place.micro_step));
  constexpr int words_of_a_row = 24;  // the logarithm: far more than an example needs
  Draws draws({stream.key(), std::uint32_t(place.step)}, std::uint64_t(place.row) << words_of_a_row);
  const std::int64_t length = shortest + draws.below(longest - shortest + 1);
  const std::int64_t room = slots - task.input_length(length);
  const std::int64_t offset = stride > 0 && room > 0 ? draws.below(room / stride + 1) * stride : 0;
  return {task.draw(draws, length), offset};
}

Batch to_batch(const std::vector<PlacedExample>& examples, std::int64_t slots) {
  const Shape shape{std::int64_t(examples.size()), slots};
  Batch batch{Tensor::zeros(shape, DType::i32), Tensor::zeros(shape, DType::i32),
              Tensor::zeros(shape, DType::boolean), Tensor::zeros(shape, DType::boolean)};
  for (std::size_t row = 0; row < examples.size(); ++row) {
    const auto& [example, offset] = examples[row];
    std::vector<std::int32_t> tokens = example.source;
    tokens.push_back(Task::separator);
    tokens.insert(tokens.end(), example.target.begin(), example.target.end());
    const std::int64_t count = std::int64_t(tokens.size()), begin = std::int64_t(row) * slots + offset;
    if (offset + count > slots) fail("task batch: an example of ", count, " tokens at ", offset, " exceeds ", slots);
    std::copy(tokens.begin(), tokens.end(), batch.inputs.data<std::int32_t>() + begin);
    tokens.push_back(Task::end);
    std::copy(tokens.begin() + 1, tokens.end(), batch.targets.data<std::int32_t>() + begin);
    std::fill_n(batch.mask.data<bool>() + begin, count, true);
    const std::int64_t asked = std::int64_t(example.source.size());
    std::fill_n(batch.counted.data<bool>() + begin + asked, count - asked, true);
  }
  return batch;
}

}  // namespace sinkhorn
