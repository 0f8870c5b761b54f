// Wrong: the second use of x replaces what came back from the first; it must add.
#include <cmath>

#include "notebooks/lessons/01_chain_rule/exercise.h"

namespace sinkhorn::lesson {

double neuron(double w, double x, double b) {
  const double p = w * x;
  const double s = p + b;
  return std::tanh(s);
}

NeuronGradient neuron_backward(double w, double x, double b, double dy) {
  const double y = neuron(w, x, b);
  const double ds = dy * (1 - y * y);     // y = tanh(s)
  const double dp = ds, db = ds;          // s = p + b
  const double dw = dp * x, dx = dp * w;  // p = w * x
  return {dw, dx, db};
}

double gate(double w, double x) {
  const double p = w * x;
  const double t = std::tanh(p);
  return x * t;
}

GateGradient gate_backward(double w, double x, double dy) {
  const double t = std::tanh(w * x);
  const double dt = dy * x;  // y = x * t
  double dx = dy * t;
  const double dp = dt * (1 - t * t);  // t = tanh(p)
  const double dw = dp * x;            // p = w * x
  dx = dp * w;                         // the second use of x
  return {dw, dx};
}

}  // namespace sinkhorn::lesson
