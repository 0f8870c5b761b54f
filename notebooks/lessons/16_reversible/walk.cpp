#include <cmath>

#include "models/transformer.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_16_reversible {
namespace {

constexpr std::int64_t kLength = 64, kWidth = 32;

SinkhornTransformer transformer(std::int64_t depth) {
  Initializer init(Rng(1), DType::f32);
  return {{.dim = kWidth, .depth = depth, .heads = 2, .bucket_size = 8, .causal = true, .reversible = true}, init};
}

// What a tape keeps for backward, after a stack of real layers has run forwards.
Tape after_forward(std::int64_t depth, bool keep_activations) {
  SinkhornTransformer stack = transformer(depth);
  stack.keep_activations(keep_activations);
  Tape tape = Tape::record();
  (void)stack(Scope{.tape = tape}, tape.leaf(normal(Rng(2), {1, kLength, kWidth}, 0, 1)));
  return tape;
}

double kib(std::size_t bytes) { return std::round(double(bytes) / 102.4) / 10; }

// tanh(x W): as crooked as any layer.
struct ToyBranch {
  ToyBranch(const Rng& rng, DType dtype) : weight{uniform(rng, {kWidth, kWidth}, -0.3, 0.3, dtype)} {}
  Tensor operator()(const Tensor& x) const { return tanh(matmul(Var(x), Var(weight))).value; }
  Tensor weight;
};

double norm(const Tensor& x) {
  double sum = 0;
  for (const double value : x.to_vector()) sum += value * value;
  return std::sqrt(sum);
}

// Runs `depth` blocks forwards and back again: |x rebuilt - x| / |x|.
double error_of_inversion(std::size_t depth, DType dtype) {
  std::vector<ToyBranch> branches;
  branches.reserve(2 * depth);
  for (std::size_t i = 0; i < 2 * depth; ++i) branches.emplace_back(Rng(3).split(std::uint32_t(i)), dtype);
  const Tensor x = normal(Rng(4), {kLength, kWidth}, 0, 1, dtype);
  Tensor a = x, b = x;
  for (std::size_t i = 0; i < depth; ++i) {
    a = add(a, branches[2 * i](b)).value;
    b = add(b, branches[2 * i + 1](a)).value;
  }
  for (std::size_t i = depth; i-- > 0;) {
    b = sub(b, branches[2 * i + 1](a)).value;
    a = sub(a, branches[2 * i](b)).value;
  }
  const Tensor exact = x.to(DType::f64);
  return norm(sub(a.to(DType::f64), exact).value) / norm(exact);
}

}  // namespace

