// Matrix products by tiles in shared memory and by the tensor core's fragments: what the exercise is to write.
#pragma once
#include "cuda/launch.h"
#include "notebooks/lessons/22_cuda_matmul/mma.h"

namespace sinkhorn::lesson {

using cuda::Global;
using cuda::Shared;

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

/// The same on bf16, with sums and C in f32. m and k are multiples of 16, n of 8. One block of one warp a tile of C, 16
/// x 8, counted along the rows. Products come from mma() alone, one for every 16 of k.
struct MmaMatmul {
  std::int64_t m, n, k;
  Global<const bf16> a, b;
  Global<float> c;
  void operator()(Thread& t) const;
};

}  // namespace sinkhorn::lesson
