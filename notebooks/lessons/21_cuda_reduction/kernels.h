// The kernels that the walk-through of this lesson runs and shows.
#pragma once
#include "cuda/launch.h"

namespace sinkhorn::lessons::lesson_21_cuda_reduction {

using cuda::Global;
using cuda::Shared;
using cuda::Thread;

// y = sum of the block's row, as wide as the block has threads: a power of two.
struct TreeSum {
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    const Shared<float> s = t.shared<float>(t.size());
    s[t.index()] = x[t.block() * t.size() + t.index()];
    t.sync();
    for (int half = t.size() / 2; half > 0; half /= 2) {
      if (t.index() < half) s[t.index()] += s[t.index() + half];
      t.sync();
    }
    if (t.index() == 0) y[t.block()] = s[0];
  }
};

// The same without the barrier in the loop.
struct RacingSum {
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    const Shared<float> s = t.shared<float>(t.size());
    s[t.index()] = x[t.block() * t.size() + t.index()];
    t.sync();
    for (int half = t.size() / 2; half > 0; half /= 2)
      if (t.index() < half) s[t.index()] += s[t.index() + half];
    t.sync();
    if (t.index() == 0) y[t.block()] = s[0];
  }
};

// The same with the barrier inside the `if`.
struct BranchingSum {
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    const Shared<float> s = t.shared<float>(t.size());
    s[t.index()] = x[t.block() * t.size() + t.index()];
    t.sync();
    for (int half = t.size() / 2; half > 0; half /= 2)
      if (t.index() < half) {
        s[t.index()] += s[t.index() + half];
        t.sync();
      }
    if (t.index() == 0) y[t.block()] = s[0];
  }
};

// What lies in shared memory after each step of the tree over the first `count` elements: (steps + 1, count).
struct TreeSteps {
  int count;
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    const Shared<float> s = t.shared<float>(count);
    if (t.index() < count) s[t.index()] = x[t.index()];
    std::int64_t row = 0;
    for (int half = count; half > 0; half /= 2) {
      if (half < count && t.index() < half) s[t.index()] += s[t.index() + half];
      if (t.index() < count) y[row * count + t.index()] = s[t.index()];
      ++row;
      t.sync();
    }
  }
};

// What each lane holds before and after each shuffle with masks count / 2, .., 2, 1: (steps + 1, 32).
struct ButterflySteps {
  int count;
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    float sum = x[t.lane()];
    std::int64_t row = 0;
    y[t.lane()] = sum;
    for (int mask = count / 2; mask > 0; mask /= 2) {
      sum += t.shuffle_xor(sum, mask);
      y[++row * cuda::kWarp + t.lane()] = sum;
    }
  }
};

// y = sum of the block's row: lanes by shuffles, warps by shared memory.
struct WarpsThenBlock {
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    const Shared<float> scratch = t.shared<float>(t.warps());
    float sum = x[t.block() * t.size() + t.index()];
    for (int mask = cuda::kWarp / 2; mask > 0; mask /= 2) sum += t.shuffle_xor(sum, mask);
    if (t.lane() == 0) scratch[t.warp()] = sum;
    t.sync();
    if (t.index() != 0) return;
    sum = 0;
    for (int warp = 0; warp < t.warps(); ++warp) sum += scratch[warp];
    y[t.block()] = sum;
  }
};

// Two sums after each other in one scratch, and no barrier between them.
struct SumTwice {
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    const Shared<float> scratch = t.shared<float>(t.warps());
    for (int round = 0; round < 2; ++round) {
      float sum = x[t.index()];
      for (int mask = cuda::kWarp / 2; mask > 0; mask /= 2) sum += t.shuffle_xor(sum, mask);
      if (t.lane() == 0) scratch[t.warp()] = sum;
      t.sync();
      sum = 0;
      for (int warp = 0; warp < t.warps(); ++warp) sum += scratch[warp];
      if (t.index() == 0) y[round] = sum;
    }
  }
};

// Transposes a matrix (size, size), a multiple of 32, tile by tile: one block of one warp a tile. Rows are read and
// rows are written; the corner is turned in shared memory.
struct TransposeTiles {
  std::int64_t size;
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    constexpr std::int64_t kTile = 32, kStride = kTile + 1;
    const Shared<float> tile = t.shared<float>(kTile * kStride);
    const std::int64_t across = size / kTile;
    const std::int64_t row = t.block() / across * kTile;
    const std::int64_t column = t.block() % across * kTile;
    for (std::int64_t r = 0; r < kTile; ++r) {
      const std::int64_t from = (row + r) * size + column;
      tile[r * kStride + t.lane()] = x[from + t.lane()];
    }
    t.sync();
    for (std::int64_t r = 0; r < kTile; ++r) {
      const std::int64_t to = (column + r) * size + row;
      y[to + t.lane()] = tile[t.lane() * kStride + r];
    }
  }
};

}  // namespace sinkhorn::lessons::lesson_21_cuda_reduction
