#include "tools/sequence_score.h"

#include <algorithm>
#include <numeric>

namespace sinkhorn {

std::int64_t edit_distance(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b) {
  // row[j]: the distance between what was read of `a` and the first j of `b`.
  std::vector<std::int64_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (const std::int32_t token : a) {
    std::int64_t diagonal = row[0]++;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::int64_t replaced = diagonal + (token != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

void SequenceScore::add(const std::vector<std::int32_t>& predicted, const std::vector<std::int32_t>& right,
                        std::int32_t end) {
  const auto stop = std::find(predicted.begin(), predicted.end(), end);
  const std::vector<std::int32_t> answer(predicted.begin(), stop);
  const std::size_t longer = std::max(answer.size(), right.size());
  if (longer > 0) distance_ += double(sinkhorn::edit_distance(answer, right)) / double(longer);
  exact_ += stop != predicted.end() && answer == right;
  for (std::size_t i = 0; i <= right.size() && i < predicted.size(); ++i)
    right_tokens_ += predicted[i] == (i < right.size() ? right[i] : end);
  tokens_ += std::int64_t(right.size()) + 1;
  ++sequences_;
}

}  // namespace sinkhorn
