// A gradient checker: four points, a random combination of the outputs, errors relative to what is there, no NaN.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "notebooks/lessons/03_gradient_check/exercise.h"

namespace sinkhorn::lesson {
namespace {

double dot(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.count(); ++i) sum += a.span<double>()[i] * b.span<double>()[i];
  return sum;
}

// The slope of f in one element of x, which is as it was afterwards.
double central_difference(double& element, const std::function<double()>& f) {
  const double at = element, h = 1e-3 * std::max(1.0, std::abs(at));
  const auto f_at = [&](double steps) {
    element = at + steps * h;
    return f();
  };
  const double slope = (f_at(-2) - 8 * f_at(-1) + 8 * f_at(1) - f_at(2)) / (12 * h);
  element = at;
  return slope;
}

}  // namespace

Verdict check_gradient(const Claim& claim, const Tensor& x, Rng rng) {
  const Tensor dy = uniform(rng, claim.value(x).shape(), -1, 1, DType::f64);
  const Tensor dx = claim.gradient(x, dy);
  if (dx.shape() != x.shape()) return {false, 0};

  std::vector<double> numeric;
  double scale = 0;  // of the whole gradient: smaller differences than a millionth of it are rounding
  for (double& element : x.span<double>()) {
    numeric.push_back(central_difference(element, [&] { return dot(claim.value(x), dy); }));
    scale = std::max(scale, std::abs(numeric.back()));
  }

  Verdict verdict{true, -1};
  double worst = 0;
  for (std::int64_t i = 0; i < x.count(); ++i) {
    const double claimed = dx.span<double>()[i], n = numeric[i];
    double error = claimed == n ? 0 : std::abs(claimed - n) / (std::max(std::abs(claimed), std::abs(n)) + 1e-3 * scale);
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();  // NaN, or infinity over infinity
    if (error <= 1e-6) continue;
    if (error > worst) verdict = {false, i};
    worst = std::max(worst, error);
  }
  return verdict;
}

}  // namespace sinkhorn::lesson
