#include <cmath>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_02_tape {
namespace {

Tensor number(double x) { return Tensor::full({}, x, DType::f64); }

std::string places(const std::vector<int>& inputs) {
  std::string result;
  for (const int input : inputs) result += (result.empty() ? "" : ", ") + (input < 0 ? "-" : std::to_string(input));
  return result;
}

// x tanh(w x) + w, recorded; the values in the order of its nodes.
struct Recorded {
  Tape tape = Tape::record();
  std::vector<Var> nodes;
};
Recorded record(double w, double x) {
  Recorded r;
  r.nodes = {r.tape.leaf(number(w)), r.tape.leaf(number(x))};
  r.nodes.push_back(r.nodes[0] * r.nodes[1]);
  r.nodes.push_back(tanh(r.nodes[2]));
  r.nodes.push_back(r.nodes[1] * r.nodes[3]);
  r.nodes.push_back(r.nodes[4] + r.nodes[0]);
  return r;
}

// A small network on a tape: four layers that all keep something.
Var network(const Tape& tape, std::int64_t rows, std::int64_t width) {
  Var x = tape.leaf(uniform(Rng(1), {rows, width}, -1, 1, DType::f32));
  for (std::uint32_t layer = 0; layer < 4; ++layer) {
    const Var weight = tape.leaf(uniform(Rng(2).split(layer), {width, width}, -0.5, 0.5, DType::f32));
    x = tanh(linear(x, weight)) + x;
  }
  return mean(square(x));
}

}  // namespace

