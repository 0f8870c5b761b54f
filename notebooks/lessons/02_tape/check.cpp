#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "autograd/ops/elementwise.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/02_tape/exercise.h"

namespace sinkhorn::lesson {
namespace {

enum class Kind { add, mul, div, tanh };

// A formula: first the leaves, then steps, each from earlier places.
struct Step {
  Kind kind;
  int a, b;
};
struct Formula {
  std::vector<double> leaves;
  std::vector<Step> steps;
};

double result_of(Kind kind, double a, double b) {
  switch (kind) {
    case Kind::add:
      return a + b;
    case Kind::mul:
      return a * b;
    case Kind::div:
      return a / b;
    case Kind::tanh:
      return std::tanh(a);
  }
  return 0;
}

// Whether a step keeps numbers and slopes at a middling size, so that a formula of many steps neither loses its
// gradients nor bends so much that differences cannot follow.
bool is_gentle(const Step& step, const std::vector<double>& values) {
  const double a = values[std::size_t(step.a)], b = values[std::size_t(step.b)];
  const double size = std::abs(result_of(step.kind, a, b));
  if (step.kind == Kind::div && std::abs(b) < 0.4) return false;
  if (step.kind == Kind::tanh && std::abs(a) > 1.5) return false;
  return size > 0.3 && size < 3;
}

// The first steps join all leaves into one number, and the last adds it to the result: x / x alone has no gradient.
Formula random_formula(Rng rng, int leaves, int steps) {
  Formula formula{uniform(rng.split(0), {leaves}, 0.4, 1.2, DType::f64).to_vector(), {}};
  for (std::size_t i = 1; i < formula.leaves.size(); i += 2) formula.leaves[i] *= -1;
  std::vector<double> values = formula.leaves;
  const RandomBits bits = rng.split(1).bits();
  std::uint64_t word = 0;
  // Half of the time a step reads a recent place, so that formulas become deep; else any, so that places are shared.
  const auto pick = [&] {
    const std::uint32_t drawn = bits.word(word++), count = std::uint32_t(values.size());
    return int(drawn % 2 == 0 ? count - 1 - (drawn / 2) % std::min(count, 3u) : (drawn / 2) % count);
  };
  for (int i = 0; i < steps; ++i) {
    Step step{Kind::add, int(values.size()) - 1, 2 * leaves - 2};
    if (i + 1 < leaves) step = {i % 2 == 0 ? Kind::mul : Kind::add, i == 0 ? 0 : leaves + i - 1, i + 1};
    for (int attempt = 0; i + 1 >= leaves && i + 1 < steps && attempt < 50; ++attempt) {
      const Step other{Kind(bits.word(word++) % 4), pick(), pick()};
      if (!is_gentle(other, values)) continue;
      step = other;
      break;
    }
    formula.steps.push_back(step);
    values.push_back(result_of(step.kind, values[std::size_t(step.a)], values[std::size_t(step.b)]));
  }
  return formula;
}

ScalarTape run(const Formula& formula) {
  ScalarTape tape;
  for (const double x : formula.leaves) tape.leaf(x);
  for (const Step& step : formula.steps) {
    switch (step.kind) {
      case Kind::add:
        tape.add(step.a, step.b);
        break;
      case Kind::mul:
        tape.mul(step.a, step.b);
        break;
      case Kind::div:
        tape.div(step.a, step.b);
        break;
      case Kind::tanh:
        tape.tanh(step.a);
        break;
    }
  }
  return tape;
}

// The same on the library's tape: all values, then the gradients of node `root` by the leaves.
std::pair<std::vector<double>, std::vector<double>> library(const Formula& formula, int root) {
  const Tape tape = Tape::record();
  std::vector<Var> nodes;
  nodes.reserve(formula.leaves.size() + formula.steps.size());
  for (const double x : formula.leaves) nodes.push_back(tape.leaf(Tensor::full({}, x, DType::f64)));
  for (const Step& step : formula.steps) {
    const Var &a = nodes[std::size_t(step.a)], &b = nodes[std::size_t(step.b)];
    nodes.push_back(step.kind == Kind::add   ? a + b
                    : step.kind == Kind::mul ? a * b
                    : step.kind == Kind::div ? a / b
                                             : sinkhorn::tanh(a));
  }
  const Gradients gradients = tape.backward(nodes[std::size_t(root)]);
  std::vector<double> values, flows;
  values.reserve(nodes.size());
  for (const Var& node : nodes) values.push_back(node.value.item());
  flows.reserve(formula.leaves.size());
  for (std::size_t i = 0; i < formula.leaves.size(); ++i) {
    const Tensor flow = gradients.of(nodes[i]);
    flows.push_back(flow ? flow.item() : 0);
  }
  return {values, flows};
}

Tensor row(const std::vector<double>& numbers) { return Tensor::from(numbers, {std::int64_t(numbers.size())}); }

// Values and gradients, each checked only if there are as many as there should be.
void compare(lessons::Checks& checks, const std::string& what, const Formula& formula, int root) {
  checks.attempt(what, [&] {
    const auto [values, flows] = library(formula, root);
    const ScalarTape tape = run(formula);
    std::vector<double> got;
    got.reserve(tape.nodes.size());
    for (const Node& node : tape.nodes) got.push_back(node.value);
    if (got.size() != values.size())
      return checks.equal(what + ": nodes on the tape", std::int64_t(got.size()), std::int64_t(values.size()));
    checks.near(what + ": values", row(got), row(values));
    const std::vector<double> gradients = tape.backward(root);
    if (gradients.size() != values.size())
      return checks.equal(what + ": gradients, one a node", std::int64_t(gradients.size()),
                          std::int64_t(values.size()));
    checks.near(what + ": gradients of the leaves",
                row({gradients.begin(), gradients.begin() + std::ptrdiff_t(flows.size())}), row(flows));
    bool silent = true;
    for (std::size_t i = std::size_t(root) + 1; i < gradients.size(); ++i) silent = silent && gradients[i] == 0;
    if (std::size_t(root) + 1 < gradients.size())
      checks.that(what + ": nodes behind the root get 0", silent, "a node computed after the root has a gradient");
  });
}

Formula one_step(Kind kind, int a, int b, Rng rng) {
  Tensor at = uniform(rng, {2}, 0.5, 1.5, DType::f64);
  at.span<double>()[0] *= -1;
  return {at.to_vector(), {{kind, a, b}}};
}

// Whether `body` comes to its end in a process of its own: a stack that overflows ends only that one.
bool survives(const std::function<void()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    try {
      body();
    } catch (...) {  // the caller will meet it, too, and say what it is
    }
    _exit(0);
  }
  int status = 1;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// x -> tanh(x) + x / c -> ...: every second node is used twice, and it is 2 n + 2 nodes deep.
void deep_chain(lessons::Checks& checks, Rng rng) {
  const int steps = 100000;
  Formula formula{{0.5 + 0.1 * rng.bits().uniform<double>(0), 1.9}, {}};
  formula.steps.reserve(2 * steps);
  for (int i = 0, at = 0; i < steps; ++i, at = 2 * i + 1) {
    formula.steps.push_back({i % 2 == 0 ? Kind::tanh : Kind::div, at, 1});
    formula.steps.push_back({Kind::add, 2 * i + 2, i % 2 == 0 ? 1 : 0});
  }
  const std::string name = "a chain of 200,000 nodes";
  const int root = int(formula.leaves.size() + formula.steps.size()) - 1;
  if (survives([&] { run(formula).backward(root); })) {
    compare(checks, name, formula, root);
  } else {
    checks.that(name, false, "the program ended on its way: a recursion this deep overflows the stack; use a loop");
  }
}

// The learner's gradients by the leaves against differences of the library's values.
void check_nudges(lessons::Checks& checks, const Formula& formula, int root, Rng rng) {
  const GradientProblem nudged = lessons::problem_of(
      {"leaf"}, {row(formula.leaves)},
      [&](const Tensors& at) {
        const std::vector<double> values = library({at[0].to_vector(), formula.steps}, root).first;
        return Tensor::full({}, values[std::size_t(root)], DType::f64);
      },
      [&](const Tensors& at, const Tensor& dy) {
        std::vector<double> gradients = run({at[0].to_vector(), formula.steps}).backward(root);
        gradients.resize(std::min(gradients.size(), formula.leaves.size()));
        for (double& gradient : gradients) gradient *= dy.item();
        return Tensors{row(gradients)};
      });
  checks.gradients("a random formula of 14 steps against small nudges of its leaves", nudged, rng);
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    compare(checks, "a + b", one_step(Kind::add, 0, 1, rng.split(0)), 2);
    compare(checks, "a * b", one_step(Kind::mul, 0, 1, rng.split(1)), 2);
    compare(checks, "a / b", one_step(Kind::div, 0, 1, rng.split(2)), 2);
    compare(checks, "tanh a", one_step(Kind::tanh, 0, 0, rng.split(3)), 2);
    compare(checks, "b * b, one node used twice", one_step(Kind::mul, 1, 1, rng.split(4)), 2);

    const Formula formula = random_formula(rng.split(5), 5, 40);
    compare(checks, "a random formula of 40 steps", formula, 44);
    compare(checks, "the same formula, from a node in its middle", formula, 30);
    check_nudges(checks, random_formula(rng.split(6), 5, 14), 18, rng.split(7));
  }
  deep_chain(checks, checks.rounds()[0].split(8));
}

}  // namespace sinkhorn::lesson
