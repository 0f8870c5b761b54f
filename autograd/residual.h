// What the result of a residual branch is added to.
#pragma once
#include "autograd/tape.h"

namespace sinkhorn {

/// The residual stream around a branch f: a branch that is given one returns onto + f(x) instead of f(x), so that its
/// last product can add straight into the stream.
struct Residual {
  Var onto = {};  // of f(x)'s shape; empty: nothing to add to
  /// The value is onto - f(x), which takes a step back, yet what flows back through f is the gradient of onto + f(x):
  /// so one pass of a reversible chain rebuilds its input and differentiates. `onto` is a constant then.
  bool undo = false;
  /// The result may take the place of `onto`, a constant that nobody else reads.
  bool in_place = false;

  explicit operator bool() const { return bool(onto.value); }
};

/// The residual with y added, in the residual's type, for branches in which something stands between the last product
/// and the sum; y itself without one.
Var add_to(const Residual& residual, const Var& y);

/// An Error if the residual asks for what only a constant can give.
void check(std::string_view op, const Residual& residual);

}  // namespace sinkhorn
