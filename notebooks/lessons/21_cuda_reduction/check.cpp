#include <fmt/format.h>

#include <limits>

#include "autograd/ops/softmax.h"
#include "notebooks/kit/grid.h"
#include "notebooks/lessons/21_cuda_reduction/exercise.h"

namespace sinkhorn::lesson {
namespace {

using emulator::Array;
using emulator::Counters;
using lessons::Budget;
using lessons::whole;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// A grid and the rows that it works on.
struct Rows {
  std::int64_t count, width;
  int threads;
  std::int64_t warps() const { return threads / cuda::kWarp; }
  // 32 neighbours that begin anywhere lie in at most 5 sectors.
  std::int64_t sectors() const { return 5 * cuda::pieces(width, 32); }
};

// Narrower than one warp, narrower than the block, and wider; with a number of warps that is no power of two.
std::vector<Rows> cases(const Rng& rng) {
  const std::int64_t count = whole(rng.split(0), 2, 5);
  return {{count, whole(rng.split(1), 1, 31), 32},
          {count, whole(rng.split(2), 33, 63), 96},
          {count, whole(rng.split(3), 100, 300), 64},
          {count, whole(rng.split(4), 300, 700), 256},
          {count, whole(rng.split(5), 300, 700), int(32 * whole(rng.split(6), 5, 7))}};
}

std::string named(const char* kernel, const Rows& rows) {
  return fmt::format("{} of {} rows of {}, {} threads", kernel, rows.count, rows.width, rows.threads);
}

// What both kernels must keep to: `reductions` of them, each at most as costly as the library's.
Budget spent(const Rows& rows, const Counters& c, std::int64_t reductions) {
  return Budget()
      .at_most("barriers a block", cuda::pieces(c.barriers, rows.count), 2 * reductions)
      .at_most("shared writes", c.shared_writes.accesses, rows.count * reductions * (rows.warps() + 1))
      .at_most("shared reads", c.shared_reads.accesses, rows.count * reductions * rows.warps() * rows.threads);
}

void check_row_sums(lessons::Checks& checks, const Rows& rows, const Rng& rng) {
  const std::string where = named("row_sums", rows);
  const std::vector<float> x = lessons::random_floats(rng, rows.count * rows.width);
  const Array<float> in(x), out(rows.count, kNaN);
  checks.attempt(where, [&] {
    const Counters c = lessons::counted("row_sums", rows.count, rows.threads, RowSums::kSharedBytes,
                                        RowSums{rows.width, in.on_device(), out.on_device()});
    std::vector<double> want(std::size_t(rows.count), 0.0);
    for (std::size_t i = 0; i < x.size(); ++i) want[i / std::size_t(rows.width)] += double(x[i]);
    checks.near(where + ": values", Tensor::from(out.to_host(), {rows.count}),
                Tensor::from(want, {rows.count}).to(DType::f32), 1e-5);
    spent(rows, c, 1)
        .exactly("elements read", c.global_reads.accesses, rows.count * rows.width)
        .at_most("sectors", c.sectors, rows.count * (rows.sectors() + 1))
        .report(checks, where + ": counts");
  });
}

// Rows of scores around numbers whose exponentials are nothing that an f32 could hold.
Tensor scores(const Rows& rows, const Rng& rng) {
  constexpr float centres[] = {-1000, 0, 1000, -300, 300};
  Tensor x = uniform(rng, {rows.count, rows.width}, -3, 3);
  const auto values = x.span<float>();
  for (std::int64_t r = 0; r < rows.count; ++r)
    for (std::int64_t c = 0; c < rows.width; ++c) values[r * rows.width + c] += centres[r % 5];
  return x;
}

void check_softmax_rows(lessons::Checks& checks, const Rows& rows, const Rng& rng) {
  const std::string where = named("softmax_rows", rows);
  const Tensor x = scores(rows, rng);
  const auto values = x.span<float>();
  const Array<float> in(std::vector<float>(values.begin(), values.end())), out(rows.count * rows.width, kNaN);
  checks.attempt(where, [&] {
    const Counters c = lessons::counted("softmax_rows", rows.count, rows.threads, SoftmaxRows::kSharedBytes,
                                        SoftmaxRows{rows.width, in.on_device(), out.on_device()});
    checks.near(where + ": values", Tensor::from(out.to_host(), x.shape()), softmax(Var(x)).value, 2e-6);
    // Four passes. Lanes that had no column in the last round of one pass are a request ahead in the next, so that a
    // request may fall into two stretches: half as much again.
    spent(rows, c, 2)
        .exactly("elements written", c.global_writes.accesses, x.count())
        .at_most("elements read", c.global_reads.accesses, 3 * x.count())
        .at_most("sectors", c.sectors, rows.count * 6 * rows.sectors())
        .report(checks, where + ": counts");
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    for (const Rows& rows : cases(rng.split(0))) {
      check_row_sums(checks, rows, rng.split(1));
      check_softmax_rows(checks, rows, rng.split(2));
    }
  }
}

}  // namespace sinkhorn::lesson
