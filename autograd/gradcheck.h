// The gradient checker: every element of every gradient against four-point central differences in f64.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/tape.h"

namespace sinkhorn {

/// The largest relative error that passes.
inline constexpr double kGradientTolerance = 1e-7;

/// A function at a point, as the checker sees it. The points are perturbed in place and restored.
struct GradientProblem {
  Tensors points;                                             // f64, on the CPU; every element is checked
  std::vector<std::string> names;                             // one per point, for messages
  std::function<Tensor()> value;                              // f(points), f64
  std::function<Tensors(const Tensor& cotangent)> gradients;  // d<cotangent, f>/d(points); empty means 0
};

/// The gradients of <cotangent, f> at the points of a problem, from both sides.
struct ComparedGradients {
  std::vector<std::string> names;
  Tensors points;
  Tensor value, cotangent;  // f(points), and what the numbers are projected on
  Tensors analytic;         // on the CPU, as they came: empty for no flow, and of whatever shape and type
  Tensors numeric;          // f64, of the points' shapes
  Tensors again;            // analytic once more
  Tensors doubled;          // analytic for twice the cotangent; asked for only if something disagrees
  double scale = 0;         // largest finite |gradient| of the problem
  bool smooth = true;       // false: the point lies on a kink or a tie, so the numeric derivative means nothing
  std::string failure;      // what kept the sides from being computed: an exception's message, a missing tensor

  /// True if both sides of point k can be compared element by element; an empty analytic gradient is 0.
  bool comparable(std::size_t k) const;
  /// |a - n| / (max(|a|, |n|) + 1e-3 * scale); infinite if it is NaN.
  double error(double a, double n) const;
  double analytic_at(std::size_t k, std::int64_t i) const { return analytic[k] ? analytic[k].data<double>()[i] : 0; }
  double numeric_at(std::size_t k, std::int64_t i) const { return numeric[k].data<double>()[i]; }
};

/// Computes both sides for the cotangent drawn from `rng`; numeric is (f(x-2h) - 8 f(x-h) + 8 f(x+h) - f(x+2h)) / 12h
/// with h = 1e-3 max(1, |x|). An element that disagrees is tried with h/2 too: if the two differences disagree, it is
/// not smooth. What the problem's functions throw becomes `failure`, except for want of memory or of a device.
ComparedGradients compare_gradients(const GradientProblem& problem, const Rng& rng);

struct GradientReport {
  double worst = 0;        // max of ComparedGradients::error; infinite where the sides cannot be compared
  bool smooth = true;      // of ComparedGradients
  bool repeatable = true;  // a second run gave the same bits
  std::string where;       // the element that was worst: name[index]: analytic a, numeric n; or what failed
  ComparedGradients gradients = {};

  bool passed() const { return smooth && repeatable && worst <= kGradientTolerance; }
};

/// Compares analytic gradients, every element, with the numeric ones. Gradients that throw, are missing or have a wrong
/// shape or type are a report that fails.
GradientReport check_gradients(const GradientProblem& problem, const Rng& rng);

/// One line of `gradcheck`.
struct CaseResult {
  std::string label;
  GradientReport report;
  bool passed;
};

/// Calls `problem_at(draw)` with fresh draws until the point is smooth (at most 20 times), and checks it there.
CaseResult check_case(std::string label, const std::function<GradientProblem(Draw&)>& problem_at,
                      const Rng& rng = Rng(1));

/// A case with its op's type forgotten, so that the checker is compiled once and not once per op.
struct AnyCase {
  std::string label;
  std::function<Tensors(Draw&)> inputs;
  std::vector<int> constants;
  std::function<Var(std::span<const Var> inputs)> apply;
};

template <Op O>
AnyCase any_case(const Case<O>& at) {
  return {at.label, at.inputs, at.constants, [op = at.op](std::span<const Var> inputs) { return apply(op, inputs); }};
}

/// The problem of one case, at freshly drawn inputs, computed on a device.
GradientProblem op_problem(const AnyCase& at, Draw& draw, Device device = Device::cpu);

/// An op and its cases, as listed by all_op_checks().
struct OpCheck {
  std::string_view name;
  std::function<std::vector<AnyCase>()> cases;

  /// Checks every case, computed on a device.
  std::vector<CaseResult> run(Device device = Device::cpu) const;
};

template <Op O>
OpCheck op_check() {
  return {O::name, [] {
            std::vector<AnyCase> cases;
            for (const Case<O>& at : O::cases()) cases.push_back(any_case(at));
            return cases;
          }};
}

/// One entry per member of AllOps.
std::vector<OpCheck> all_op_checks();

/// The one definition of agreement used everywhere else: |a - b| <= tolerance * max(largest |value|, 1e-3 *
/// largest_of_kind). Returns max |a - b| over that maximum; infinite if shapes differ or a NaN is there; 0 for empty
/// tensors.
double relative_error(const Tensor& got, const Tensor& want, double largest_of_kind = 0);

}  // namespace sinkhorn
