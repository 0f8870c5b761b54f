#include "tools/task_batches.h"

#include <algorithm>

namespace sinkhorn {

PlacedExample task_example(const Task& task, const TaskPlace& place, std::int64_t shortest, std::int64_t longest,
                           const TaskRows& rows) {
  const Rng stream = Rng(place.seed).split(std::uint32_t(place.stream)).split(std::uint32_t(place.micro_step));
  constexpr int words_of_a_row = 24;  // the logarithm: far more than an example needs
  Draws draws({stream.key(), std::uint32_t(place.step)}, std::uint64_t(place.row) << words_of_a_row);
  const std::int64_t length = shortest + draws.below(longest - shortest + 1);
  PlacedExample placed{task.draw(draws, length), 0};
  const std::int64_t room = rows.slots - task.input_length(length, rows.encoder_decoder);
  if (rows.stride > 0 && room > 0) placed.offset = draws.below(room / rows.stride + 1) * rows.stride;
  return placed;
}

namespace {

/// Puts tokens into a row of ids and marks them in its mask.
void put(const MaskedIds& rows, std::size_t row, std::int64_t offset, const std::vector<std::int32_t>& tokens) {
  const std::int64_t slots = rows.ids.shape()[1], count = std::int64_t(tokens.size());
  if (offset + count > slots) fail("task batch: an example of ", count, " tokens at ", offset, " exceeds ", slots);
  const std::int64_t begin = std::int64_t(row) * slots + offset;
  std::copy(tokens.begin(), tokens.end(), rows.ids.data<std::int32_t>() + begin);
  std::fill_n(rows.mask.data<bool>() + begin, count, true);
}

}  // namespace

Batch to_batch(const std::vector<PlacedExample>& examples, const TaskRows& rows) {
  std::int64_t longest_source = 0, longest = 0;
  for (const auto& [example, offset] : examples) {
    const auto source = std::int64_t(example.source.size()), target = std::int64_t(1 + example.target.size());
    longest_source = std::max(longest_source, source);
    longest = std::max(longest, rows.encoder_decoder ? target : source + target);
  }
  const auto empty = [&](std::int64_t fitting) {
    const Shape shape{std::int64_t(examples.size()), rows.stride > 0 ? rows.slots : fitting};
    return MaskedIds{Tensor::zeros(shape, DType::i32), Tensor::zeros(shape, DType::boolean)};
  };
  const MaskedIds sources = rows.encoder_decoder ? empty(longest_source) : MaskedIds{}, inputs = empty(longest),
                  targets = empty(longest);
  for (std::size_t row = 0; row < examples.size(); ++row) {
    const auto& [example, offset] = examples[row];
    std::vector<std::int32_t> read, follows = example.target;
    if (rows.encoder_decoder) {
      put(sources, row, offset, example.source);
    } else {
      read = example.source;
    }
    const std::int64_t asked = offset + std::int64_t(read.size());
    read.push_back(Task::separator);
    for (const std::int32_t id : example.target) read.push_back(id);  // g++ 13 sees an overflow in insert()
    follows.push_back(Task::end);
    put(inputs, row, offset, read);
    put(targets, row, asked, follows);
  }
  return {inputs.ids, targets.ids, targets.mask, inputs.mask, sources};
}

}  // namespace sinkhorn
