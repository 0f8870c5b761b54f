#include <fmt/format.h>

#include "autograd/ops/elementwise.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/01_chain_rule/exercise.h"

namespace sinkhorn::lesson {
namespace {

Tensor number(double x) { return Tensor::full({}, x, DType::f64); }

// tanh(w x + b) and x tanh(w x) in the library.
Var neuron_of(const std::vector<Var>& in) { return sinkhorn::tanh(in[0] * in[1] + in[2]); }
Var gate_of(const std::vector<Var>& in) { return in[1] * sinkhorn::tanh(in[0] * in[1]); }

using Function = Var (*)(const std::vector<Var>& in);

double value_of(Function f, const Tensors& at) { return f({at.begin(), at.end()}).value.item(); }

std::vector<double> slopes_of(Function f, const Tensors& at, double dy) {
  const Tape tape = Tape::record();
  std::vector<Var> leaves;
  leaves.reserve(at.size());
  for (const Tensor& x : at) leaves.push_back(tape.leaf(x));
  const Gradients gradients = tape.backward(f(leaves), number(dy));
  std::vector<double> slopes;
  slopes.reserve(at.size());
  for (const Var& leaf : leaves) slopes.push_back(gradients.of(leaf).item());
  return slopes;
}

// A function of numbers whose slopes the learner claims.
GradientProblem claim(std::vector<std::string> names, const Tensors& at, Function f,
                      const std::function<std::vector<double>(const std::vector<double>& at, double dy)>& backward) {
  return lessons::problem_of(
      std::move(names), at, [f](const Tensors& points) { return number(value_of(f, points)); },
      [backward](const Tensors& points, const Tensor& dy) {
        std::vector<double> numbers;
        for (const Tensor& x : points) numbers.push_back(x.item());
        Tensors flows;
        for (const double slope : backward(numbers, dy.item())) flows.push_back(number(slope));
        return flows;
      });
}

std::vector<double> backward_of_neuron(const std::vector<double>& at, double dy) {
  const NeuronGradient g = neuron_backward(at[0], at[1], at[2], dy);
  return {g.dw, g.dx, g.db};
}
std::vector<double> backward_of_gate(const std::vector<double>& at, double dy) {
  const GateGradient g = gate_backward(at[0], at[1], dy);
  return {g.dw, g.dx};
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    const std::vector<double> at = uniform(rng.split(0), {3}, -1.5, 1.5, DType::f64).to_vector();
    const double w = at[0], x = at[1], b = at[2], dy = uniform(rng.split(1), {}, 0.5, 2, DType::f64).item();
    const Tensors three = {number(w), number(x), number(b)}, two = {number(w), number(x)};

    lessons::Checks there =
        checks.at(fmt::format("at w = {:.3f}, x = {:.3f}, b = {:.3f}, with dy = {:.3f}", w, x, b, dy));

    there.near("neuron", neuron(w, x, b), value_of(neuron_of, three));
    const std::vector<double> want = slopes_of(neuron_of, three, dy), got = backward_of_neuron({w, x, b}, dy);
    there.near("neuron_backward: dw", got[0], want[0]);
    there.near("neuron_backward: dx", got[1], want[1]);
    there.near("neuron_backward: db", got[2], want[2]);
    checks.gradients("neuron_backward against small nudges of w, x and b",
                     claim({"w", "x", "b"}, three, neuron_of, backward_of_neuron), rng.split(2));

    there.near("gate", gate(w, x), value_of(gate_of, two));
    const std::vector<double> want_gate = slopes_of(gate_of, two, dy), got_gate = backward_of_gate({w, x}, dy);
    there.near("gate_backward: dw", got_gate[0], want_gate[0]);
    there.near("gate_backward: dx", got_gate[1], want_gate[1]);
    checks.gradients("gate_backward against small nudges of w and x", claim({"w", "x"}, two, gate_of, backward_of_gate),
                     rng.split(3));
  }
}

}  // namespace sinkhorn::lesson
