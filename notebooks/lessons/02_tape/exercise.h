// A tape of single numbers: what the exercise is to write.
#pragma once
#include <vector>

namespace sinkhorn::lesson {

/// One line of the tape: a value, the nodes it was computed from, and how fast it grows with each of them.
struct Node {
  double value;
  std::vector<int> inputs;     // earlier places; none for a leaf
  std::vector<double> slopes;  // d value / d inputs[k]
};

/// Numbers in the order in which they were computed. A node is named by its place: 0, 1, 2, ...
struct ScalarTape {
  std::vector<Node> nodes;

  /// Each appends one node, and returns its place.
  int leaf(double value);
  int add(int a, int b);  // a + b; a and b may be the same node, here and below
  int mul(int a, int b);  // a * b
  int div(int a, int b);  // a / b
  int tanh(int a);

  /// result[i] = d value(root) / d value(i) for every node i on the tape; 0 where the root does not depend on i.
  std::vector<double> backward(int root) const;
};

}  // namespace sinkhorn::lesson
