#include <fmt/format.h>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/movement.h"
#include "autograd/ops/reduce.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/04_broadcasting/exercise.h"

namespace sinkhorn::lesson {
namespace {

Tensor drawn(Rng rng, const Shape& shape) { return uniform(rng, shape, -1, 1, DType::f64); }

// A shape that stretches to `shape`: some extents become 1, and some axes in front are left out.
Shape smaller(const Shape& shape, Rng rng) {
  const RandomBits bits = rng.bits();
  std::vector<std::int64_t> extents(shape.extents().begin(), shape.extents().end());
  for (std::size_t axis = 0; axis < extents.size(); ++axis)
    if (bits.word(axis) % 2 == 0) extents[axis] = 1;
  const auto left_out = std::ptrdiff_t(bits.word(10) % (extents.size() + 1));
  extents.erase(extents.begin(), extents.begin() + left_out);
  return Shape(std::span<const std::int64_t>(extents));
}

// Extents 2 to 5, neighbours never equal, so that no axis can stand for another.
Shape large(int rank, Rng rng) {
  const RandomBits bits = rng.bits();
  std::vector<std::int64_t> extents;
  extents.reserve(std::size_t(rank));
  for (std::uint64_t axis = 0; axis < std::uint64_t(rank); ++axis) {
    const std::int64_t extent = 2 + bits.word(axis) % 4;
    extents.push_back(!extents.empty() && extents.back() == extent ? extent % 4 + 2 : extent);
  }
  return Shape(std::span<const std::int64_t>(extents));
}

double dot(const Tensor& a, const Tensor& b) { return sinkhorn::sum(Var(a) * Var(b)).value.item(); }

void check_pair(lessons::Checks& all, const Shape& from, const Shape& to, Rng rng) {
  lessons::Checks checks = all.at("x " + text_of(from) + ", dy " + text_of(to));
  const std::string axes = fmt::format(", {} of {} axes", from.rank(), to.rank());
  const Tensor x = drawn(rng.split(0), from), dy = drawn(rng.split(1), to);
  checks.attempt("stretch" + axes, [&] {
    const Tensor y = lesson::stretch(x, to);
    checks.near("stretch" + axes, y, sinkhorn::stretch(x, to));
  });
  checks.attempt("sum_to" + axes,
                 [&] { checks.near("sum_to" + axes, lesson::sum_to(dy, from), sinkhorn::sum_to(dy, from)); });
  const std::string tied = "stretch(x) . dy = x . sum_to(dy)";
  checks.attempt(tied, [&] {
    const Tensor y = lesson::stretch(x, to), dx = lesson::sum_to(dy, from);
    if (y.shape() != to || dx.shape() != from) return checks.that(tied, false, "the shapes are wrong");
    checks.near(tied, dot(x, dx), dot(y, dy));
  });
}

void check_shapes(lessons::Checks& all, const Shape& a, const Shape& b) {
  lessons::Checks checks = all.at(text_of(a) + " and " + text_of(b));
  const Shape want = sinkhorn::broadcast_shape("check", a, b);
  checks.attempt("broadcast_shape", [&] {
    const Shape got = lesson::broadcast_shape(a, b);
    checks.that("broadcast_shape", got == want, "expected " + text_of(want) + ", got " + text_of(got));
  });
}

void check_misfit(lessons::Checks& checks, const Shape& a, const Shape& b) {
  const std::string name = "broadcast_shape throws an Error for " + text_of(a) + " and " + text_of(b);
  std::string detail;
  try {
    detail = "got " + text_of(lesson::broadcast_shape(a, b));
  } catch (const Error&) {
  }
  checks.that(name, detail.empty(), detail);
}

// y = a * b of two stretched tensors, and both gradients, with the learner's functions alone.
void check_product(lessons::Checks& all, const Shape& a, const Shape& b, Rng rng) {
  lessons::Checks checks = all.at(text_of(a) + " and " + text_of(b));
  const std::string name = "the gradients of a * b, from your functions";
  const auto times = [](const Tensor& p, const Tensor& q) { return (Var(p) * Var(q)).value; };
  checks.attempt(name, [&] {
    const Shape shape = lesson::broadcast_shape(a, b);
    if (shape != sinkhorn::broadcast_shape("check", a, b)) return checks.that(name, false, "broadcast_shape is wrong");
    const GradientProblem own = lessons::problem_of(
        {"a", "b"}, {drawn(rng.split(0), a), drawn(rng.split(1), b)},
        [](const Tensors& at) { return (Var(at[0]) * Var(at[1])).value; },
        [=](const Tensors& at, const Tensor& dy) {
          const Tensor p = lesson::stretch(at[0], shape), q = lesson::stretch(at[1], shape);
          return Tensors{lesson::sum_to(times(dy, q), a), lesson::sum_to(times(dy, p), b)};
        });
    checks.gradients(name, own, rng.split(2));
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  std::uint32_t round = 0;
  for (const Rng& rng : checks.rounds()) {
    for (int rank = 1; rank <= 4; ++rank) {
      const Rng own = rng.split(std::uint32_t(rank));
      const Shape shape = large(rank, own.split(0));
      const Shape a = smaller(shape, own.split(1)), b = smaller(shape, own.split(2));
      check_pair(checks, a, shape, own.split(3));
      check_shapes(checks, a, b);
      check_product(checks, a, b, own.split(4));
    }
    const Shape shape = large(4, rng.split(5));
    check_pair(checks, {1, shape[1], 1, shape[3]}, shape, rng.split(6));
    check_pair(checks, {shape[2], 1}, shape, rng.split(7));
    check_pair(checks, {}, shape, rng.split(8));
    check_shapes(checks, {shape[0], 1, shape[2], 1}, {shape[1], 1, shape[3]});
    check_shapes(checks, {shape[3]}, shape);
    if (round++ == 0) {
      check_misfit(checks, {2, 3}, {2, 4});
      check_misfit(checks, {3, 2}, {3});
      check_misfit(checks, {4}, {5, 2, 3});
    }
  }
}

}  // namespace sinkhorn::lesson
