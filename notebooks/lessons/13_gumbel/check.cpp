#include <cmath>
#include <vector>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/routing.h"
#include "autograd/ops/softmax.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/13_gumbel/exercise.h"

namespace sinkhorn::lesson {
namespace {

// Each of `rows` rows is this one.
Tensor repeated(const Tensor& row, std::int64_t rows) {
  Tensor x({rows, row.count()}, DType::f64);
  for (std::int64_t i = 0; i < x.count(); ++i) x.span<double>()[i] = row.span<double>()[i % row.count()];
  return x;
}

void check_ends(lessons::Checks& checks) {
  for (const std::uint32_t word : {0u, 1u, 511u, 512u, 0x80000000u, 0xFFFFFE00u, 0xFFFFFFFFu}) {
    const std::string name = "gumbel of word " + std::to_string(word);
    checks.attempt(name, [&] {
      const double got = gumbel(word);
      checks.that(name + " is finite", std::isfinite(got), "got " + std::to_string(got));
      checks.near(name, got, -std::log(-std::log(RandomBits::to_uniform<double>(word))));
    });
  }
}

// Draws from the learner's noise, and counts. Six standard deviations: of 100 million good solutions one is turned
// away.
void check_statistics(lessons::Checks& checks, const Rng& rng) {
  constexpr std::int64_t kDraws = 20000;
  const Tensor row = uniform(rng.split(0), {4}, -1.5, 1.5, DType::f64);
  const std::vector<double> share = softmax(Var(row.reshape({1, 4}))).value.to_vector();
  checks.attempt("how often each column is drawn", [&] {
    const Tensor noise = gumbel_noise(rng.split(1).bits(), kDraws, 4);
    if (noise.shape() != Shape{kDraws, 4} || noise.dtype() != DType::f64)
      return checks.that("how often each column is drawn", false, "gumbel_noise has not the shape that was asked for");
    double sum = 0;
    for (const double g : noise.span<double>()) sum += g;
    const double mean = sum / double(noise.count()), euler = 0.5772156649, deviation = 1.2825498;
    checks.that("the mean of your noise is Euler's constant, 0.5772",
                std::abs(mean - euler) <= 6 * deviation / std::sqrt(double(noise.count())),
                "got " + std::to_string(mean));

    const Tensor picks = sample(repeated(row, kDraws), noise);
    if (picks.shape() != Shape{kDraws} || picks.dtype() != DType::i32)
      return checks.that("how often each column is drawn", false, "sample should return i32 of shape (rows)");
    std::vector<double> count(4);
    for (const std::int32_t pick : picks.span<std::int32_t>())
      if (pick >= 0 && pick < 4) ++count[std::size_t(pick)];
    for (std::size_t j = 0; j < 4; ++j) {
      const double expected = kDraws * share[j], bound = 6 * std::sqrt(expected * (1 - share[j]));
      checks.that("column " + std::to_string(j) + " is drawn as often as softmax says",
                  std::abs(count[j] - expected) <= bound,
                  "expected " + std::to_string(std::lround(expected)) + " of 20000, give or take " +
                      std::to_string(std::lround(bound)) + ", got " + std::to_string(std::lround(count[j])));
    }
  });
}

// The library's ops, with the temperature as a variable of its own.
Var composed(const Var& scores, const Tensor& noise, const Var& temperature) {
  return softmax(div(add(scores, noise), temperature));
}

void check_relaxed(lessons::Checks& checks, double temperature, const Rng& rng) {
  const std::string at = ", temperature " + std::to_string(temperature).substr(0, 4);
  const Tensor scores = uniform(rng.split(0), {4, 5}, -2, 2, DType::f64),
               noise = sinkhorn::gumbel(rng.split(1), {4, 5}, DType::f64),
               dy = uniform(rng.split(2), {4, 5}, -1, 1, DType::f64);
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(scores), heat = tape.leaf(Tensor::full({1, 1}, temperature, DType::f64));
  const Var want = composed(leaf, noise, heat);
  const Gradients flow = tape.backward(want, dy);
  checks.attempt("relaxed" + at, [&] { checks.near("relaxed" + at, relaxed(scores, noise, temperature), want.value); });
  checks.attempt("gradients of relaxed" + at, [&] {
    const RelaxedGradients own = relaxed_backward(scores, noise, temperature, dy);
    checks.near("dscores" + at, own.dscores, flow.of(leaf));
    checks.near("dtemperature" + at, own.dtemperature, flow.of(heat).item());
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  check_ends(checks);
  for (const Rng& rng : checks.rounds()) {
    checks.attempt("gumbel_noise", [&] {
      checks.near("gumbel_noise, as the library draws it", gumbel_noise(rng.split(0).bits(), 5, 3),
                  sinkhorn::gumbel(rng.split(0), {5, 3}, DType::f64));
    });
    checks.attempt("sample", [&] {
      const Tensor scores = uniform(rng.split(1), {30, 6}, -2, 2, DType::f64),
                   noise = sinkhorn::gumbel(rng.split(2), {30, 6}, DType::f64);
      checks.near("sample", sample(scores, noise), top_k(add(scores, noise), 1, 1).picks.reshape({30}));
    });
    check_statistics(checks, rng.split(3));
    for (const double temperature : {2.0, 0.75, 0.1}) check_relaxed(checks, temperature, rng.split(4));
    const Tensor noise = sinkhorn::gumbel(rng.split(5), {3, 4}, DType::f64);
    const GradientProblem own = lessons::problem_of(
        {"scores", "temperature"},
        {uniform(rng.split(6), {3, 4}, -1, 1, DType::f64), uniform(rng.split(7), {1}, 0.5, 1.5, DType::f64)},
        [=](const Tensors& at) { return relaxed(at[0], noise, at[1].item()); },
        [=](const Tensors& at, const Tensor& dy) {
          const RelaxedGradients flow = relaxed_backward(at[0], noise, at[1].item(), dy);
          return Tensors{flow.dscores, Tensor::full({1}, flow.dtemperature, DType::f64)};
        });
    checks.gradients("your gradients against differences of your relaxed", own, rng.split(8));
  }
}

}  // namespace sinkhorn::lesson
