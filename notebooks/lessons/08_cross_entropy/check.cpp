#include <cmath>

#include "autograd/ops/cross_entropy.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/08_cross_entropy/exercise.h"

namespace sinkhorn::lesson {
namespace {

constexpr std::int64_t kPositions = 9, kClasses = 5;

// Logits, targets of which some are `ignore`, and what else a loss depends on.
struct Case {
  std::string name;
  Tensor logits, targets;
  std::int32_t ignore;
};

// Position 0 counts and position 1 is ignored, whatever is drawn.
Case drawn(std::string name, std::int32_t ignore, double size, Rng rng) {
  Case at{std::move(name), uniform(rng.split(0), {kPositions, kClasses}, -size, size, DType::f64),
          integers(rng.split(1), {kPositions}, kClasses), ignore};
  const RandomBits bits = rng.split(2).bits();
  const auto targets = at.targets.span<std::int32_t>();
  for (std::uint64_t r = 1; r < std::uint64_t(kPositions); ++r)
    if (r == 1 || bits.word(r) % 3 == 0) targets[r] = ignore;
  if (targets[0] == ignore) targets[0] = (ignore + 1) % std::int32_t(kClasses);
  return at;
}

Case all_ignored(Rng rng) {
  Case at = drawn(" where all positions are ignored", 3, 2, rng);
  for (std::int32_t& target : at.targets.span<std::int32_t>()) target = 3;
  return at;
}

Case none_ignored(Rng rng) {
  Case at = drawn(" where all positions count", -100, 2, rng);
  at.targets = integers(rng.split(5), {kPositions}, kClasses);
  return at;
}

Tensor number(double x) { return Tensor::full({}, x, DType::f64); }

sinkhorn::CrossEntropy library(const Var& logits, const Case& at) {
  return sinkhorn::cross_entropy(logits, at.targets, {}, at.ignore);
}

void check_case(lessons::Checks& checks, const Case& at, Rng rng) {
  const double dloss = uniform(rng.split(0), {}, 0.5, 3, DType::f64).item();
  checks.attempt("cross_entropy" + at.name, [&] {
    const Loss got = lesson::cross_entropy(at.logits, at.targets, at.ignore);
    const sinkhorn::CrossEntropy want = library(at.logits, at);
    checks.near("loss" + at.name, got.loss, want.loss.value.item());
    checks.equal("count" + at.name, got.count, std::int64_t(want.count.item()));
  });
  checks.attempt("cross_entropy_backward" + at.name, [&] {
    const Tape tape = Tape::record();
    const Var leaf = tape.leaf(at.logits);
    const Gradients want = tape.backward(library(leaf, at).loss, number(dloss));
    checks.near("gradient" + at.name, cross_entropy_backward(at.logits, at.targets, at.ignore, dloss), want.of(leaf));
  });
}

void check_nudges(lessons::Checks& checks, const Case& at, Rng rng) {
  const GradientProblem nudged = lessons::problem_of(
      {"logits"}, {at.logits}, [&at](const Tensors& p) { return library(p[0], at).loss.value; },
      [&at](const Tensors& p, const Tensor& dy) {
        return Tensors{cross_entropy_backward(p[0], at.targets, at.ignore, dy.item())};
      });
  checks.gradients("gradient against small nudges of the logits", nudged, rng);
}

// The target that is wrong stands at a position whose neighbours are there, so that reading past the row reads logits.
void check_bad_target(lessons::Checks& checks, std::int32_t bad, Rng rng) {
  const std::string name = "an Error for a target of " + std::to_string(bad) + " with 5 classes";
  const Case at = none_ignored(rng);
  at.targets.span<std::int32_t>()[4] = bad;
  bool thrown = false;
  try {
    lesson::cross_entropy(at.logits, at.targets, at.ignore);
  } catch (const Error&) {
    thrown = true;
  }
  checks.that(name, thrown, "nothing was thrown");
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    check_case(checks, none_ignored(rng.split(0)), rng.split(10));
    const Case some = drawn(" where targets of -1 are ignored", -1, 2, rng.split(1));
    check_case(checks, some, rng.split(11));
    check_case(checks, drawn(" where targets of 2 are ignored", 2, 2, rng.split(2)), rng.split(12));
    check_case(checks, drawn(" of logits up to 1000", -1, 1000, rng.split(3)), rng.split(13));
    check_case(checks, all_ignored(rng.split(4)), rng.split(14));
    check_nudges(checks, some, rng.split(15));

    const RandomBits bits = rng.split(16).bits();
    const double loss = 1 + 2 * bits.uniform<double>(0);
    const std::int64_t tokens = 1000 + bits.word(1) % 1000, characters = tokens + bits.word(2) % 3000;
    checks.near("bits_per_character", bits_per_character(loss, tokens, characters),
                loss / std::log(2.0) * double(tokens) / double(characters));
  }
  check_bad_target(checks, 5, checks.rounds()[0].split(17));
  check_bad_target(checks, -1, checks.rounds()[0].split(18));
}

}  // namespace sinkhorn::lesson
