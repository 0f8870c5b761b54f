#include <cmath>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/layer_norm.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/07_layer_norm/exercise.h"

namespace sinkhorn::lesson {
namespace {

constexpr std::int64_t kRows = 4, kWidth = 7;

struct Point {
  Tensor x, gamma, beta;
};
Point drawn(Rng rng, double around) {
  const auto draw = [&rng](std::uint32_t tag, const Shape& shape, double low, double high) {
    return uniform(rng.split(tag), shape, low, high, DType::f64);
  };
  return {draw(0, {kRows, kWidth}, around - 2, around + 2), draw(1, {kWidth}, 0.3, 2), draw(2, {kWidth}, -1, 1)};
}

// The mean and 1 / sqrt(variance + eps) of each row, as the tape keeps them for the library's own backward.
struct Statistics {
  Tensor mean, rstd;
};
Statistics statistics_of(const Point& at, double eps) {
  Saved saved;
  saved.wants = {true, true, true};
  ops::LayerNorm{eps}.forward(saved, Tensors{at.x, at.gamma, at.beta});
  return {saved.tensors[2], saved.tensors[3]};
}

void check_forward(lessons::Checks& checks, const std::string& of, const Point& at, double eps) {
  checks.attempt("layer_norm" + of, [&] {
    const Normalised got = layer_norm(at.x, at.gamma, at.beta, eps);
    const Statistics want = statistics_of(at, eps);
    checks.near("mean" + of, got.mean, want.mean);
    checks.near("rstd" + of, got.rstd, want.rstd);
    checks.near("y" + of, got.y, sinkhorn::layer_norm(Var(at.x), Var(at.gamma), Var(at.beta), eps).value);
  });
}

void check_backward(lessons::Checks& checks, const std::string& of, const Point& at, double eps, Rng rng) {
  const Tensor dy = uniform(rng, at.x.shape(), -1, 1, DType::f64);
  checks.attempt("layer_norm_backward" + of, [&] {
    const Tape tape = Tape::record();
    const Var x = tape.leaf(at.x), gamma = tape.leaf(at.gamma), beta = tape.leaf(at.beta);
    const Gradients want = tape.backward(sinkhorn::layer_norm(x, gamma, beta, eps), dy);
    const Statistics statistics = statistics_of(at, eps);
    const LayerNormGradients got = layer_norm_backward(at.x, at.gamma, statistics.mean, statistics.rstd, dy);
    checks.near("dx" + of, got.dx, want.of(x));
    checks.near("dgamma" + of, got.dgamma, want.of(gamma));
    checks.near("dbeta" + of, got.dbeta, want.of(beta));
  });
}

// The learner's two functions together, as training would use them.
void check_together(lessons::Checks& checks, const Point& at, double eps, Rng rng) {
  const GradientProblem own = lessons::problem_of(
      {"x", "gamma", "beta"}, {at.x, at.gamma, at.beta},
      [eps](const Tensors& p) { return sinkhorn::layer_norm(Var(p[0]), Var(p[1]), Var(p[2]), eps).value; },
      [eps](const Tensors& p, const Tensor& dy) {
        const Normalised y = layer_norm(p[0], p[1], p[2], eps);
        if (y.mean.shape() != Shape{kRows} || y.rstd.shape() != Shape{kRows})
          fail("mean and rstd are one number a row");
        const LayerNormGradients g = layer_norm_backward(p[0], p[1], y.mean, y.rstd, dy);
        return Tensors{g.dx, g.dgamma, g.dbeta};
      });
  checks.gradients("all gradients, from your mean and rstd, against small nudges", own, rng);
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    const Point usual = drawn(rng.split(0), 0.5), far = drawn(rng.split(1), 1e5);
    check_forward(checks, " of rows around 0.5", usual, 1e-5);
    check_forward(checks, " with eps = 0.3", usual, 0.3);
    check_forward(checks, " of rows around 100,000", far, 1e-5);
    Point level = drawn(rng.split(2), 0);
    for (std::int64_t i = 0; i < kWidth; ++i) level.x.span<double>()[i] = 0.75;
    check_forward(checks, " where one row has equal numbers", level, 1e-5);
    check_backward(checks, " of rows around 0.5", usual, 1e-5, rng.split(3));
    check_backward(checks, " with eps = 0.3", usual, 0.3, rng.split(4));
    check_backward(checks, " where one row has equal numbers", level, 1e-2, rng.split(5));
    check_together(checks, usual, 0.1, rng.split(6));
  }
}

}  // namespace sinkhorn::lesson
