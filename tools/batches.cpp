#include "tools/batches.h"

#include "autograd/error.h"
#include "autograd/rng.h"

namespace sinkhorn {
namespace {

constexpr std::uint32_t kDataStream = 0xDA7A;  // apart from the model's streams, whose tags are small

template <class Place>
Windows cut(const Tokens& text, std::int64_t batch, std::int64_t seq_len, Place place) {
  Windows windows{batch, seq_len + 1, {}};
  const std::int64_t places = text.size() - seq_len;
  if (places < 1) fail("batches: a text of ", text.size(), " tokens has no window of ", seq_len + 1);
  windows.tokens.resize(std::size_t(batch * windows.columns));
  for (std::int64_t row = 0; row < batch; ++row)
    text.copy(place(row, places), windows.columns, windows.tokens.data() + row * windows.columns);
  return windows;
}

}  // namespace

std::vector<std::int32_t> Windows::part(std::int64_t first) const {
  std::vector<std::int32_t> result;
  result.reserve(std::size_t(rows * (columns - 1)));
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto begin = tokens.begin() + row * columns + first;
    result.insert(result.end(), begin, begin + columns - 1);
  }
  return result;
}

Windows training_windows(const Tokens& text, std::int64_t batch, std::int64_t seq_len, std::uint64_t seed,
                         std::int64_t step, std::int64_t micro_step) {
  const RandomBits random{Rng(seed).split(kDataStream).split(std::uint32_t(micro_step)).key(), std::uint32_t(step)};
  return cut(text, batch, seq_len, [&](std::int64_t row, std::int64_t places) {
    const std::uint64_t word =
        random.word(std::uint64_t(2 * row)) | std::uint64_t(random.word(std::uint64_t(2 * row + 1))) << 32;
    return std::int64_t(word % std::uint64_t(places));
  });
}

Windows validation_windows(const Tokens& text, std::int64_t batch, std::int64_t seq_len, std::int64_t index,
                           std::int64_t count) {
  return cut(text, batch, seq_len, [&](std::int64_t row, std::int64_t places) {
    const std::int64_t which = index * batch + row, all = count * batch;
    return all > 1 ? (places - 1) * which / (all - 1) : 0;
  });
}

}  // namespace sinkhorn
