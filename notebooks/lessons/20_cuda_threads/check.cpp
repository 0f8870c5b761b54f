#include <fmt/format.h>

#include <limits>

#include "notebooks/kit/grid.h"
#include "notebooks/lessons/20_cuda_threads/exercise.h"

namespace sinkhorn::lesson {
namespace {

using lessons::Budget;
using lessons::counted;
using lessons::random_floats;
using lessons::whole;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

Tensor tensor(const std::vector<float>& values) { return Tensor::from(values, {std::int64_t(values.size())}); }

void check_scale_and_add(lessons::Checks& checks, Rng rng) {
  const float a = float(whole(rng.split(0), 2, 9)), b = float(whole(rng.split(1), 1, 9));
  struct Grid {
    std::int64_t blocks;
    int threads;
    std::int64_t count;
  };
  const Grid grids[] = {{1, 32, whole(rng.split(2), 1, 31)},     // fewer elements than threads
                        {4, 64, whole(rng.split(3), 193, 255)},  // a ragged last block
                        {3, 96, whole(rng.split(4), 600, 1500)}};
  for (const Grid& grid : grids) {
    const std::int64_t blocks = grid.blocks, count = grid.count;
    const int threads = grid.threads;
    const std::string where = fmt::format("scale_and_add of {} elements, {} x {} threads", count, blocks, threads);
    const std::vector<float> x = random_floats(rng.split(5), count);
    const emulator::Array<float> in(x), out(count, kNaN);
    checks.attempt(where, [&] {
      const emulator::Counters c = counted("scale_and_add", blocks, threads, 0,
                                           ScaleAndAdd{count, blocks, a, b, in.on_device(), out.on_device()});
      std::vector<float> want;
      want.reserve(x.size());
      for (const float value : x) want.push_back(a * value + b);
      checks.near(where + ": values", tensor(out.to_host()), tensor(want), 1e-6);
      Budget()
          .exactly("elements read", c.global_reads.accesses, count)
          .exactly("elements written", c.global_writes.accesses, count)
          .at_most("sectors", c.sectors, 2 * cuda::pieces(count, 8))
          .report(checks, where + ": counts");
    });
  }
}

void check_gather_rows(lessons::Checks& checks, Rng rng) {
  const std::int64_t from_rows = whole(rng.split(0), 4, 9), rows = whole(rng.split(1), 5, 12);
  for (const int threads : {32, 64}) {
    const std::int64_t width = whole(rng.split(2), 5, 20) * 16 + whole(rng.split(3), 1, 15);
    const std::string where = fmt::format("gather_rows of {} rows of {}, {} threads", rows, width, threads);
    const std::vector<float> x = random_floats(rng.split(4), from_rows * width);
    std::vector<std::int32_t> picks;
    picks.reserve(std::size_t(rows));
    for (std::int64_t r = 0; r < rows; ++r)
      picks.push_back(std::int32_t(whole(rng.split(5).split(std::uint32_t(r)), 0, from_rows - 1)));
    const std::int64_t nothing = whole(rng.split(6), 0, rows - 1);
    picks[std::size_t(nothing)] = -1;
    const emulator::Array<std::int32_t> chosen(picks);
    const emulator::Array<float> in(x), out(rows * width, kNaN);
    checks.attempt(where, [&] {
      const emulator::Counters c = counted("gather_rows", rows, threads, 0,
                                           GatherRows{width, chosen.on_device(), in.on_device(), out.on_device()});
      std::vector<float> want(std::size_t(rows * width), 0.0f);
      for (std::int64_t r = 0; r < rows; ++r) {
        if (picks[std::size_t(r)] < 0) continue;
        const float* row = x.data() + picks[std::size_t(r)] * width;
        std::copy(row, row + width, want.begin() + r * width);
      }
      checks.near(where + ": values", tensor(out.to_host()), tensor(want), 0);
      // A request of 32 neighbours that begin anywhere is at most 5 sectors; a warp's read of one pick is 1.
      const std::int64_t requests = cuda::pieces(width, 32);
      Budget()
          .exactly("elements written", c.global_writes.accesses, rows * width)
          .at_most("elements read, picks included", c.global_reads.accesses, (rows - 1) * width + rows * threads)
          .at_most("sectors", c.sectors, rows * (threads / 32) + (2 * rows - 1) * requests * 5)
          .report(checks, where + ": counts");
    });
  }
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    check_scale_and_add(checks, rng.split(0));
    check_gather_rows(checks, rng.split(1));
  }
}

}  // namespace sinkhorn::lesson
