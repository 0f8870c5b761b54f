#include <fmt/format.h>

#include <limits>

#include "autograd/ops/matmul.h"
#include "notebooks/kit/grid.h"
#include "notebooks/lessons/22_cuda_matmul/exercise.h"

namespace sinkhorn::lesson {
namespace {

using emulator::Array;
using emulator::Counters;
using lessons::Budget;
using lessons::whole;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Sizes {
  std::int64_t m, n, k;
};

std::string named(const char* kernel, const Sizes& s) {
  return fmt::format("{} of ({}, {}) and ({}, {})", kernel, s.m, s.k, s.k, s.n);
}

template <class T>
Array<T> on_grid(const Tensor& x) {
  const auto values = x.span<T>();
  return Array<T>(std::vector<T>(values.begin(), values.end()));
}

void check_tiled(lessons::Checks& checks, const Sizes& s, const Rng& rng) {
  const std::string where = named("tiled_matmul", s);
  const Tensor a = uniform(rng.split(0), {s.m, s.k}, -1, 1), b = uniform(rng.split(1), {s.k, s.n}, -1, 1);
  const Array<float> lhs = on_grid<float>(a), rhs = on_grid<float>(b), out(s.m * s.n, kNaN);
  checks.attempt(where, [&] {
    constexpr std::int64_t tile = TiledMatmul::kTile;
    const std::int64_t down = cuda::pieces(s.m, tile), across = cuda::pieces(s.n, tile), deep = cuda::pieces(s.k, tile);
    const Counters c = lessons::counted("tiled_matmul", down * across, TiledMatmul::kThreads, TiledMatmul::kSharedBytes,
                                        TiledMatmul{s.m, s.n, s.k, lhs.on_device(), rhs.on_device(), out.on_device()});
    checks.near(where + ": values", Tensor::from(out.to_host(), {s.m, s.n}), matmul(Var(a), Var(b)).value, 1e-5);
    // A warp's request is two rows of 16 neighbours, at most 3 sectors each; at edges its lanes get out of step, and a
    // few more.
    constexpr std::int64_t request = 8, warps = TiledMatmul::kThreads / cuda::kWarp;
    Budget()
        .exactly("elements read", c.global_reads.accesses, a.count() * across + b.count() * down)
        .exactly("elements written", c.global_writes.accesses, s.m * s.n)
        .at_most("barriers", c.barriers, 2 * deep * down * across)
        .at_most("shared reads", c.shared_reads.accesses, 2 * tile * TiledMatmul::kThreads * deep * down * across)
        .at_most("sectors", c.sectors, (2 * deep + 1) * warps * request * down * across)
        .report(checks, where + ": counts");
  });
}

void check_mma(lessons::Checks& checks, const Sizes& s, const Rng& rng) {
  const std::string where = named("mma_matmul", s);
  const Tensor a = uniform(rng.split(0), {s.m, s.k}, -1, 1, DType::bf16);
  const Tensor b = uniform(rng.split(1), {s.k, s.n}, -1, 1, DType::bf16);
  const Array<bf16> lhs = on_grid<bf16>(a), rhs = on_grid<bf16>(b);
  const Array<float> out(s.m * s.n, kNaN);
  checks.attempt(where, [&] {
    const std::int64_t down = s.m / 16, across = s.n / 8;
    const Counters c = lessons::counted("mma_matmul", down * across, cuda::kWarp, 0,
                                        MmaMatmul{s.m, s.n, s.k, lhs.on_device(), rhs.on_device(), out.on_device()});
    checks.near(where + ": values", Tensor::from(out.to_host(), {s.m, s.n}),
                matmul(Var(a.to(DType::f32)), Var(b.to(DType::f32))).value, 1e-5);
    Budget()
        .exactly("elements read", c.global_reads.accesses, a.count() * across + b.count() * down)
        .exactly("elements written", c.global_writes.accesses, s.m * s.n)
        .exactly("products by mma", c.shuffles / kMmaShuffles, s.k / 16 * down * across)
        .report(checks, where + ": counts");
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    const auto size = [&](std::uint32_t tag, std::int64_t low, std::int64_t high) {
      return whole(rng.split(tag), low, high);
    };
    // Ragged in every direction; smaller than a tile; a narrow one.
    check_tiled(checks, {16 + size(0, 1, 15), 32 + size(1, 1, 15), 16 + size(2, 1, 15)}, rng.split(10));
    check_tiled(checks, {size(3, 1, 9), size(4, 10, 15), size(5, 33, 47)}, rng.split(11));
    check_tiled(checks, {size(6, 33, 40), size(7, 1, 5), size(8, 2, 15)}, rng.split(12));
    check_mma(checks, {16 * size(20, 1, 2), 8 * size(21, 2, 3), 16 * size(22, 2, 3)}, rng.split(23));
    check_mma(checks, {48, 8, 16}, rng.split(24));
  }
}

}  // namespace sinkhorn::lesson
