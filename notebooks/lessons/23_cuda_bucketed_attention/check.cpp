#include <fmt/format.h>

#include <limits>

#include "notebooks/kit/grid.h"
#include "notebooks/lessons/23_cuda_bucketed_attention/exercise.h"
#include "notebooks/lessons/23_cuda_bucketed_attention/kernels.h"

namespace sinkhorn::lesson {
namespace {

using emulator::Array;
using emulator::Counters;
using lessons::Budget;
using lessons::whole;
using lessons::lesson_23_cuda_bucketed_attention::Attended;
using lessons::lesson_23_cuda_bucketed_attention::AttentionResult;
using lessons::lesson_23_cuda_bucketed_attention::library_attention;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Sizes {
  std::int64_t bucket, buckets, width, n_top;
  std::int64_t tokens() const { return bucket * buckets; }
};

// Bucket u picks different earlier buckets, in any order; -1 where there are none left, and now and then by chance.
Tensor earlier_buckets(const Sizes& s, const Rng& rng) {
  Tensor picks = Tensor::full({s.buckets, s.n_top}, -1, DType::i32);
  for (std::int64_t u = 1; u < s.buckets; ++u) {
    const Rng row = rng.split(std::uint32_t(u));
    const std::int64_t first = whole(row.split(0), 0, u - 1);
    for (std::int64_t c = 0; c < std::min(s.n_top, u); ++c)
      if (whole(row.split(std::uint32_t(1 + c)), 0, 4) > 0)
        picks.span<std::int32_t>()[u * s.n_top + c] = std::int32_t((first + c) % u);
  }
  picks.span<std::int32_t>()[s.n_top] = 0;  // at least one pick
  return picks;
}

Attended draw_inputs(const Sizes& s, double spread, const Rng& rng) {
  const Shape vectors{s.tokens(), s.width};
  return {uniform(rng.split(0), vectors, -spread, spread),
          uniform(rng.split(1), vectors, -2, 2),
          uniform(rng.split(2), vectors, -2, 2),
          earlier_buckets(s, rng.split(3)),
          uniform(rng.split(4), {s.buckets, s.n_top}, 0.3, 1.7),
          s.bucket};
}

template <class T>
std::vector<T> elements(const Tensor& x) {
  const auto values = x.span<T>();
  return {values.begin(), values.end()};
}

struct Run {
  Tensor y, log_sum_exp;
  Counters counters;
};
Run run(const Sizes& s, const Attended& in) {
  const Array<float> q(elements<float>(in.q)), k(elements<float>(in.k)), v(elements<float>(in.v));
  const Array<std::int32_t> picks(elements<std::int32_t>(in.picks));
  const Array<float> weights(elements<float>(in.weights)), y(s.tokens() * s.width, kNaN), lse(s.tokens(), kNaN);
  const Counters c = lessons::counted(
      "bucket_attention", s.buckets, BucketAttention::kThreads, BucketAttention::shared_bytes(s.bucket, s.width),
      BucketAttention{s.bucket, s.width, s.n_top, q.on_device(), k.on_device(), v.on_device(), picks.on_device(),
                      weights.on_device(), y.on_device(), lse.on_device()});
  return {Tensor::from(y.to_host(), {s.tokens(), s.width}), Tensor::from(lse.to_host(), {s.tokens()}), c};
}

void check_one(lessons::Checks& checks, const Sizes& s, double spread, const Rng& rng) {
  const std::string where = fmt::format("{} buckets of {}, width {}, {} picks{}", s.buckets, s.bucket, s.width, s.n_top,
                                        spread > 10 ? ", large scores" : "");
  const Attended in = draw_inputs(s, spread, rng.split(0));
  checks.attempt(where, [&] {
    const Run got = run(s, in);
    const AttentionResult want = library_attention(in);
    const double tolerance = spread > 10 ? 1e-4 : 5e-6;
    checks.near(where + ": y", got.y, want.y, tolerance);
    checks.near(where + ": log-sum-exp", got.log_sum_exp, want.log_sum_exp, tolerance);
    std::int64_t picked = 0;
    for (const std::int32_t pick : in.picks.span<std::int32_t>()) picked += pick >= 0;
    const Counters& c = got.counters;
    const std::int64_t fetched = (picked + s.buckets) * 2 * s.bucket * s.width + in.q.count();
    Budget()
        .exactly("elements written: y and log_sum_exp, no scores", c.global_writes.accesses, in.q.count() + s.tokens())
        .at_most("elements read", c.global_reads.accesses,
                 fetched + s.buckets * s.n_top * 2 * BucketAttention::kThreads)
        .at_most("barriers", c.barriers, 2 * (picked + s.buckets) + 2 * s.buckets)
        .report(checks, where + ": traffic");
  });
}

// Other tokens from `first` on leave everything in front of it as it was, to the last bit.
void check_future(lessons::Checks& checks, const Sizes& s, const Rng& rng) {
  const std::string where = fmt::format("{} buckets of {}: no output changes with its future", s.buckets, s.bucket);
  const Attended in = draw_inputs(s, 2, rng.split(0)), other = draw_inputs(s, 2, rng.split(1));
  const std::int64_t first = whole(rng.split(2), 1, s.tokens() - 1);
  Attended changed{in.q.clone(), in.k.clone(), in.v.clone(), in.picks, in.weights, in.bucket};
  for (std::int64_t i = first * s.width; i < in.q.count(); ++i) {
    changed.q.span<float>()[i] = other.q.span<float>()[i];
    changed.k.span<float>()[i] = other.k.span<float>()[i];
    changed.v.span<float>()[i] = other.v.span<float>()[i];
  }
  checks.attempt(where, [&] {
    const Run before = run(s, in), after = run(s, changed);
    checks.near(where, after.y.slice(0, first), before.y.slice(0, first), 0);
    const bool moved = !equal_bits(after.y.slice(first, first + 1), before.y.slice(first, first + 1));
    checks.that("and the output at the first changed token does change", moved, "expected another y, got the same");
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    const auto size = [&](std::uint32_t tag, std::int64_t low, std::int64_t high) {
      return whole(rng.split(tag), low, high);
    };
    check_one(checks, {size(0, 3, 9), size(1, 4, 6), size(2, 3, 15), 2}, 2, rng.split(10));
    check_one(checks, {size(3, 33, 40), 3, size(4, 17, 32), 1}, 2, rng.split(11));
    check_one(checks, {size(5, 4, 8), 5, size(6, 8, 12), 3}, 200, rng.split(12));
    check_future(checks, {size(7, 3, 6), 4, size(8, 3, 9), 2}, rng.split(13));
  }
}

}  // namespace sinkhorn::lesson
