#include <cmath>
#include <limits>

#include "autograd/ops/routing.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/11_routing/exercise.h"

namespace sinkhorn::lesson {
namespace {

constexpr double kClosed = -std::numeric_limits<double>::infinity();

// What top_k is asked to choose from, and how.
struct Problem {
  std::string name;
  Tensor logits;
  std::int64_t n;
  double temperature;
};

// Some columns are closed everywhere, as the mask of a causal model closes them; the last row has nothing left at all.
Tensor closed(Tensor x) {
  const std::int64_t rows = x.shape()[0], columns = x.shape()[1];
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = 0; j < columns; ++j)
      if (j >= r || r + 1 == rows) x.span<double>()[r * columns + j] = kClosed;
  return x;
}

// Small whole numbers, so that many are equal.
Tensor tied(const Rng& rng) { return integers(rng, {5, 6}, 3).to(DType::f64); }

// The largest logit is larger by one bit: at temperature 8 its share is rounded to that of the others.
Tensor nearly_tied() {
  Tensor x = Tensor::full({3, 4}, 1, DType::f64);
  for (std::int64_t r = 0; r < 3; ++r) x.span<double>()[r * 4 + r + 1] = std::nextafter(1.0, 2.0);
  return x;
}

void check_choice(lessons::Checks& checks, const Problem& p, const Rng& rng) {
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(p.logits);
  const sinkhorn::TopK want = sinkhorn::top_k(leaf, p.n, p.temperature);
  checks.attempt("top_k, " + p.name, [&] {
    const Chosen own = top_k(p.logits, p.n, p.temperature);
    checks.near("picks, " + p.name, own.picks, want.picks);
    checks.near("weights, " + p.name, own.weights, want.weights.value);
  });
  const Tensor dweights = uniform(rng, want.picks.shape(), -1, 1, DType::f64);
  const Tensor dlogits = tape.backward(want.weights, dweights).of(leaf);
  checks.attempt("dlogits, " + p.name, [&] {
    checks.near("dlogits, " + p.name, top_k_backward(p.logits, want.picks, dweights, p.temperature), dlogits);
  });
}

void check_gather(lessons::Checks& checks, const Rng& rng) {
  const Tensor x = uniform(rng.split(0), {4, 3, 2}, -2, 2, DType::f64),
               weights = uniform(rng.split(1), {5, 2}, 0.1, 1, DType::f64),
               dy = uniform(rng.split(2), {5, 6, 2}, -1, 1, DType::f64), picks = integers(rng.split(3), {5, 2}, 4);
  picks.span<std::int32_t>()[0] = picks.span<std::int32_t>()[3] = 2;  // chosen at least twice
  picks.span<std::int32_t>()[4] = -1;                                 // nothing was left
  const Tape tape = Tape::record();
  const Var leaf_x = tape.leaf(x.reshape({1, 4, 3, 2})), leaf_weights = tape.leaf(weights.reshape({1, 5, 2}));
  const Var want = gather_buckets(leaf_x, leaf_weights, picks.reshape({1, 5, 2}));
  const Gradients flow = tape.backward(want, dy.reshape({1, 5, 6, 2}));
  checks.attempt("gather", [&] { checks.near("gather", gather(x, weights, picks), want.value.reshape({5, 6, 2})); });
  checks.attempt("gather_backward", [&] {
    const GatherGradients own = gather_backward(x, weights, picks, dy);
    checks.near("dx of gather", own.dx, flow.of(leaf_x).reshape({4, 3, 2}));
    checks.near("dweights of gather", own.dweights, flow.of(leaf_weights).reshape({5, 2}));
  });

  const GradientProblem own = lessons::problem_of(
      {"x", "weights"}, {x, weights}, [=](const Tensors& at) { return gather(at[0], at[1], picks); },
      [=](const Tensors& at, const Tensor& flow_back) {
        const GatherGradients both = gather_backward(at[0], at[1], picks, flow_back);
        return Tensors{both.dx, both.dweights};
      });
  checks.gradients("your gradient of gather against differences", own, rng.split(4));
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    const std::vector<Problem> problems{
        {"3 of 7", uniform(rng.split(0), {5, 7}, -2, 2, DType::f64), 3, 0.75},
        {"1 of 4, temperature 3", uniform(rng.split(1), {6, 4}, -2, 2, DType::f64), 1, 3},
        {"4 of 4", uniform(rng.split(2), {3, 4}, -2, 2, DType::f64), 4, 1},
        {"equal logits", tied(rng.split(3)), 3, 0.5},
        {"logits that differ in the last bit", nearly_tied(), 2, 8},
        {"closed columns", closed(uniform(rng.split(4), {5, 5}, -2, 2, DType::f64)), 2, 0.75},
        {"logits of 1000", uniform(rng.split(5), {4, 3}, 900, 1000, DType::f64), 2, 0.1},
    };
    for (std::uint32_t i = 0; i < problems.size(); ++i) check_choice(checks, problems[i], rng.split(20 + i));

    const GradientProblem own = lessons::problem_of(
        {"logits"}, {uniform(rng.split(6), {3, 5}, -1, 1, DType::f64)},
        [](const Tensors& at) { return top_k(at[0], 2, 0.6).weights; },
        [](const Tensors& at, const Tensor& dweights) {
          return Tensors{top_k_backward(at[0], top_k(at[0], 2, 0.6).picks, dweights, 0.6)};
        });
    checks.gradients("your gradient of the weights against differences", own, rng.split(7));
    check_gather(checks, rng.split(8));
  }
}

}  // namespace sinkhorn::lesson
