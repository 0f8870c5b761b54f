#include "autograd/gradcheck.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
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
    for (double x : t.to_vector())
      if (std::isfinite(x)) largest = std::max(largest, std::abs(x));
  return largest;
}

// The four-point central difference of <cotangent, f> in one element, with the element restored.
double central_difference(double& x, double relative_step, const std::function<double()>& f) {
  struct Restore {
    double& x;
    double at;
    ~Restore() { x = at; }
  } restore{x, x};
  const double h = relative_step * std::max(1.0, std::abs(x));
  auto probe = [&](double steps) {
    x = restore.at + steps * h;
    return f();
  };
  return (probe(-2) - 8 * probe(-1) + 8 * probe(1) - probe(2)) / (12 * h);
}

constexpr double kStep = 1e-3;

Tensors on_the_host(const Tensors& tensors) {
  Tensors result;
  result.reserve(tensors.size());
  for (const Tensor& t : tensors) result.push_back(t ? t.to(Device::cpu) : t);
  return result;
}

// What runs once per check: the problem's functions, with what they do wrong put into words.
class Comparison {
 public:
  Comparison(const GradientProblem& problem, const Rng& rng) : problem_(problem), rng_(rng) {
    result_.names = problem.names;
    result_.points = problem.points;
    before_.reserve(problem.points.size());
    for (const Tensor& point : problem.points) before_.push_back(point.clone());
  }

  ComparedGradients run() {
    try {
      evaluate();
      differentiate();
      take_differences();
      look_closer();
    } catch (const OutOfMemory&) {
      throw;
    } catch (const DeviceError&) {
      throw;
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      result_.failure = error.what();
    } catch (...) {
      result_.failure = "an exception that is no std::exception";
    }
    return std::move(result_);
  }

 private:
  Tensor value() const {
    Tensor y = problem_.value();
    if (!y) fail("the function gave no value: an empty tensor");
    if (y.dtype() != DType::f64) fail("the function's value is ", y.dtype(), "; a check computes in f64");
    if (result_.value && y.shape() != result_.value.shape())
      fail("the function's value is ", y.shape(), " now and was ", result_.value.shape(), " before");
    return y;
  }
  Tensors gradients(const Tensor& cotangent) {
    Tensors flows = on_the_host(problem_.gradients(cotangent));
    if (flows.size() != problem_.points.size())
      fail("the gradient function gave ", flows.size(), " tensors for ", problem_.points.size(),
           " inputs; return one per input, in their order");
    return flows;
  }
  // Ops never write into their inputs; the points are put back, so that the caller's stay what they were.
  void require_untouched(const char* what) {
    for (std::size_t k = 0; k < before_.size(); ++k) {
      if (equal_bits(before_[k], problem_.points[k])) continue;
      problem_.points[k].assign(before_[k]);
      fail(what, " wrote into its input ", problem_.names[k], "; compute into a new tensor");
    }
  }
  void evaluate() {
    result_.value = value();
    require_untouched("the function");
    result_.cotangent = uniform(rng_, result_.value.shape(), -1, 1, DType::f64);
  }
  void differentiate() {
    const Tensor kept = result_.cotangent.clone();
    result_.analytic = gradients(result_.cotangent);
    require_untouched("the gradient function");
    if (!equal_bits(kept, result_.cotangent)) {
      result_.cotangent.assign(kept);
      fail("the gradient function wrote into the incoming gradient; compute into a new tensor");
    }
    // What it returns may share a buffer that the next call overwrites.
    for (Tensor& flow : result_.analytic)
      if (flow) flow = flow.clone();
    result_.again = gradients(result_.cotangent);
    for (const Tensor& flow : result_.analytic) result_.scale = std::max(result_.scale, largest_magnitude(flow));
  }
  double projected() const { return dot(value(), result_.cotangent); }
  void take_differences() {
    for (const Tensor& point : problem_.points) {
      std::vector<double> numeric;
      numeric.reserve(std::size_t(point.count()));
      for (double& x : point.span<double>())
        numeric.push_back(central_difference(x, kStep, [this] { return projected(); }));
      result_.numeric.push_back(Tensor::from(numeric, point.shape()));
      result_.scale = std::max(result_.scale, largest_magnitude(result_.numeric.back()));
    }
  }
  void look_closer() {
    bool disagrees = false;
    for (std::size_t k = 0; k < problem_.points.size(); ++k) {
      if (!result_.comparable(k)) {
        disagrees = true;
        continue;
      }
      for (std::int64_t i = 0; i < problem_.points[k].count(); ++i) {
        const double n = result_.numeric_at(k, i);
        if (result_.error(result_.analytic_at(k, i), n) <= kGradientTolerance) continue;
        disagrees = true;
        double& x = problem_.points[k].data<double>()[i];
        const double finer = central_difference(x, kStep / 2, [this] { return projected(); });
        if (result_.error(n, finer) > 0.3 * kGradientTolerance) result_.smooth = false;
      }
    }
    if (!disagrees) return;
    Tensor twice = result_.cotangent.clone();
    for (double& x : twice.span<double>()) x *= 2;
    result_.doubled = gradients(twice);
  }

