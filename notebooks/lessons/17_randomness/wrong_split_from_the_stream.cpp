// Wrong: the key of a part is made of words that the whole draws, too.
#include "notebooks/lessons/17_randomness/exercise.h"

namespace sinkhorn::lesson {

Words philox(Words counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t(0xD2511F53) * counter[0], b = std::uint64_t(0xCD9E8D57) * counter[2];
    counter = {std::uint32_t(b >> 32) ^ counter[1] ^ key0, std::uint32_t(b), std::uint32_t(a >> 32) ^ counter[3] ^ key1,
               std::uint32_t(a)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

std::uint32_t word(const Stream& stream, std::uint64_t i) {
  const std::uint64_t block = i / 4;
  const Words words = philox({std::uint32_t(block), std::uint32_t(block >> 32), stream.step, 0},
                             std::uint32_t(stream.key), std::uint32_t(stream.key >> 32));
  return words[i % 4];
}

Stream split(const Stream& stream, std::uint32_t tag) {
  const Words words = philox({tag, 0, 0, 0}, std::uint32_t(stream.key), std::uint32_t(stream.key >> 32));
  return {words[0] | std::uint64_t(words[1]) << 32, stream.step};
}

float uniform(std::uint32_t word) { return (float(word >> 9) + 0.5f) / 8388608.0f; }

Tensor dropout(const Tensor& x, std::uint64_t first, double p, const Stream& stream) {
  const float factor = float(1 / (1 - p));
  Tensor y = x.like();
  for (std::size_t j = 0; j < std::size_t(x.count()); ++j)
    y.span<float>()[j] = uniform(word(stream, first + j)) >= p ? x.span<float>()[j] * factor : 0.0f;
  return y;
}

// The function is linear: what was kept passes its gradient on times the same factor, what was dropped passes nothing.
Tensor dropout_backward(const Tensor& dy, std::uint64_t first, double p, const Stream& stream) {
  return dropout(dy, first, p, stream);
}

}  // namespace sinkhorn::lesson
