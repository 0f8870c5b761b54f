// Wrong: the inverse takes f of y2, before x2 is known.
#include "autograd/ops/elementwise.h"
#include "notebooks/lessons/16_reversible/exercise.h"

namespace sinkhorn::lesson {
namespace {

Tensor sum(const Tensor& a, const Tensor& b) { return add(a, b).value; }
Tensor difference(const Tensor& a, const Tensor& b) { return sub(a, b).value; }

// Undoes y = x + branch(from): turns y into x, and adds what flows through the branch to the gradient of `from`.
void undo(const Branch& branch, Tensor& y, const Tensor& from, const Tensor& d_y, Tensor& d_from,
          WeightGradients& weights) {
  const Tape tape = Tape::record();
  const Var input = tape.leaf(from), output = branch.run(tape, input);
  y = difference(y, output.value);
  const Gradients gradients = tape.backward(output, d_y);
  if (const Tensor flow = gradients.of(input)) d_from = sum(d_from, flow);
  if (const Tensor flow = gradients.of(*branch.weight)) {
    Tensor& total = weights[branch.weight];
    total = total ? sum(total, flow) : flow;
  }
}

}  // namespace

Pair forward(const Block& block, const Pair& x) {
  const Tensor y1 = sum(x.first, block.f.run(Tape(), x.second).value);
  return {y1, sum(x.second, block.g.run(Tape(), y1).value)};
}

Pair inverse(const Block& block, const Pair& y) {
  const Tensor x1 = difference(y.first, block.f.run(Tape(), y.second).value);
  return {x1, difference(y.second, block.g.run(Tape(), x1).value)};
}

Point backward(const Block& block, const Point& y, WeightGradients& weights) {
  Point at = y;
  undo(block.g, at.value.second, at.value.first, at.gradient.second, at.gradient.first, weights);
  undo(block.f, at.value.first, at.value.second, at.gradient.first, at.gradient.second, weights);
  return at;
}

Pair forward_chain(const Blocks& blocks, const Pair& x) {
  Pair pair = x;
  for (const Block& block : blocks) pair = forward(block, pair);
  return pair;
}

Point backward_chain(const Blocks& blocks, const Point& y, WeightGradients& weights) {
  Point point = y;
  for (std::size_t i = blocks.size(); i-- > 0;) point = backward(blocks[i], point, weights);
  return point;
}

}  // namespace sinkhorn::lesson
