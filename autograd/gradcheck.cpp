#include "autograd/gradcheck.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

namespace sinkhorn {
namespace {

double dot(const Tensor& a, const Tensor& b) {
  const double *x = a.data<double>(), *y = b.data<double>();
  double sum = 0;
  for (std::int64_t i = 0; i < a.count(); ++i) sum += x[i] * y[i];
  return sum;
}

double largest_magnitude(const Tensor& t) {
  double largest = 0;
  if (t)
    for (double x : t.to_vector()) largest = std::max(largest, std::abs(x));
  return largest;
}

// The four-point central difference of <cotangent, f> in one element, with the element restored.
double central_difference(double& x, double h, const std::function<double()>& f) {
  const double at = x;
  auto probe = [&](double steps) {
    x = at + steps * h;
    return f();
  };
  const double difference = (probe(-2) - 8 * probe(-1) + 8 * probe(1) - probe(2)) / (12 * h);
  x = at;
  return difference;
}

}  // namespace

GradientReport check_gradients(const GradientProblem& problem, Rng rng) {
  const Tensor y = problem.value();
  const Tensor cotangent = uniform(rng, y.shape(), -1, 1, DType::f64);
  const Tensors analytic = problem.gradients(cotangent), again = problem.gradients(cotangent);
  auto projected = [&] { return dot(problem.value(), cotangent); };

  GradientReport report;
  double scale = 0;
  for (std::size_t k = 0; k < analytic.size(); ++k) {
    scale = std::max(scale, largest_magnitude(analytic[k]));
    report.repeatable = report.repeatable && equal_bits(analytic[k], again[k]);
  }
  std::vector<std::vector<double>> numeric(problem.points.size());
  for (std::size_t k = 0; k < problem.points.size(); ++k) {
    for (double& x : problem.points[k].span<double>()) {
      numeric[k].push_back(central_difference(x, 1e-3 * std::max(1.0, std::abs(x)), projected));
      scale = std::max(scale, std::abs(numeric[k].back()));
    }
  }
  auto error = [&](double a, double b) {
    const double e = std::abs(a - b) / (std::max(std::abs(a), std::abs(b)) + 1e-3 * scale);
    return a == b ? 0.0 : std::isnan(e) ? std::numeric_limits<double>::infinity() : e;
  };
  for (std::size_t k = 0; k < problem.points.size(); ++k) {
    for (std::int64_t i = 0; i < problem.points[k].count(); ++i) {
      const double a = analytic[k] ? analytic[k].data<double>()[i] : 0, n = numeric[k][i];
      const double e = error(a, n);
      if (e > kGradientTolerance) {
        double& x = problem.points[k].data<double>()[i];
        const double finer = central_difference(x, 0.5e-3 * std::max(1.0, std::abs(x)), projected);
        if (error(n, finer) > 0.3 * kGradientTolerance) report.smooth = false;
      }
      if (e > report.worst || report.where.empty()) {
        std::ostringstream where;
        where << problem.names[k] << "[" << i << "] of shape " << problem.points[k].shape() << ": analytic " << a
              << ", numeric " << n;
        report.where = where.str();
        report.worst = std::max(report.worst, e);
      }
    }
  }
  return report;
}

CaseResult check_case(std::string label, const std::function<GradientProblem(Draw&)>& problem_at, Rng rng) {
  constexpr int kDraws = 20;
  GradientReport report;
  for (int attempt = 0; attempt < kDraws; ++attempt) {
    Draw draw(rng.split(2 * attempt));
    report = check_gradients(problem_at(draw), rng.split(2 * attempt + 1));
    if (report.smooth) break;
  }
  if (!report.smooth) report.where += " (a kink or a tie at each of 20 draws)";
  if (!report.repeatable) report.where += " (two runs differ in their bits)";
  const bool passed = report.smooth && report.repeatable && report.worst <= kGradientTolerance;
  return {std::move(label), std::move(report), passed};
}

GradientProblem op_problem(const AnyCase& at, Draw& draw, Device device) {
  const Tensors inputs = at.inputs(draw);
  GradientProblem problem;
  std::vector<bool> differentiated;
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    const bool constant = std::find(at.constants.begin(), at.constants.end(), int(k)) != at.constants.end();
    differentiated.push_back(inputs[k] && inputs[k].dtype() == DType::f64 && !constant);
    if (!differentiated[k]) continue;
    problem.points.push_back(inputs[k]);
    problem.names.push_back("input " + std::to_string(k));
  }
  // The points change on the host, so they are moved for every evaluation.
  const auto there = [device](const Tensor& x) { return x ? x.to(device) : x; };
  problem.value = [=] {
    std::vector<Var> vars;
    for (const Tensor& input : inputs) vars.emplace_back(there(input));
    return at.apply(vars).value.to(Device::cpu);
  };
  problem.gradients = [=](const Tensor& cotangent) {
    const Tape tape = Tape::record();
    std::vector<Var> vars, leaves;
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      const Tensor input = there(inputs[k]);
      vars.push_back(differentiated[k] ? tape.leaf(input) : Var(input));
      if (differentiated[k]) leaves.push_back(vars.back());
    }
    const Gradients gradients = tape.backward(at.apply(vars), there(cotangent));
    Tensors flows;
    for (const Var& leaf : leaves) {
      const Tensor flow = gradients.of(leaf);
      flows.push_back(flow ? flow.to(Device::cpu) : flow);
    }
    return flows;
  };
  return problem;
}

std::vector<CaseResult> OpCheck::run(Device device) const {
  std::vector<CaseResult> results;
  for (const AnyCase& at : cases())
    results.push_back(check_case(at.label, [&](Draw& draw) { return op_problem(at, draw, device); }));
  return results;
}

double relative_error(const Tensor& got, const Tensor& want, double largest_of_kind) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  if (got.shape() != want.shape()) return kInfinite;
  const std::vector<double> a = got.to_vector(), b = want.to_vector();
  double largest = 1e-3 * largest_of_kind, difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) || std::isnan(b[i])) return kInfinite;
    if (a[i] == b[i]) continue;
    difference = std::max(difference, std::abs(a[i] - b[i]));
  }
  for (double x : b) largest = std::max(largest, std::abs(x));
  if (difference == 0) return 0;
  return largest > 0 && !std::isinf(difference) ? difference / largest : kInfinite;
}

}  // namespace sinkhorn
