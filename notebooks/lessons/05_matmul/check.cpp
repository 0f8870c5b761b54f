
#include "autograd/ops/matmul.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/05_matmul/exercise.h"

namespace sinkhorn::lesson {
namespace {

void check_product(lessons::Checks& all, const std::string& of, const Shape& a_shape, const Shape& b_shape, Rng rng) {
  lessons::Checks checks = all.at(text_of(a_shape) + " and " + text_of(b_shape));
  const auto draw = [&rng](std::uint32_t tag, const Shape& shape) {
    return uniform(rng.split(tag), shape, -1, 1, DType::f64);
  };
  const Tensor a = draw(0, a_shape), b = draw(1, b_shape), want = sinkhorn::matmul(Var(a), Var(b)).value;
  const Tensor dy = draw(2, want.shape());

  checks.attempt("y" + of, [&] { checks.near("y" + of, lesson::matmul(a, b), want); });
  checks.attempt("gradients" + of, [&] {
    const Tape tape = Tape::record();
    const Var left = tape.leaf(a), right = tape.leaf(b);
    const Gradients gradients = tape.backward(sinkhorn::matmul(left, right), dy);
    const MatmulGradients got = matmul_backward(a, b, dy);
    checks.near("da" + of, got.da, gradients.of(left));
    checks.near("db" + of, got.db, gradients.of(right));
  });
  const GradientProblem nudged = lessons::problem_of(
      {"a", "b"}, {a, b}, [](const Tensors& at) { return sinkhorn::matmul(Var(at[0]), Var(at[1])).value; },
      [](const Tensors& at, const Tensor& flow) {
        const MatmulGradients got = matmul_backward(at[0], at[1], flow);
        return Tensors{got.da, got.db};
      });
  checks.gradients("da and db" + of + " against small nudges", nudged, rng.split(3));
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    const RandomBits bits = rng.split(0).bits();
    // Three extents that all differ, so that none can stand for another.
    const std::int64_t m = 2 + bits.word(0) % 3, k = m + 1 + bits.word(1) % 2, n = k + 1 + bits.word(2) % 2;
    check_product(checks, " of one product", {1, m, k}, {1, k, n}, rng.split(1));
    check_product(checks, " of a batch", {3, n, k}, {3, k, m}, rng.split(2));
    check_product(checks, " of one product, b of rank 2", {1, k, m}, {m, n}, rng.split(3));
    check_product(checks, " of a batch that shares b", {4, k, n}, {n, m}, rng.split(4));
    check_product(checks, " of a shared b with one column", {2, m, n}, {n, 1}, rng.split(5));
  }
}

}  // namespace sinkhorn::lesson
