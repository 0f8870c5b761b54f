// A reversible block and a chain of them. Edit this file, then: sinkhorn lesson verify 16
//
// What you need of the library:
//   add(a, b).value, sub(a, b).value      of two tensors, element by element
//   block.f.run(Tape(), x).value          what a branch gives, with nothing recorded
//   Tape tape = Tape::record();           a small tape of your own, for one branch:
//   Var in = tape.leaf(x), out = block.f.run(tape, in);
//   Gradients g = tape.backward(out, dy);   then g.of(in), g.of(*block.f.weight)
#include "notebooks/lessons/16_reversible/exercise.h"

#include "autograd/ops/elementwise.h"

namespace sinkhorn::lesson {

// y1 = x1 + f(x2), y2 = x2 + g(y1).
Pair forward(const Block& block, const Pair& x) {
  const Tensor y1 = add(x.first, block.f.run(Tape(), x.second).value).value;
  const Tensor y2 = add(x.second, block.g.run(Tape(), x.first).value).value;  // g must read y1
  return {y1, y2};
}

// Only y is known here. Which of x1 and x2 can be had first?
Pair inverse(const Block& block, const Pair& y) {
  (void)block;
  return y;  // yours to write
}

// `y` holds the pair and the gradient that arrives at each half. x is rebuilt on the way, by the same run of a branch
// that records it on a small tape. Gradients of weights are added to what `weights` holds already.
Point backward(const Block& block, const Point& y, WeightGradients& weights) {
  (void)block;
  (void)weights;
  return y;  // yours to write
}

// Forward through all blocks. Every pair but the last may be forgotten.
Pair forward_chain(const Blocks& blocks, const Pair& x) {
  (void)blocks;
  return x;  // yours to write
}

// Backward through all blocks, from the last one. There is no list of activations: rebuild them.
Point backward_chain(const Blocks& blocks, const Point& y, WeightGradients& weights) {
  (void)blocks;
  (void)weights;
  return y;  // yours to write
}

}  // namespace sinkhorn::lesson