void walk(Page& page) {
  const double w = 0.6, x = 1.5;

  page.step("Somebody should take notes");
  page.text(
      "In lesson 1, the chain rule by hand, you wrote backward yourself: the steps of forward, from the last to the "
      "first. Nobody does that for a transformer. If forward takes notes of its steps while it runs, backward can be "
      "the same few lines for every formula. The notes are called the tape.\n\nTake y = x tanh(w x) + w at w = {}, x "
      "= {}. The library has recorded it, and this is its tape, with the value of each node beside it:",
      w, x);
  const Recorded r = record(w, x);
  std::vector<std::vector<std::string>> rows;
  const std::vector<NodeInfo> infos = r.tape.nodes();
  for (std::size_t i = 0; i < infos.size(); ++i)
    rows.push_back({std::to_string(i), std::string(infos[i].name), places(infos[i].inputs),
                    fmt::format("{:.4f}", r.nodes[i].value.item())});
  page.picture(drawing::table(page.style(), {"node", "op", "inputs", "value"}, rows));
  page.text(
      "A leaf is a number that was not computed: an input or a weight. Every other node names the op that made it "
      "(op is short for operation) and the places of the numbers it read. Nodes 0 and 1 are w and x. Node 4 "
      "multiplies node 1 by node 3: that is x times tanh(w x).");

  page.step("The order is all that is needed");
  page.text(
      "Look at the column of inputs: each number in it is smaller than the node's own. It cannot be otherwise, since "
      "a number must exist before anybody reads it. So read the tape from its end:\n\n  When the loop reaches a "
      "node, everything computed from that node stands\n  behind it and is done. Its gradient is complete.\n\nNo "
      "searching, no sorting. Backward is one loop down the list, and each node does one thing: it multiplies its "
      "gradient by its slopes, and adds the products to the gradients of its inputs.");

  page.step("Backward, watched");
  page.text(
      "The library lets us look on. These are the numbers that each node hands on, in the order in which it happens; "
      "the last column is what the input has received up to then:");
  std::vector<std::vector<std::string>> flows;
  std::vector<double> received(infos.size(), 0.0);
  r.tape.watch([&](const TapeEvent& event) {
    if (event.kind != TapeEvent::Kind::flow) return;
    const int to = infos[std::size_t(event.node)].inputs[std::size_t(event.input)];
    received[std::size_t(to)] += event.tensor.item();
    flows.push_back({std::to_string(event.node), std::string(event.op), std::to_string(to),
                     fmt::format("{:.4f}", event.tensor.item()), fmt::format("{:.4f}", received[std::size_t(to)])});
  });
  const Gradients gradients = r.tape.backward(r.nodes.back());
  page.picture(drawing::table(page.style(), {"node", "op", "hands to", "flow", "received so far"}, flows));
  page.text(
      "Node 0, w, is read twice and receives twice: {:.4f} in all. So is node 1, x: {:.4f}. Roads that meet add, as "
      "in lesson 1.",
      gradients.of(r.nodes[0]).item(), gradients.of(r.nodes[1]).item());
  page.text(
      "This is the whole of it in the library: the loop, with a check of shapes, a word to whoever looks on, what "
      "frees memory, and `into`: where flows have gathered already, so that an op may add its own on the spot.");
  page.code("autograd/tape.cpp", "for (int i = root.node; i >= 0; --i) {");

  page.step("Why not recursion?");
  page.text(
      "It is tempting to write: to send a gradient to a node, send its share to each of its inputs, and so on down. "
      "That visits a node once for every road from the root, and roads multiply. In this ladder each number is used "
      "twice by the next:\n\n  x1 = x0 * x0,   x2 = x1 * x1,   x3 = x2 * x2, ...");
  std::vector<std::vector<std::string>> roads;
  for (const int n : {1, 10, 20, 40}) {
    const Tape tape = Tape::record();
    Var v = tape.leaf(number(1));
    for (int i = 0; i < n; ++i) v = v * v;
    std::vector<double> paths(std::size_t(n) + 1, 0.0);  // of the root: 1, and each node's go to both its inputs
    paths.back() = 1;
    const std::vector<NodeInfo> ladder = tape.nodes();
    for (std::size_t i = ladder.size(); i-- > 0;)
      for (const int to : ladder[i].inputs) paths[std::size_t(to)] += paths[i];
    roads.push_back({std::to_string(n), std::to_string(ladder.size()), fmt::format("{:.0f}", paths[0]),
                     drawing::number(tape.backward(v).of(Var({}, tape, 0)).item(), 13)});
  }
  page.picture(
      drawing::table(page.style(), {"steps", "nodes on the tape", "roads to x0", "d xn / d x0 at x0 = 1"}, roads));
  page.text(
      "The loop visits each node once. (At x0 = 1 every slope is 1 along every road, so the gradient counts the "
      "roads.) And recursion needs a deeper stack for a longer formula, where a loop needs none:");
  const Tape tape = Tape::record();
  const Var start = tape.leaf(number(0.5));
  Var v = start;
  constexpr int kDeep = 100000;
  for (int i = 0; i < kDeep; ++i) v = scale(v, -1, 1);
  page.text("Here the library has gone through a chain of {} nodes and back. Each was y = 1 - x, so the slope is {}.",
            tape.nodes().size() - 1, tape.backward(v).of(start).item());

  page.step("What a node keeps");
  page.text(
      "A slope needs numbers from forward: a product needs its factors, tanh its result. So a node keeps them, and "
      "that is memory. Nodes hold whole tables of numbers at once, tensors: lesson 4 is about them. Here is a "
      "network with 64 rows of 32 numbers that go through two layers, tanh(W x) + x each. (W x, a matrix of weights "
      "times each row, is the op linear: lesson 5.)");
  const Tape kept = Tape::record();
  const auto layer = [&kept](const Var& in, std::uint32_t seed) {
    return tanh(linear(in, kept.leaf(uniform(Rng(seed), {32, 32}, -0.5, 0.5)))) + in;
  };
  layer(layer(kept.leaf(uniform(Rng(1), {64, 32}, -1, 1)), 2), 3);
  std::vector<std::vector<std::string>> lines;
  int place = 0;
  for (const NodeInfo& node : kept.nodes())
    lines.push_back({std::to_string(place++), std::string(node.name), text_of(node.shape), places(node.inputs),
                     std::to_string(node.kept_bytes)});
  page.picture(drawing::table(page.style(), {"node", "op", "shape", "inputs", "bytes kept"}, lines));
  page.text(
      "add keeps nothing: its slopes are 1 whatever went in. tanh keeps its result, since 1 - y * y needs no more; "
      "linear keeps its input and its weight. (An input of - is a constant, here: no bias.) {} bytes in all, and "
      "they grow with every layer. `kept_bytes()` says so at any time.",
      kept.kept_bytes());

  page.step("Memory falls as backward rises");
  page.text(
      "Once a node has handed on its flows, nobody needs what it kept, and the loop frees it. Bytes kept, after each "
      "step of forward and of backward, for four layers:");
  const Tape measured = Tape::record();
  std::vector<double> bytes;
  measured.watch([&](const TapeEvent& event) {
    const bool is_step = event.kind == TapeEvent::Kind::value || event.kind == TapeEvent::Kind::incoming;
    if (is_step) bytes.push_back(double(measured.kept_bytes()));
  });
  const Var loss = network(measured, 64, 32);
  const std::size_t forward_steps = bytes.size();
  measured.backward(loss);
  bytes.push_back(double(measured.kept_bytes()));
  page.picture(drawing::curve(page.style(), bytes, 8));
  page.text(
      "{} steps up, then down to {}. The peak lies where forward ends. A deep model pays for all its layers there, "
      "unless it computes them a second time: that is lesson 16, reversible layers.",
      forward_steps, bytes.back());

  page.step("Your turn");
  page.text(
      "Write a tape for single numbers. A node is a value, the places of its inputs, and a slope for each, all in "
      "one list in order of time:");
  page.code("notebooks/lessons/02_tape/exercise.h", "struct Node {");
  page.text(
      "mul, div and tanh append a node with its slopes; backward is one loop. The checks draw formulas of 40 steps "
      "at random, in which nodes are shared, and compare every value and gradient with the library's tape. One "
      "formula is 200,000 nodes deep. And the root need not be the last node on the tape.\n\n`sinkhorn tape` walks "
      "over larger tapes than these, a node at a time.");
}