  const GradientProblem& problem_;
  Rng rng_;
  Tensors before_;
  ComparedGradients result_;
};

}  // namespace

bool ComparedGradients::comparable(std::size_t k) const {
  return !analytic[k] || (analytic[k].dtype() == DType::f64 && analytic[k].shape() == points[k].shape());
}

double ComparedGradients::error(double a, double n) const {
  const double e = std::abs(a - n) / (std::max(std::abs(a), std::abs(n)) + 1e-3 * scale);
  return a == n ? 0.0 : std::isnan(e) ? std::numeric_limits<double>::infinity() : e;
}

ComparedGradients compare_gradients(const GradientProblem& problem, const Rng& rng) {
  return Comparison(problem, rng).run();
}

GradientReport check_gradients(const GradientProblem& problem, const Rng& rng) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  GradientReport report;
  report.gradients = compare_gradients(problem, rng);
  const ComparedGradients& both = report.gradients;
  if (!both.failure.empty()) {
    report.worst = kInfinite;
    report.where = both.failure;
    return report;
  }
  report.smooth = both.smooth;
  report.repeatable = std::equal(both.analytic.begin(), both.analytic.end(), both.again.begin(), equal_bits);
  for (std::size_t k = 0; k < both.points.size(); ++k) {
    std::ostringstream where;
    where << both.names[k];
    if (!both.comparable(k)) {
      where << ": the analytic gradient is " << both.analytic[k].dtype() << " " << both.analytic[k].shape()
            << ", expected " << DType::f64 << " " << both.points[k].shape();
      report.where = where.str();
      report.worst = kInfinite;
      report.smooth = true;  // no kink explains this
      return report;
    }
    for (std::int64_t i = 0; i < both.points[k].count(); ++i) {
      const double a = both.analytic_at(k, i), n = both.numeric_at(k, i), e = both.error(a, n);
      if (e <= report.worst && !report.where.empty()) continue;
      std::ostringstream element;
      element << both.names[k] << "[" << i << "] of shape " << both.points[k].shape() << ": analytic " << a
              << ", numeric " << n;
      report.where = element.str();
      report.worst = std::max(report.worst, e);
    }
  }
  return report;
}

CaseResult check_case(std::string label, const std::function<GradientProblem(Draw&)>& problem_at, const Rng& rng) {
  constexpr int kDraws = 20;
  GradientReport report;
  for (int attempt = 0; attempt < kDraws; ++attempt) {
    Draw draw(rng.split(2 * attempt));
    report = check_gradients(problem_at(draw), rng.split(2 * attempt + 1));
    if (report.smooth) break;
  }
  if (!report.smooth) report.where += " (a kink, a tie or no finite value at each of 20 draws)";
  if (!report.repeatable) report.where += " (two runs differ in their bits)";
  const bool passed = report.passed();
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
