// One forward and one backward pass of a small model, written down node by node: what `sinkhorn tape` shows.
#pragma once
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "autograd/tape.h"

namespace sinkhorn {

/// A small model of the library's own parts. `build` records it on the tape and returns the loss, of one element, and
/// names for the leaves' values.
struct TapeExample {
  struct Built {
    Var loss;
    std::vector<std::pair<std::string, Tensor>> names;
  };
  std::string name, purpose;
  std::function<Built(const Tape& tape)> build;
};
const std::vector<TapeExample>& tape_examples();
/// Throws UsageError naming all examples, and the nearest, for an unknown one.
const TapeExample& find_tape_example(const std::string& name);

struct TapeWalk {
  struct Kept {
    KeptTensor tensor;
    int value_of;  // the node whose value this is, perhaps its own; -1: made for backward alone, or a constant
  };
  struct Flow {
    int input;  // the node's inputs[input]
    int to;     // that node
    Tensor tensor;
  };
  struct Node {
    NodeInfo info;
    std::string label;  // of a leaf with a name, else empty
    Tensor value;
    std::vector<Kept> kept;
    std::size_t kept_after_forward = 0;  // bytes that the tape keeps once this node has run
    // Backward:
    Tensor incoming;  // the gradient that has arrived; empty if none has
    std::vector<Flow> flows;
    std::size_t kept_before_backward = 0, kept_after_backward = 0;  // bytes that the tape keeps

    bool is_leaf() const { return info.name == "leaf"; }
  };
  std::string example, purpose;
  std::vector<Node> nodes;
  int root = 0;  // backward visits root, root - 1, ..., 0

  /// "W1" or "matmul".
  std::string title(int node) const;
};

/// Runs the example once, forward and backward, and writes down what the tape said.
TapeWalk walk_tape(const TapeExample& example);

}  // namespace sinkhorn
