// Wrong: no barrier after the products: a fast warp loads the next tile while a slow one still reads this one.
#include "notebooks/lessons/22_cuda_matmul/exercise.h"

namespace sinkhorn::lesson {

void TiledMatmul::operator()(Thread& t) const {
  const Shared<float> tile_a = t.shared<float>(kTile * kTile), tile_b = t.shared<float>(kTile * kTile);
  const std::int64_t across = cuda::pieces(n, kTile), r = t.index() / kTile, s = t.index() % kTile;
  const std::int64_t row = t.block() / across * kTile + r, column = t.block() % across * kTile + s;
  float sum = 0;
  for (std::int64_t k0 = 0; k0 < k; k0 += kTile) {
    tile_a[t.index()] = row < m && k0 + s < k ? a[row * k + k0 + s] : 0.0f;
    tile_b[t.index()] = k0 + r < k && column < n ? b[(k0 + r) * n + column] : 0.0f;
    t.sync();
    for (std::int64_t i = 0; i < kTile; ++i) sum += tile_a[r * kTile + i] * tile_b[i * kTile + s];
  }
  if (row < m && column < n) c[row * n + column] = sum;
}

void MmaMatmul::operator()(Thread& t) const {
  const std::int64_t row0 = t.block() / (n / 8) * 16, column0 = t.block() % (n / 8) * 8;
  const int g = t.lane() / 4, q = t.lane() % 4;
  FragmentA mine_a;
  FragmentB mine_b;
  FragmentC mine_c;
  for (std::int64_t k0 = 0; k0 < k; k0 += 16) {
    for (int i = 0; i < 8; ++i) mine_a[i] = a[(row0 + g + 8 * (i / 2 % 2)) * k + k0 + 2 * q + i % 2 + 8 * (i / 4)];
    for (int i = 0; i < 4; ++i) mine_b[i] = b[(k0 + 2 * q + i % 2 + 8 * (i / 2)) * n + column0 + g];
    mma(t, mine_a, mine_b, mine_c);
  }
  for (int i = 0; i < 4; ++i) c[(row0 + g + 8 * (i / 2)) * n + column0 + 2 * q + i % 2] = mine_c[i];
}

}  // namespace sinkhorn::lesson
