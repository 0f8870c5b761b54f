// Two kernels: y = a x + b on any grid, and rows fetched by index. What the exercise is to write.
#pragma once
#include "cuda/launch.h"

namespace sinkhorn::lesson {

using cuda::Global;
using cuda::Thread;

/// y_i = a x_i + b for 0 <= i < count. Launched on `blocks` blocks, whose threads may be fewer than the elements, or
/// more. Each element is read once and written once.
struct ScaleAndAdd {
  std::int64_t count, blocks;
  float a, b;
  Global<const float> x;  // (count)
  Global<float> y;        // (count)
  void operator()(Thread& t) const;
};

/// Row r of y becomes row picks[r] of x, or zeros where picks[r] is -1. Launched with one block a row of y; a row may
/// be wider than the block. A thread reads the pick once; for a pick of -1 nothing else is read.
struct GatherRows {
  std::int64_t width;
  Global<const std::int32_t> picks;  // (rows of y)
  Global<const float> x;             // (rows of x, width)
  Global<float> y;                   // (rows of y, width)
  void operator()(Thread& t) const;
};

}  // namespace sinkhorn::lesson
