// Sums and softmax of rows, one block a row: what the exercise is to write.
#pragma once
#include "cuda/launch.h"

namespace sinkhorn::lesson {

using cuda::Global;
using cuda::Shared;
using cuda::Thread;

/// y_r = sum_c x_rc. One block a row, of any number of warps from 1 to 8; rows may be narrower than the block, or
/// wider.
struct RowSums {
  static constexpr std::size_t kSharedBytes = 1024;  // what it is launched with
  std::int64_t width;
  Global<const float> x;  // (rows, width)
  Global<float> y;        // (rows)
  void operator()(Thread& t) const;
};

/// y_rc = exp(x_rc - m_r) / sum_j exp(x_rj - m_r) with m_r = max_j x_rj. Launched as RowSums. Each element may be read
/// three times.
struct SoftmaxRows {
  static constexpr std::size_t kSharedBytes = 1024;
  std::int64_t width;
  Global<const float> x;  // (rows, width)
  Global<float> y;        // (rows, width)
  void operator()(Thread& t) const;
};

}  // namespace sinkhorn::lesson
