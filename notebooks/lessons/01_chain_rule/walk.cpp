#include <cmath>

#include "autograd/ops/elementwise.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_01_chain_rule {
namespace {

// y = x tanh(w x); on a tape if w or x is.
Var gate(const Var& w, const Var& x) { return x * tanh(w * x); }

// The slopes of the gate by w and by x.
std::pair<double, double> slopes_of_gate(double w, double x) {
  const Tape tape = Tape::record();
  const Var at_w = tape.leaf(Tensor::full({}, w, DType::f64)), at_x = tape.leaf(Tensor::full({}, x, DType::f64));
  const Gradients gradients = tape.backward(gate(at_w, at_x));
  return {gradients.of(at_w).item(), gradients.of(at_x).item()};
}

double neuron(double w, double x, double b) { return std::tanh(w * x + b); }

std::string digits(double x) { return fmt::format("{:.6f}", x); }

}  // namespace

void walk(Page& page) {
  const double w = 0.6, x = 1.5, b = -0.4;
  const double p = w * x, s = p + b, y = std::tanh(s);

  page.step("How much does the answer move?");
  page.text(
      "Training turns knobs. A model is a formula with numbers in it, its weights, and training changes each weight "
      "a little so that the answer gets better. For that it must know, of every weight: if you grow, does the answer "
      "grow, and how fast? That speed is a slope, or derivative. All slopes together are the gradient.\n\nThe "
      "smallest model there is, one neuron, has two weights, w and b, and an input x:\n\n  y = tanh(w x + b)\n\ntanh "
      "squeezes any number into -1 .. 1. Here it is for inputs from -4 to 4:");
  std::vector<double> bend(61);
  for (int i = 0; i <= 60; ++i)
    bend[std::size_t(i)] = tanh(Var(Tensor::full({}, -4 + i * 8.0 / 60, DType::f64))).value.item();
  page.picture(drawing::curve(page.style(), bend, 7));
  page.text(
      "Take w = {}, x = {}, b = {}: then y = {:.4f}. To find the slope by w without any theory, nudge w and look:", w,
      x, b, y);
  std::vector<std::vector<std::string>> rows;
  for (const double nudge : {0.1, 0.01, 0.001, 0.0001})
    rows.push_back(
        {drawing::number(nudge), digits(neuron(w + nudge, x, b)), digits((neuron(w + nudge, x, b) - y) / nudge)});
  page.picture(drawing::table(page.style(), {"nudge of w", "new y", "change of y / nudge"}, rows));
  page.text(
      "The last column settles down: near {:.2f}. So y grows about {:.2f} times as fast as w. This works, but it "
      "takes one evaluation of the formula for each weight. The model that `train` builds has 820,000 of them. There "
      "is a way to get all slopes from a single pass.",
      (neuron(w + 1e-4, x, b) - y) / 1e-4, (neuron(w + 1e-4, x, b) - y) / 1e-4);

  page.step("Small steps, known slopes");
  page.text("Cut the formula into steps so small that each has a slope everybody knows:");
  page.picture(
      "  w ---+\n       * --- p ---+\n  x ---+          + --- s --- tanh --- y\n                  |\n  b "
      "--------------+\n");
  page.picture(drawing::table(page.style(), {"step", "its value", "slope of the step"},
                              {{"p = w * x", digits(p), fmt::format("by w: x = {}, by x: w = {}", x, w)},
                               {"s = p + b", digits(s), "by p: 1, by b: 1"},
                               {"y = tanh(s)", digits(y), fmt::format("by s: 1 - y * y = {:.6f}", 1 - y * y)}}));
  page.text(
      "A product w x grows x times as fast as w: one more w adds one more x. A sum grows as fast as each part. And "
      "tanh has the slope 1 - y y, where y is its own result: 1 in the middle of the curve above, nearly 0 at its "
      "flat ends. That is all the calculus this lesson needs.");

  page.step("Slopes along a road multiply");
  page.text(
      "w moves p, p moves s, s moves y. If p moves {} times as fast as w, s once as fast as p, and y {:.4f} times as "
      "fast as s, then y moves",
      x, 1 - y * y);
  page.picture(fmt::format("  {} * 1 * {:.6f} = {:.6f}\n", x, 1 - y * y, x * (1 - y * y)));
  page.text(
      "times as fast as w. Gears work like that. This is the chain rule, and it agrees with the nudges: they gave "
      "{:.6f} for the smallest. The difference is the fault of the nudge, which is not infinitely small.",
      (neuron(w + 1e-4, x, b) - y) / 1e-4);

  page.step("From the end to the beginning");
  page.text(
      "Now do all three inputs at once. Start at the end: y counts once for itself, dy = 1. (A name with a d in "
      "front says how much that number counts for the final answer.) Then go through the steps backwards. Each one "
      "takes how much its result counts, multiplies by its slopes, and hands that on:");
  const double ds = 1 - y * y;
  page.picture(
      drawing::table(page.style(), {"step, backwards", "hands on"},
                     {{"", "dy = 1"},
                      {"y = tanh(s)", fmt::format("ds = dy * (1 - y * y) = {:.6f}", ds)},
                      {"s = p + b", fmt::format("dp = ds = {:.6f},  db = ds = {:.6f}", ds, ds)},
                      {"p = w * x", fmt::format("dw = dp * x = {:.6f},  dx = dp * w = {:.6f}", ds * x, ds * w)}}));
  page.text(
      "Three steps forward, three steps back, and all three slopes are there. With a million weights it would still "
      "be one pass forward and one pass back. This is called backpropagation, or backward for short.");

  page.step("Used twice: what comes back is added");
  const double gated = x * std::tanh(w * x), t = std::tanh(w * x);
  page.text(
      "Here is a formula in which x is used twice:\n\n  y = x tanh(w x)\n\nA gate: x passes as far as its own tanh "
      "lets it. The Sinkhorn transformer has such gates, each a little larger than this one. Its steps are p = w x, "
      "t = tanh(p), y = x t. Nudge x, and y moves for two reasons: the x in front moves, and the t behind it moves. "
      "Each is a road from x to y:");
  const double first = t, second = x * (1 - t * t) * w;
  page.picture(drawing::table(page.style(), {"road", "slopes along it", "product"},
                              {{"x -> y", "t", digits(first)},
                               {"x -> p -> t -> y", "w * (1 - t * t) * x", digits(second)},
                               {"both", "", digits(first + second)}}));
  const double nudged = x + 1e-6;
  page.text(
      "A nudge of 1e-6 moves y by {:.6f} times as much: the roads add. So in code, the first use writes dx and every "
      "further use says dx += .... Forgetting the + is a classic mistake in hand-written gradients.",
      (nudged * std::tanh(w * nudged) - gated) / 1e-6);

  page.step("The library does the same");
  page.text(
      "You write the formula; the library notes each step with its slope, and walks back. A Var is a number (or a "
      "table of numbers) that such notes are taken of. This is real code, and it is what this page runs:");
  const char* const own = "notebooks/lessons/01_chain_rule/walk.cpp";  // whose lines must not hold the whole anchors
  page.code(own, "Var gate(const Var& w");
  page.code(own, "slopes_of_gate(double w");
  const auto [slope_w, slope_x] = slopes_of_gate(w, x);
  page.text("It says: dw = {:.6f}, dx = {:.6f}. By hand, dx was {:.6f}.", slope_w, slope_x, first + second);
  page.text("And the slope of tanh stands in the library as you know it now. f is the function, df its slope from y:");
  page.code("autograd/maps.h", "struct Tanh");

  page.step("Your turn");
  page.text(
      "Open the exercise. The neuron's forward is there; write neuron_backward, then gate and gate_backward. Nothing "
      "in it is longer than what you saw above. Two things to know:\n\n  dy need not be 1: start from it, and "
      "everything scales.\n  In the gate, x is used twice.\n\nThe checks draw numbers at random. They compare with "
      "the library, and with small nudges of the inputs.");
}

