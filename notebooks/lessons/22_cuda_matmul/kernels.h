// The kernels that the walk-through of this lesson runs and shows.
#pragma once
#include "cuda/launch.h"
#include "notebooks/lessons/22_cuda_matmul/exercise.h"

namespace sinkhorn::lessons::lesson_22_cuda_matmul {

using cuda::Global;
using cuda::Shared;
using cuda::Thread;

// C (m, n) = A (m, k) B (k, n), one thread an element of C.
struct NaiveMatmul {
  std::int64_t m, n, k;
  Global<const float> a, b;
  Global<float> c;
  void operator()(Thread& t) const {
    const std::int64_t i = t.block() * t.size() + t.index();
    if (i >= m * n) return;
    const std::int64_t row = i / n, column = i % n;
    float sum = 0;
    for (std::int64_t j = 0; j < k; ++j) {
      sum += a[row * k + j] * b[j * n + column];
    }
    c[i] = sum;
  }
};

// The same by tiles of kTile x kTile in shared memory, for sizes that are multiples of kTile. A block makes one tile of
// C, a thread kEach elements of it that stand below each other.
template <int kTile>
struct TiledMatmul {
  static constexpr int kThreads = kTile * kTile < cuda::kMaxThreads ? kTile * kTile : cuda::kMaxThreads;
  static constexpr int kEach = kTile * kTile / kThreads, kStep = kThreads / kTile;
  static constexpr std::size_t kSharedBytes = 2 * kTile * kTile * sizeof(float);
  std::int64_t m, n, k;
  Global<const float> a, b;
  Global<float> c;
  void operator()(Thread& t) const {
    const Shared<float> tile_a = t.shared<float>(kTile * kTile), tile_b = t.shared<float>(kTile * kTile);
    const std::int64_t across = n / kTile, row0 = t.block() / across * kTile, column0 = t.block() % across * kTile;
    const int r = t.index() / kTile, column = t.index() % kTile;
    float sums[kEach] = {};
    for (std::int64_t k0 = 0; k0 < k; k0 += kTile) {
      for (int e = 0, at = t.index(); e < kEach; ++e, at += kThreads) {
        tile_a[at] = a[(row0 + r + e * kStep) * k + k0 + column];
        tile_b[at] = b[(k0 + r + e * kStep) * n + column0 + column];
      }
      t.sync();
      for (int i = 0; i < kTile; ++i) {
        const float from_b = tile_b[i * kTile + column];
        for (int e = 0; e < kEach; ++e) sums[e] += tile_a[(r + e * kStep) * kTile + i] * from_b;
      }
      t.sync();
    }
    for (int e = 0; e < kEach; ++e) c[(row0 + r + e * kStep) * n + column0 + column] = sums[e];
  }
};

// Which lane holds which element: lanes of A (16, 16), of B (16, 8), of C (16, 8), found by writing one's number there.
struct FragmentOwners {
  Global<float> a, b, c;
  void operator()(Thread& t) const {
    const int g = t.lane() / 4, q = t.lane() % 4;
    for (int i = 0; i < 8; ++i) a[(g + 8 * (i / 2 % 2)) * 16 + 2 * q + i % 2 + 8 * (i / 4)] = float(t.lane());
    for (int i = 0; i < 4; ++i) b[(2 * q + i % 2 + 8 * (i / 2)) * 8 + g] = float(t.lane());
    for (int i = 0; i < 4; ++i) c[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2] = float(t.lane());
  }
};

// C (16, 8) = A (16, 16) B (16, 8) by one mma.
struct OneMma {
  Global<const bf16> a, b;
  Global<float> c;
  void operator()(Thread& t) const {
    const int g = t.lane() / 4, q = t.lane() % 4;
    lesson::FragmentA mine_a;
    lesson::FragmentB mine_b;
    lesson::FragmentC mine_c;
    for (int i = 0; i < 8; ++i) mine_a[i] = a[(g + 8 * (i / 2 % 2)) * 16 + 2 * q + i % 2 + 8 * (i / 4)];
    for (int i = 0; i < 4; ++i) mine_b[i] = b[(2 * q + i % 2 + 8 * (i / 2)) * 8 + g];
    lesson::mma(t, mine_a, mine_b, mine_c);
    for (int i = 0; i < 4; ++i) c[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2] = mine_c[i];
  }
};

}  // namespace sinkhorn::lessons::lesson_22_cuda_matmul
