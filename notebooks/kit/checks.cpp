#include "notebooks/kit/checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "autograd/microscope.h"
#include "notebooks/kit/drawing.h"
#include "notebooks/kit/microscope_view.h"

namespace sinkhorn::lessons {
namespace {

// "[1, 2]" of element 5 in shape (2, 3).
std::string index_in(const Shape& shape, std::int64_t at) {
  std::string result;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    result = std::to_string(at % shape[axis]) + (result.empty() ? "" : ", ") + result;
    at /= shape[axis];
  }
  return "[" + result + "]";
}

// The microscope's view, indented so that it stays as it is.
std::string under_the_microscope(const GradientReport& report) {
  const drawing::Style style{.columns = 74};
  return drawing::indented(drawing::microscope_view(style, diagnose(report.gradients)));
}

}  // namespace

GradientProblem problem_of(std::vector<std::string> names, const Tensors& points,
                           std::function<Tensor(const Tensors& points)> value,
                           std::function<Tensors(const Tensors& points, const Tensor& dy)> gradients) {
  return {points, std::move(names), [points, value = std::move(value)] { return value(points); },
          [points, gradients = std::move(gradients)](const Tensor& dy) { return gradients(points, dy); }};
}

std::vector<Rng> Checks::rounds() const {
  std::vector<Rng> streams;
  streams.reserve(kRounds);
  for (std::uint32_t round = 0; round < kRounds; ++round) streams.push_back(Rng(seed_).split(round));
  return streams;
}

Checks Checks::at(const std::string& where) {
  return {seed_, [this, where](const CheckResult& result) {
            const bool one_line = result.detail.find('\n') == std::string::npos;
            that(result.name, result.passed, where + (one_line ? ": " : ":\n") + result.detail);
          }};
}

void Checks::that(const std::string& name, bool passed, const std::string& detail) {
  seen_({name, passed, passed ? std::string() : detail});
}

void Checks::near(const std::string& name, const Tensor& got, const Tensor& want, double tolerance) {
  if (!got) return that(name, false, "expected a tensor of shape " + text_of(want.shape()) + ", got none");
  if (got.shape() != want.shape())
    return that(name, false, "expected shape " + text_of(want.shape()) + ", got " + text_of(got.shape()));
  if (got.dtype() != want.dtype()) {
    return that(name, false, text_of("expected elements of type ", want.dtype(), ", got ", got.dtype()));
  }
  const std::vector<double> a = got.to_vector(), b = want.to_vector();
  double largest = 1;
  for (const double x : b)
    if (std::isfinite(x)) largest = std::max(largest, std::abs(x));
  std::int64_t wrong = 0, worst = -1;
  double distance = -1;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = a[i] == b[i] ? 0 : std::abs(a[i] - b[i]);
    if (d <= tolerance * largest) continue;  // NaN does not
    ++wrong;
    if (worst < 0 || !(d <= distance)) {
      worst = std::int64_t(i);
      distance = d;
    }
  }
  if (wrong == 0) return that(name, true);
  that(
      name, false,
      fmt::format("{} of {} elements differ; at {} expected {}, got {}", wrong, a.size(), index_in(want.shape(), worst),
                  drawing::number(b[std::size_t(worst)], 8), drawing::number(a[std::size_t(worst)], 8)));
}

void Checks::near(const std::string& name, double got, double want, double tolerance) {
  const bool passed = got == want || std::abs(got - want) <= tolerance * std::max(1.0, std::abs(want));
  that(name, passed, fmt::format("expected {}, got {}", drawing::number(want, 8), drawing::number(got, 8)));
}

void Checks::equal(const std::string& name, std::int64_t got, std::int64_t want) {
  that(name, got == want, fmt::format("expected {}, got {}", want, got));
}

void Checks::gradients(const std::string& name, const GradientProblem& problem, Rng rng) {
  attempt(name, [&] {
    const GradientReport report = check_gradients(problem, rng);
    // A learner's function may lie on a kink by chance; that is no mistake of the gradient.
    const bool passed = report.repeatable && report.worst <= kGradientTolerance;
    that(name, passed, passed ? std::string() : under_the_microscope(report));
  });
}

bool Checks::attempt(const std::string& name, const std::function<void()>& body) {
  try {
    body();
    return true;
  } catch (const std::exception& error) {
    that(name, false, std::string("stopped by an error: ") + error.what());
  } catch (...) {
    that(name, false, "stopped by an exception that is no std::exception");
  }
  return false;
}

}  // namespace sinkhorn::lessons
