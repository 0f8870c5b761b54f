#include "autograd/ops/sinkhorn.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/12_sinkhorn/exercise.h"

namespace sinkhorn::lesson {
namespace {

struct Problem {
  std::string name;
  Shape shape;
  double most;  // scores lie between -most and most
  std::int64_t iterations;
};

void check_one(lessons::Checks& checks, const Problem& p, const Rng& rng) {
  const Tensor x = uniform(rng.split(0), p.shape, -p.most, p.most, DType::f64),
               dy = uniform(rng.split(1), p.shape, -1, 1, DType::f64);
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(x);
  const Var want = sinkhorn::sinkhorn(leaf, {}, p.iterations);
  const Tensor dx = tape.backward(want, dy).of(leaf);
  checks.attempt("y, " + p.name, [&] { checks.near("y, " + p.name, normalise(x, p.iterations), want.value); });
  checks.attempt("dx, " + p.name, [&] { checks.near("dx, " + p.name, normalise_backward(x, p.iterations, dy), dx); });
}

}  // namespace

void check(lessons::Checks& checks) {
  const std::vector<Problem> problems{
      {"4 x 4, 1 iteration", {4, 4}, 2, 1},
      {"4 x 4, 2 iterations", {4, 4}, 2, 2},
      {"5 x 5, 5 iterations", {5, 5}, 3, 5},
      {"3 x 6, 3 iterations", {3, 6}, 2, 3},
      {"6 x 2, 4 iterations", {6, 2}, 2, 4},
      {"4 x 4, 20 iterations, scores up to 20", {4, 4}, 20, 20},
      {"3 x 4, 3 iterations, scores up to 900", {3, 4}, 900, 3},
  };
  for (const Rng& rng : checks.rounds()) {
    for (std::uint32_t i = 0; i < problems.size(); ++i) check_one(checks, problems[i], rng.split(i));
    for (const std::int64_t iterations : {1, 3}) {
      const GradientProblem own = lessons::problem_of(
          {"log_scores"}, {uniform(rng.split(20), {3, 4}, -2, 2, DType::f64)},
          [=](const Tensors& at) { return normalise(at[0], iterations); },
          [=](const Tensors& at, const Tensor& dy) { return Tensors{normalise_backward(at[0], iterations, dy)}; });
      checks.gradients("your gradient against differences of your normalise, iterations: " + std::to_string(iterations),
                       own, rng.split(21));
    }
  }
}

}  // namespace sinkhorn::lesson
