// What verifies an exercise: counted checks on random inputs. Zero checks are a failure, said by whoever reads the
// list.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "autograd/gradcheck.h"

namespace sinkhorn::lessons {

struct CheckResult {
  std::string name;
  bool passed = false;
  std::string detail;  // of a failure: what was expected and what came; may have several lines
};

/// A function of f64 tensors and its gradient, as the gradient checker takes it. `gradients` returns one tensor a
/// point, empty for 0.
GradientProblem problem_of(std::vector<std::string> names, const Tensors& points,
                           std::function<Tensor(const Tensors& points)> value,
                           std::function<Tensors(const Tensors& points, const Tensor& dy)> gradients);

class Checks {
 public:
  /// Independent streams for the inputs, one a round: equal for equal seeds.
  static constexpr int kRounds = 4;
  std::vector<Rng> rounds() const;

  Checks(std::uint64_t seed, std::function<void(const CheckResult&)> seen) : seed_(seed), seen_(std::move(seen)) {}

  /// These checks, where the detail of a failure begins with `where`: what was drawn at random, and so is no part of
  /// the name. For as long as this object lives.
  Checks at(const std::string& where);

  void that(const std::string& name, bool passed, const std::string& detail = {});
  /// |got - want| <= tolerance * max(1, largest |want|) in every element, with the same shape and dtype; NaN never
  /// passes.
  void near(const std::string& name, const Tensor& got, const Tensor& want, double tolerance = 1e-9);
  void near(const std::string& name, double got, double want, double tolerance = 1e-9);
  void equal(const std::string& name, std::int64_t got, std::int64_t want);
  /// The learner's gradients against numeric differences of the learner's (or the library's) function.
  void gradients(const std::string& name, const GradientProblem& problem, Rng rng);
  /// Runs code of the learner's that may throw, as a kernel on the emulated grid does when it races or leaves its
  /// buffers. An exception is a failed check of this name; otherwise what `body` checks counts. Returns whether nothing
  /// was thrown.
  bool attempt(const std::string& name, const std::function<void()>& body);

 private:
  std::uint64_t seed_;
  std::function<void(const CheckResult&)> seen_;
};

}  // namespace sinkhorn::lessons

namespace sinkhorn::lesson {

/// Each lesson's check.cpp defines this. It is linked with the learner's file alone, so names are the same in all
/// lessons.
void check(lessons::Checks& checks);

}  // namespace sinkhorn::lesson