void walk(Page& page) {
  page.step("What deep models keep");
  page.text(
      "Backward needs what forward computed: every op on the tape keeps its inputs or its output until the gradient "
      "comes back (lesson 2). So memory grows with depth. These are real layers of a Sinkhorn transformer, attention "
      "and feed-forward, on {} tokens of width {}; the bars are the KiB kept on the tape:",
      kLength, kWidth);
  std::vector<std::pair<std::string, double>> plain, both;
  for (const std::int64_t depth : {1, 2, 4, 8})
    plain.emplace_back(std::to_string(depth) + (depth == 1 ? " layer" : " layers"),
                       kib(after_forward(depth, true).kept_bytes()));
  page.picture(drawing::bars(page.style(), plain));
  SinkhornTransformer one = transformer(1);
  std::size_t weights = 0;
  for (const Parameter* parameter : parameters_of(one)) weights += parameter->value.bytes();
  page.text(
      "({:.0f} KiB a layer are its weights, which matmuls refer to and which exist anyway. The rest is activations.)",
      kib(weights));
  page.text(
      "An activation is needed twice, long after each other, and kept in between. Could we not throw it away, and "
      "get it back when it is needed? From the layer's output, if layers could be run backwards.");

  page.step("A layer that can be run backwards");
  page.text(
      "An ordinary residual layer is y = x + f(x). To get x from y one would have to solve an equation, and f may be "
      "anything. Now split the stream in two, and let each half be changed by a function of the other one alone:\n\n"
      "  y1 = x1 + f(x2)\n  y2 = x2 + g(y1)");
  const double x1 = 1, x2 = 2, y1 = x1 + std::sin(x2), y2 = x2 + y1 * y1;
  page.text(
      "With numbers: x1 = {}, x2 = {}, f = sin, g = square. Then y1 = {} + sin({}) = {:.4f} and y2 = {} + {:.4f}^2 = "
      "{:.4f}. Backwards:\n\n"
      "  x2 = y2 - g(y1) = {:.4f} - {:.4f}^2 = {:.4f}\n"
      "  x1 = y1 - f(x2) = {:.4f} - sin({:.4f}) = {:.4f}",
      x1, x2, x1, x2, y1, x2, y1, y2, y2, y1, y2 - y1 * y1, y1, y2 - y1 * y1, y1 - std::sin(y2 - y1 * y1));
  page.text(
      "Neither sin nor square was inverted. They were computed again, from the same argument, and taken away. So f "
      "can be a whole attention layer and g a whole feed-forward. At the start both halves are given the same x; at "
      "the end they are added.");

  page.step("Gradients on the way back");
  page.text(
      "Backward arrives at a block with y1, y2 and their gradients dy1, dy2. It undoes g first, then f. Each "
      "function is run again, this time on a small tape of its own, which serves for both: its value gives back the "
      "input, and its backward gives the gradient. y1 is read twice, by the output and by g, so two gradients meet "
      "in it:\n\n"
      "  x2 = y2 - g(y1)     d1 = dy1 + (dy2 through g)\n"
      "  x1 = y1 - f(x2)     d2 = dy2 + (d1 through f)\n\n"
      "d1 and d2 are the gradients of x1 and x2. After each function its small tape is gone. The library does it in "
      "one helper. There a branch adds itself to the residual it is given, or, told to undo, takes itself away; what "
      "flows back is the function's gradient either way:");
  page.code("autograd/ops/reversible.cpp", "auto undo = [&](Tensor& y, const Tensor& from");
  page.code("autograd/ops/reversible.cpp", "for (std::size_t i = blocks.size(); i-- > 0;) {");

  page.step("A whole chain is one node");
  page.text("On the tape, 8 reversible layers look like this (leaves of parameters left out):");
  const Tape chain = after_forward(8, false);
  std::vector<std::vector<std::string>> rows;
  for (const NodeInfo& node : chain.nodes()) {
    if (node.name == "leaf" && !rows.empty()) continue;
    rows.push_back(
        {std::string(node.name), drawing::number(double(node.shape.count())), drawing::number(kib(node.kept_bytes))});
  }
  page.picture(drawing::table(page.style(), {"node", "elements", "KiB kept"}, rows));
  page.text("The last pair, which buckets were chosen, and nothing else. Against the plain tape:");
  both.reserve(8);
  for (const std::int64_t depth : {1, 2, 4, 8}) {
    both.emplace_back(std::to_string(depth) + " plain", kib(after_forward(depth, true).kept_bytes()));
    both.emplace_back(std::to_string(depth) + " reversible", kib(after_forward(depth, false).kept_bytes()));
  }
  page.picture(drawing::bars(page.style(), both));
  page.text(
      "The price: every function runs once more. Forward costs about a third of a training step, so a step takes a "
      "third longer. While one function is undone its own activations are alive, so what is needed at most is one "
      "function's worth, whatever the depth.");

  page.step("Rounding");
  page.text(
      "Is y2 - g(y1) really x2? In real numbers, yes. In floating point x2 + g(y1) was rounded, and taking g(y1) "
      "away again rounds once more. Here is how far the rebuilt input lies from the true one, as a share of its "
      "length, after blocks of tanh(x W) were run forwards and back:");
  std::vector<std::vector<std::string>> errors;
  for (const std::size_t depth : {1, 2, 4, 8, 16, 32})
    errors.push_back({std::to_string(depth), drawing::number(error_of_inversion(depth, DType::f64), 2),
                      drawing::number(error_of_inversion(depth, DType::f32), 2),
                      drawing::number(error_of_inversion(depth, DType::bf16), 2)});
  page.picture(drawing::table(page.style(), {"blocks", "f64", "f32", "bf16"}, errors));
  page.text(
      "f32 is good enough for any depth one would train. bf16, with 8 bits, is not: its errors grow to the size of "
      "the numbers. So a reversible model keeps its two streams in f32, even where the functions compute in bf16.");

  page.step("The same, bit for bit, or not at all");
  page.text(
      "Undoing works because a function gives the same result when it is run again. Two things could spoil that. "
      "Random numbers: dropout must drop the same elements again. Lesson 17 shows how that is had for nothing. And "
      "choices: a sort net picks buckets by comparing scores, and a score that moves in its last bit can turn a "
      "comparison round. Then another bucket would be taken away than was added. So the first run writes its picks "
      "down, and the second reads them instead of choosing:");
  page.code("autograd/ops/reversible.h", "class Choices {");

  page.step("Your turn");
  page.text(
      "Write forward, inverse and backward of one block, then a chain. A branch is a function with one weight; you "
      "run it on no tape to get its value, and on a small tape of your own to get its gradients too. Blocks may "
      "share a weight: its gradients add up.\n\n"
      "The checks compare everything with one plain tape, with numeric differences and with the library's chain. "
      "They count how often each branch runs, and measure the bytes alive at once: thirty blocks may hold no more "
      "than three.");
}

