// A gradient checker. Edit this file, then: sinkhorn lesson verify 3
//
// What stands here is a checker as many projects have one. It is green nearly always. It lies in six ways or so: it
// passes gradients that are wrong, and complains about some that are right. Find the lies.
#include "notebooks/lessons/03_gradient_check/exercise.h"

#include <cmath>

namespace sinkhorn::lesson {
namespace {

double total(const Tensor& y) {
  double sum = 0;
  for (const double element : y.span<double>()) sum += element;
  return sum;
}

}  // namespace

Verdict check_gradient(const Claim& claim, const Tensor& x, Rng rng) {
  (void)rng;  // yours to use
  const Tensor dy = Tensor::full(claim.value(x).shape(), 1, DType::f64);
  const Tensor dx = claim.gradient(x, dy);
  const double h = 1e-12;
  for (std::int64_t i = 0; i < x.count(); ++i) {
    double& element = x.span<double>()[i];
    const double before = total(claim.value(x));
    element += h;
    const double after = total(claim.value(x));
    element -= h;
    const double numeric = (after - before) / h;
    if (std::abs(dx.span<double>()[i] - numeric) > 0.01) return {false, i};
  }
  return {true, -1};
}

}  // namespace sinkhorn::lesson
