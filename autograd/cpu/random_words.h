// Philox words in bulk: the blocks of a tile are computed side by side, so that the rounds vectorise.
#pragma once
#include <algorithm>

#include "autograd/rng.h"

namespace sinkhorn::cpu {

/// Calls body(i, n, words) for runs of n words i .. i+n-1 of the stream that cover begin .. end-1; words[j] is
/// bits.word(i + j).
template <class Body>
void for_random_words(RandomBits bits, std::int64_t begin, std::int64_t end, Body body) {
  constexpr std::int64_t kBlocks = 64;
  std::uint32_t words[4 * kBlocks];
  for (std::int64_t first = begin / 4; 4 * first < end; first += kBlocks) {
    for (std::int64_t j = 0; j < kBlocks; ++j) {
      const std::uint64_t block = std::uint64_t(first + j);
      const Word4 word = philox({std::uint32_t(block), std::uint32_t(block >> 32), bits.step, 0},
                                std::uint32_t(bits.key), std::uint32_t(bits.key >> 32));
      for (int k = 0; k < 4; ++k) words[4 * j + k] = word[k];
    }
    const std::int64_t from = std::max(begin, 4 * first), to = std::min(end, 4 * (first + kBlocks));
    body(from, to - from, words + (from - 4 * first));
  }
}

}  // namespace sinkhorn::cpu