Quiz quiz(Rng rng) {
  const double a = rounded(rng.split(0), 1.1, 3, 1), b = rounded(rng.split(1), 1.1, 3, 1);
  const Tape tape = Tape::record();
  const Var at_a = tape.leaf(number(a)), at_b = tape.leaf(number(b));
  const Var c = at_a * at_b, y = c * c + at_a;
  const auto nodes = std::int64_t(tape.nodes().size());
  const double slope = tape.backward(y).of(at_a).item();
  const std::int64_t steps = whole(rng.split(2), 5, 12);
  const double x = rounded(rng.split(3), 1.1, 2, 1), z = rounded(rng.split(4), 2.1, 4, 1);
  const Tape quotient = Tape::record();
  const Var under = quotient.leaf(number(z));
  return {
      Question::about_number(
          fmt::format("c = a * b, y = c * c + a, with leaves a = {} and b = {}. What is dy/da?", a, b), slope,
          "2 c b through the product, plus 1 from the a that is added"),
      Question::about_number("How many nodes has the tape of c = a * b, y = c * c + a, leaves counted?", double(nodes),
                             "2 leaves, 2 products, 1 sum; a name that is used again is no new node", 0),
      Question::about_number(fmt::format("y = a / b at a = {} and b = {}. What is dy/db?", x, z),
                             quotient.backward(Var(number(x)) / under).of(under).item(), "-a / (b * b)"),
      Question::about_number(fmt::format("x1 = x0 * x0, x2 = x1 * x1, ... up to x{}. A recursion that follows every "
                                         "road would reach x0 how many times?",
                                         steps),
                             std::pow(2.0, double(steps)), "each step doubles the roads; the loop reaches x0 once", 0),
      Question::with_choices("Which op needs to keep nothing at all for backward?",
                             {"y = a + b", "y = a * b", "y = tanh a", "y = a / b"},
                             "the slopes of a sum are 1 and 1, whatever went in"),
      Question::with_choices("Why is a gradient complete when the loop reaches its node?",
                             {"all nodes that read it stand behind it on the tape", "the loop goes over the tape twice",
                              "backward sorts the nodes first", "leaves come before all other nodes"},
                             "a number exists before it is read, so its readers come later on the tape"),
  };
}

}  // namespace sinkhorn::lessons::lesson_02_tape
