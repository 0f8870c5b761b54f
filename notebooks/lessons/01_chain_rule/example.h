// The gate of this lesson, said with the library.
#pragma once
#include "autograd/ops/elementwise.h"

namespace sinkhorn::lessons::lesson_01_chain_rule {

/// y = x tanh(w x); on a tape if w or x is.
inline Var gate(const Var& w, const Var& x) { return x * tanh(w * x); }

/// The slopes of the gate by w and by x.
inline std::pair<double, double> slopes_of_gate(double w, double x) {
  const Tape tape = Tape::record();
  const Var at_w = tape.leaf(Tensor::full({}, w, DType::f64)), at_x = tape.leaf(Tensor::full({}, x, DType::f64));
  const Gradients gradients = tape.backward(gate(at_w, at_x));
  return {gradients.of(at_w).item(), gradients.of(at_x).item()};
}

}  // namespace sinkhorn::lessons::lesson_01_chain_rule
