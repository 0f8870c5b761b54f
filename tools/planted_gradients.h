// Wrong gradients, planted on purpose: what the usual mistakes look like under the gradient microscope.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "autograd/gradcheck.h"

namespace sinkhorn {

/// A function of the library with a gradient written by hand, wrong in one way.
struct PlantedGradient {
  std::string name, purpose;
  std::function<GradientProblem(Draw&)> problem_at;
};
/// "none" is a right gradient.
const std::vector<PlantedGradient>& planted_gradients();
/// Throws UsageError naming all plants, and the nearest, for an unknown one.
const PlantedGradient& find_planted_gradient(const std::string& name);

}  // namespace sinkhorn
