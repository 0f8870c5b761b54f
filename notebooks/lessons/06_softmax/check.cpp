#include "autograd/ops/softmax.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/06_softmax/exercise.h"

namespace sinkhorn::lesson {
namespace {

// Rows of different sizes, and rows whose scores lie far from 0 and from each other.
Tensor scores(Rng rng, bool far) {
  Tensor x = uniform(rng, {4, 7}, -3, 3, DType::f64);
  if (far)
    for (std::int64_t r = 0; r < 4; ++r)
      for (std::int64_t i = 0; i < 7; ++i) x.span<double>()[r * 7 + i] += 1000.0 * double(r - 2);
  return x;
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    for (const bool far : {false, true}) {
      const Tensor x = scores(rng.split(0), far), dy = uniform(rng.split(1), {4, 7}, -1, 1, DType::f64);
      const std::string where = far ? " of scores around -2000, -1000, 0 and 1000" : " of small scores";
      const Tensor want = sinkhorn::softmax(Var(x)).value;
      checks.attempt("softmax" + where, [&] { checks.near("softmax" + where, softmax(x), want); });
      checks.attempt("log_sum_exp" + where, [&] {
        checks.near("log_sum_exp" + where, log_sum_exp(x), sinkhorn::log_sum_exp(Var(x)).value.reshape({4}));
      });
      checks.attempt("softmax_backward" + where, [&] {
        const Tape tape = Tape::record();
        const Var leaf = tape.leaf(x);
        const Tensor dx = tape.backward(sinkhorn::softmax(leaf), dy).of(leaf);
        checks.near("softmax_backward" + where, softmax_backward(want, dy), dx);
      });
    }
    const GradientProblem own = lessons::problem_of(
        {"x"}, {scores(rng.split(2), false)}, [](const Tensors& at) { return softmax(at[0]); },
        [](const Tensors& at, const Tensor& dy) { return Tensors{softmax_backward(softmax(at[0]), dy)}; });
    checks.gradients("your gradient against differences of your softmax", own, rng.split(3));
  }
}

}  // namespace sinkhorn::lesson
