// A reversible block and a chain of them: what the exercise is to write.
#pragma once
#include <functional>
#include <map>
#include <vector>

#include "autograd/tape.h"

namespace sinkhorn::lesson {

/// A residual function: computes on `tape` (none: nothing is recorded) a tensor of x's shape. It reaches its weight
/// through tape.leaf(*weight); blocks may share one.
struct Branch {
  std::function<Var(const Tape& tape, const Var& x)> run;
  const Parameter* weight = nullptr;
};

/// y1 = x1 + f(x2), y2 = x2 + g(y1)
struct Block {
  Branch f, g;
};
using Blocks = std::vector<Block>;

/// The two streams, of one shape and dtype.
struct Pair {
  Tensor first, second;
};

/// Gradients of weights. One that is used several times gets the sum.
using WeightGradients = std::map<const Parameter*, Tensor>;

/// y of a block, from x. Records nothing.
Pair forward(const Block& block, const Pair& x);

/// x of a block, from y alone.
Pair inverse(const Block& block, const Pair& y);

/// A pair and the gradient that arrives at it.
struct Point {
  Pair value, gradient;
};

/// From y and its gradient to x and its gradient, running each branch once. Adds to `weights`.
Point backward(const Block& block, const Point& y, WeightGradients& weights);

/// y of the last block of a chain. Keeps no other pair.
Pair forward_chain(const Blocks& blocks, const Pair& x);

/// From the chain's y and its gradient to its x and gradient, running each branch once and holding the activations of
/// one branch at a time. Adds to `weights`.
Point backward_chain(const Blocks& blocks, const Point& y, WeightGradients& weights);

}  // namespace sinkhorn::lesson
