// Wrong: recursion, once for each road to a node: too deep for a long chain, and exponential where nodes are shared.
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

namespace {

void flow(const std::vector<Node>& nodes, int i, double dy, std::vector<double>& gradients) {
  gradients[i] += dy;
  const Node& node = nodes[i];
  for (std::size_t k = 0; k < node.inputs.size(); ++k) flow(nodes, node.inputs[k], dy * node.slopes[k], gradients);
}

}  // namespace

std::vector<double> ScalarTape::backward(int root) const {
  std::vector<double> gradients(nodes.size(), 0.0);
  flow(nodes, root, 1, gradients);
  return gradients;
}

}  // namespace sinkhorn::lesson