Quiz quiz(Rng rng) {
  const auto draw = [&](std::uint32_t tag, double low, double high) {
    return std::round(uniform(rng.split(tag), {1}, low, high, DType::f64).item() * 10) / 10;
  };
  const double x1 = draw(0, 0.5, 3), x2 = draw(1, -3, 3), a = draw(2, 1.1, 3), c = draw(3, 0.5, 2);
  const double y1 = x1 + a * x2, y2 = x2 + c * y1;
  const double out1 = draw(4, 1, 9), out2 = draw(5, 1, 9);
  const double d1 = draw(6, 1, 5), d2 = draw(7, 1, 5);
  // f(x) = a x and g(x) = c x, on a tape.
  const Tape tape = Tape::record();
  const Var in1 = tape.leaf(Tensor::full({1}, x1, DType::f64)), in2 = tape.leaf(Tensor::full({1}, x2, DType::f64));
  const Var mid1 = add(in1, scale(in2, a)), mid2 = add(in2, scale(mid1, c));
  const Gradients gradients = tape.backward(add(scale(mid1, d1), scale(mid2, d2)));
  const auto depth = std::int64_t(4 + rng.split(8).bits().word(0) % 20);
  return {
      Question::about_number(
          fmt::format("f(x) = {} x and g(x) = {} x. A block gets x1 = {} and x2 = {}. What is y2?", a, c, x1, x2), y2,
          fmt::format("y1 = x1 + f(x2) = {:.4g}, and y2 = x2 + g(y1)", y1)),
      Question::about_number(
          fmt::format("f(x) = {} x and g(x) = {} x. A block gave y1 = {} and y2 = {}. What was x1?", a, c, out1, out2),
          out1 - a * (out2 - c * out1), "x2 = y2 - g(y1) first, then x1 = y1 - f(x2)"),
      Question::about_number(fmt::format("f(x) = {} x and g(x) = {} x. The gradients dy1 = {} and dy2 = {} arrive at a "
                                         "block. What is the gradient of x2?",
                                         a, c, d1, d2),
                             gradients.of(in2).item(), "d1 = dy1 + c dy2, then d2 = dy2 + a d1"),
      Question::about_number(
          fmt::format(
              "A training step runs a chain of {} reversible blocks, each with f and g. How often do f and g run, "
              "all in all, forward and backward together?",
              depth),
          double(4 * depth), "two functions a block, once forwards and once more to undo them", 0),
      Question::with_choices("What must be true of f, so that the block can be inverted?",
                             {"it gives the same result when it is run again", "it can be inverted itself",
                              "it is linear", "its derivative is smaller than 1"},
                             "f is never inverted: it is computed again and taken away"),
      Question::with_choices("Why are bucket choices written down in forward?",
                             {"the rebuilt scores differ in their last bits, which could turn a comparison round",
                              "choosing is the slowest part of attention", "choices have no gradient",
                              "the small tape cannot record them"},
                             "what is taken away must be what was added"),
  };
}

}  // namespace sinkhorn::lessons::lesson_16_reversible
