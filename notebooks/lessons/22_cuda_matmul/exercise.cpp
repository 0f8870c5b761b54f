// Matrix products by tiles and by fragments. Edit this file, then: sinkhorn lesson verify 22
//
// Matrices lie row after row: A[row][j] of A (m, k) is a[row * k + j].
#include "notebooks/lessons/22_cuda_matmul/exercise.h"

namespace sinkhorn::lesson {

// As it stands each thread reads a whole row of A and a whole column of B from global memory, and it knows nothing of
// edges: it is right where m and n are multiples of 16 and leaves the matrices elsewhere. Yours loads tiles of A and of
// B into shared memory, for every 16 of k.
void TiledMatmul::operator()(Thread& t) const {
  const std::int64_t across = (n + kTile - 1) / kTile;
  const std::int64_t row = t.block() / across * kTile + t.index() / kTile;
  const std::int64_t column = t.block() % across * kTile + t.index() % kTile;
  float sum = 0;
  for (std::int64_t j = 0; j < k; ++j) sum += a[row * k + j] * b[j * n + column];
  c[row * n + column] = sum;
}

// As it stands it takes the first 16 of k alone, and each lane loads the same corner elements instead of its own.
void MmaMatmul::operator()(Thread& t) const {
  const std::int64_t row0 = t.block() / (n / 8) * 16, column0 = t.block() % (n / 8) * 8;
  FragmentA mine_a;
  FragmentB mine_b;
  FragmentC mine_c;
  for (int i = 0; i < 8; ++i) mine_a[i] = a[row0 * k + i];     // which element is a[i] of this lane?
  for (int i = 0; i < 4; ++i) mine_b[i] = b[i * n + column0];  // and b[i]?
  mma(t, mine_a, mine_b, mine_c);
  for (int i = 0; i < 4; ++i) c[(row0 + t.lane() % 16) * n + column0 + i] = mine_c[i];  // and c[i]?
}

}  // namespace sinkhorn::lesson