Quiz quiz(Rng rng) {
  const double y = rounded(rng.split(0), -0.9, 0.9, 2);
  const double w = rounded(rng.split(1), 0.3, 2.5, 1), x = rounded(rng.split(2), 1.1, 3.5, 1);
  const double ds = rounded(rng.split(3), 0.1, 0.9, 2);
  const double a = rounded(rng.split(4), 1.2, 4, 1);
  const std::int64_t uses = whole(rng.split(5), 2, 5);
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(Tensor::full({}, a, DType::f64));
  const double slope = tape.backward(leaf * leaf + leaf).of(leaf).item();
  return {
      Question::about_number(fmt::format("tanh(s) = {:.2f}. What is the slope of tanh at this s?", y), 1 - y * y,
                             "1 - y * y, from the result alone"),
      Question::about_number(
          fmt::format("p = w * x with w = {} and x = {}, and p counts dp = {} for the answer. What is dw?", w, x, ds),
          ds * x, "dp times the slope of p by w, which is x"),
      Question::about_number(fmt::format("y = a * a + a at a = {}. What is the slope of y by a?", a), slope,
                             "a is used three times: a + a + 1, one share from each use"),
      Question::with_choices(fmt::format("A number is used in {} places of a formula. What is its gradient?", uses),
                             {fmt::format("the sum of what comes back from the {} places", uses),
                              fmt::format("the product of what comes back from the {} places", uses),
                              "what comes back from the last place", fmt::format("the mean over the {} places", uses)},
                             "slopes along one road multiply; roads that meet add"),
      Question::with_choices("A model has 1,000,000 weights. How many backward passes give all their slopes?",
                             {"1", "1,000", "1,000,000", "1,000,001"},
                             "backward visits each step once and leaves a slope at every input on its way"),
  };
}

}  // namespace sinkhorn::lessons::lesson_01_chain_rule
