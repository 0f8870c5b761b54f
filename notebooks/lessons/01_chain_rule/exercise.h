// A neuron and a gate, and how fast they change: what the exercise is to write.
#pragma once

namespace sinkhorn::lesson {

/// y = tanh(w x + b).
double neuron(double w, double x, double b);

struct NeuronGradient {
  double dw, dx, db;
};
/// How much each input of the neuron counts, if y counts dy: dw = dy * (slope of y by w), and so on.
NeuronGradient neuron_backward(double w, double x, double b, double dy);

/// y = x tanh(w x): the number x, let through as far as its own tanh opens. x is used twice.
double gate(double w, double x);

struct GateGradient {
  double dw, dx;
};
/// The same for the gate.
GateGradient gate_backward(double w, double x, double dy);

}  // namespace sinkhorn::lesson
