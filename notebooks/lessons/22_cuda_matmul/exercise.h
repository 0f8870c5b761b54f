// Matrix products by tiles in shared memory and by the tensor core's fragments: what the exercise is to write.
#pragma once
#include "cuda/launch.h"

namespace sinkhorn::lesson {

using cuda::Global;
using cuda::Shared;
using cuda::Thread;

/// C (m, n) = A (m, k) B (k, n), of any size. One block of 256 threads a tile of C, 16 x 16; tiles are counted along
/// the rows of C, so block 1 stands to the right of block 0. Every element of A and B is read once by each block that
/// needs it.
struct TiledMatmul {
  static constexpr std::int64_t kTile = 16;
  static constexpr int kThreads = 256;
  static constexpr std::size_t kSharedBytes = 4096;  // what it is launched with: room for 1024 floats
  std::int64_t m, n, k;
  Global<const float> a, b;
  Global<float> c;
  void operator()(Thread& t) const;
};

// --- the tensor core's instruction: mma.m16n8k16 for bf16, with sums in f32, on the emulated grid ---

/// What a lane holds of A (16, 16), of B (16, 8), and of C (16, 8). With g = lane / 4 and q = lane % 4:
///   a[i] is A[g + 8 * (i / 2 % 2)][2 q + i % 2 + 8 * (i / 4)]
///   b[i] is B[2 q + i % 2 + 8 * (i / 2)][g]
///   c[i] is C[g + 8 * (i / 2)][2 q + i % 2]
struct FragmentA {
  bf16 x[8];
  bf16& operator[](int i) { return x[i]; }
};
struct FragmentB {
  bf16 x[4];
  bf16& operator[](int i) { return x[i]; }
};
struct FragmentC {
  float x[4] = {};
  float& operator[](int i) { return x[i]; }
};

/// C += A B by one warp; all 32 lanes call it together. A GPU does this in one instruction. Here the lanes pass their
/// fragments around by shuffles, 64 of them.
inline void mma(const Thread& t, FragmentA a, FragmentB b, FragmentC& c) {
  const int g = t.lane() / 4, q = t.lane() % 4;
  float rows[2][16];     // A[g] and A[g + 8]
  float columns[2][16];  // columns 2 q and 2 q + 1 of B
  for (int mask = 0; mask < cuda::kWarp; ++mask) {
    FragmentA other_a = t.shuffle_xor(a, mask);
    FragmentB other_b = t.shuffle_xor(b, mask);
    const int other = t.lane() ^ mask, other_g = other / 4;
    const int k0 = 2 * (other % 4);
    for (int i = 0; i < 8 && other_g == g; ++i) {
      rows[i / 2 % 2][k0 + i % 2 + 8 * (i / 4)] = other_a[i];
    }
    for (int i = 0; i < 4 && other_g / 2 == q; ++i) {
      columns[other_g % 2][k0 + i % 2 + 8 * (i / 2)] = other_b[i];
    }
  }
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 16; ++k) c[i] += rows[i / 2][k] * columns[i % 2][k];
}

/// Shuffles that one mma takes here.
inline constexpr std::int64_t kMmaShuffles = 64;

/// C (m, n) = A (m, k) B (k, n) on bf16, with sums and C in f32. m and k are multiples of 16, n of 8. One block of one
/// warp a tile of C, 16 x 8, counted along the rows. Products come from mma() alone, one for every 16 of k.
struct MmaMatmul {
  std::int64_t m, n, k;
  Global<const bf16> a, b;
  Global<float> c;
  void operator()(Thread& t) const;
};

}  // namespace sinkhorn::lesson
