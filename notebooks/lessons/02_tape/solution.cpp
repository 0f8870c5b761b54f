// A tape of single numbers. Inputs stand before what is computed from them, so one loop from the end is enough.
#include <cmath>

#include "notebooks/lessons/02_tape/exercise.h"

namespace sinkhorn::lesson {

int ScalarTape::leaf(double value) {
  nodes.push_back({value, {}, {}});
  return int(nodes.size()) - 1;
}

int ScalarTape::add(int a, int b) {
  nodes.push_back({nodes[a].value + nodes[b].value, {a, b}, {1, 1}});
  return int(nodes.size()) - 1;
}

int ScalarTape::mul(int a, int b) {
  const double x = nodes[a].value, y = nodes[b].value;
  nodes.push_back({x * y, {a, b}, {y, x}});
  return int(nodes.size()) - 1;
}

int ScalarTape::div(int a, int b) {
  const double x = nodes[a].value, y = nodes[b].value;
  nodes.push_back({x / y, {a, b}, {1 / y, -x / (y * y)}});
  return int(nodes.size()) - 1;
}

int ScalarTape::tanh(int a) {
  const double y = std::tanh(nodes[a].value);
  nodes.push_back({y, {a}, {1 - y * y}});
  return int(nodes.size()) - 1;
}

std::vector<double> ScalarTape::backward(int root) const {
  std::vector<double> gradients(nodes.size(), 0.0);
  gradients[root] = 1;
  for (int i = root; i >= 0; --i) {
    const Node& node = nodes[i];
    for (std::size_t k = 0; k < node.inputs.size(); ++k) gradients[node.inputs[k]] += gradients[i] * node.slopes[k];
  }
  return gradients;
}

}  // namespace sinkhorn::lesson
