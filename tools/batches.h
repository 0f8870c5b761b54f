// Which windows of the text a step sees: a pure function of seed and step, so that resuming needs only the step.
#pragma once
#include <cstdint>
#include <vector>

#include "tools/tokens.h"

namespace sinkhorn {

/// Rows of tokens, row-major (rows, columns): inputs are columns 0 .. columns-2, targets columns 1 .. columns-1.
struct Windows {
  std::int64_t rows = 0, columns = 0;
  std::vector<std::int32_t> tokens;

  std::vector<std::int32_t> inputs() const { return part(0); }
  std::vector<std::int32_t> targets() const { return part(1); }

 private:
  std::vector<std::int32_t> part(std::int64_t first) const;
};

/// `batch` windows of seq_len + 1 tokens at uniformly drawn places, for one of the batches accumulated in a step.
/// Throws Error if the text is shorter than a window.
Windows training_windows(const Tokens& text, std::int64_t batch, std::int64_t seq_len, std::uint64_t seed,
                         std::int64_t step, std::int64_t micro_step);
/// Batch `index` of `count`: windows at evenly spaced places, the same at every evaluation.
Windows validation_windows(const Tokens& text, std::int64_t batch, std::int64_t seq_len, std::int64_t index,
                           std::int64_t count);

}  // namespace sinkhorn
