#include <cmath>
#include <limits>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/movement.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/softmax.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/03_gradient_check/exercise.h"

namespace sinkhorn::lesson {
namespace {

using Function = std::function<Var(const Var& x)>;
using Change = std::function<Tensor(const Tensor& dx, const Tensor& dy)>;

// A function of the library's with its own gradient, or with what `change` makes of that.
Claim claim_of(const Function& f, const Change& change = {}) {
  return {[f](const Tensor& x) { return f(Var(x)).value; },
          [f, change](const Tensor& x, const Tensor& dy) {
            const Tape tape = Tape::record();
            const Var leaf = tape.leaf(x);
            const Tensor dx = tape.backward(f(leaf), dy).of(leaf).clone();
            return change ? change(dx, dy) : dx;
          }};
}

Change times(double factor) {
  return [factor](const Tensor& dx, const Tensor&) { return scale(Var(dx), factor).value; };
}
// What came from above, as it is: right only where the function does nothing.
Tensor pass_on(const Tensor& dx, const Tensor& dy) { return dy.reshape(dx.shape()).clone(); }

Change at(std::int64_t where, const std::function<double(double)>& f) {
  return [where, f](const Tensor& dx, const Tensor&) {
    double& element = dx.span<double>()[where];
    element = f(element);
    return dx;
  };
}

struct Planted {
  std::string name;
  Claim claim;
  Tensor x;
  bool right;
  std::int64_t where = -1;  // of the one wrong element, if it is one
};

Var cubed(const Var& x) { return x * x * x; }
Var tiny(const Var& x) { return scale(cubed(x), 1e-9); }

std::vector<Planted> right_claims(Rng rng) {
  const auto draw = [&rng](std::uint32_t tag, const Shape& shape, double low = -2, double high = 2) {
    return uniform(rng.split(tag), shape, low, high, DType::f64);
  };
  const Tensor matrix = draw(0, {4, 5});
  return {
      {"accepts a cube", claim_of(cubed), draw(1, {3, 4}), true},
      {"accepts softmax", claim_of([](const Var& x) { return softmax(x); }), draw(2, {3, 5}), true},
      {"accepts a matrix product", claim_of([matrix](const Var& x) { return matmul(x, Var(matrix)); }), draw(3, {3, 4}),
       true},
      {"accepts a sum of all, a tensor without axes", claim_of([](const Var& x) { return sum(square(x)); }),
       draw(4, {7}), true},
      {"accepts exponentials from e^-8 to e^8", claim_of([](const Var& x) { return exp(4 * x); }), draw(5, {3, 4}),
       true},
      {"accepts squares of numbers around a million", claim_of([](const Var& x) { return square(x); }),
       draw(6, {6}, 0.9e6, 1.1e6), true},
      {"accepts gradients around 1e-9", claim_of(tiny), draw(7, {2, 6}), true},
      {"accepts squares of numbers around 1e-4, and leaves them alone",
       claim_of([](const Var& x) { return square(x); }), draw(9, {3, 4}, -1e-4, 1e-4), true},
      {"accepts elements that do nothing", claim_of([](const Var& x) { return square(slice(x, 0, 1, 3)); }),
       draw(8, {4, 3}), true},
  };
}

std::vector<Planted> wrong_claims(Rng rng) {
  const auto draw = [&rng](std::uint32_t tag, const Shape& shape) {
    return uniform(rng.split(tag), shape, 0.5, 2, DType::f64);
  };
  const auto place = std::int64_t(rng.split(0).bits().word(0) % 60);
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();
  const Shape sixty{5, 3, 4};
  const Function log_softmax_of = [](const Var& x) { return log_softmax(x); };
  return {
      {"finds a factor of 2", claim_of(cubed, times(2)), draw(1, {3, 4}), false},
      {"finds a factor of 1.0001", claim_of(cubed, times(1.0001)), draw(2, {3, 4}), false},
      {"finds a wrong sign", claim_of(cubed, times(-1)), draw(3, {3, 4}), false},
      {"finds a gradient of 0", claim_of(cubed, times(0)), draw(4, {3, 4}), false},
      {"finds a permutation that was not undone", claim_of([](const Var& x) { return rotate(x, 0, 2); }, pass_on),
       draw(5, {5, 2}), false},
      {"finds a transposition that was not undone",
       claim_of(
           [](const Var& x) {
             return permute(x, {1, 0});
           },
           pass_on),
       draw(6, {4, 4}), false},
      {"finds a softmax that claims a gradient of 0", claim_of([](const Var& x) { return softmax(x); }, times(0)),
       draw(7, {3, 4}), false},
      {"finds a log-softmax without its second term", claim_of(log_softmax_of, pass_on), draw(8, {3, 4}), false},
      {"finds one wrong element of sixty", claim_of(cubed, at(place, [](double g) { return g + 0.02; })),
       draw(9, sixty), false, place},
      {"finds that the last element is wrong", claim_of(cubed, at(59, [](double g) { return 1.01 * g + 1e-3; })),
       draw(10, sixty), false, 59},
      {"finds one NaN", claim_of(cubed, at(place, [](double) { return kNaN; })), draw(11, sixty), false, place},
      {"finds one infinity", claim_of(cubed, at(place, [](double) { return kInf; })), draw(12, sixty), false, place},
      {"finds NaN everywhere", claim_of(cubed, times(kNaN)), draw(13, {3, 4}), false},
      {"finds gradients around 1e-9 that are twice too large", claim_of(tiny, times(2)), draw(14, {3, 4}), false},
      {"finds gradients around 1e-9 that claim to be 0", claim_of(tiny, times(0)), draw(15, {3, 4}), false},
      {"finds the wrong shape",
       claim_of(cubed,
                [](const Tensor& dx, const Tensor&) {
                  return dx.reshape({4, 3});
                }),
       draw(16, {3, 4}), false},
  };
}

void judge(lessons::Checks& checks, const Planted& planted, Rng rng) {
  checks.attempt(planted.name, [&] {
    const Tensor before = planted.x.clone();
    const Verdict verdict = check_gradient(planted.claim, planted.x, rng);
    const bool unchanged = equal_bits(planted.x, before);
    if (verdict.right != planted.right)
      return checks.that(planted.name, false,
                         verdict.right
                             ? "called right, though it is wrong"
                             : "called wrong at element " + std::to_string(verdict.where) + ", though it is right");
    if (planted.where >= 0 && verdict.where != planted.where)
      return checks.that(planted.name, false,
                         "called wrong at element " + std::to_string(verdict.where) + ", but it is wrong at " +
                             std::to_string(planted.where));
    checks.that(planted.name, unchanged, "the verdict is true, but x is not to the last bit what it was before");
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    for (const Planted& planted : right_claims(rng.split(0))) judge(checks, planted, rng.split(2));
    for (const Planted& planted : wrong_claims(rng.split(1))) judge(checks, planted, rng.split(3));
  }
}

}  // namespace sinkhorn::lesson
