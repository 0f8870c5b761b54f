// A tape of your own. Edit this file, then: sinkhorn lesson verify 2
//
// Forward appends nodes. Backward is one loop over them, from the root down to node 0, without recursion: one of the
// checks has a chain of 200,000 nodes.
#include "notebooks/lessons/02_tape/exercise.h"

#include <cmath>

namespace sinkhorn::lesson {

int ScalarTape::leaf(double value) {
  nodes.push_back({value, {}, {}});
  return int(nodes.size()) - 1;
}

// This one is complete. Its slopes are 1 and 1.
int ScalarTape::add(int a, int b) {
  nodes.push_back({nodes[a].value + nodes[b].value, {a, b}, {1, 1}});
  return int(nodes.size()) - 1;
}

int ScalarTape::mul(int a, int b) {
  nodes.push_back({nodes[a].value * nodes[b].value, {a, b}, {1, 1}});  // its slopes are wrong
  return int(nodes.size()) - 1;
}

int ScalarTape::div(int a, int b) {
  (void)b;
  return leaf(nodes[a].value);  // yours to write
}

int ScalarTape::tanh(int a) {
  return leaf(nodes[a].value);  // yours to write
}

std::vector<double> ScalarTape::backward(int root) const {
  std::vector<double> gradients(nodes.size(), 0.0);
  gradients[root] = 1;
  // Yours to write: every node hands its gradient on to its inputs.
  return gradients;
}

}  // namespace sinkhorn::lesson
