#include <cmath>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_07_layer_norm {
namespace {

Tensor row(const std::vector<double>& numbers) { return Tensor::from(numbers, {1, std::int64_t(numbers.size())}); }
Tensor full(std::int64_t width, double value, DType dtype = DType::f64) { return Tensor::full({width}, value, dtype); }

// With gamma = 1 and beta = 0.
Tensor normalised(const Tensor& x, double eps = 1e-5) {
  const std::int64_t width = x.shape()[-1];
  return layer_norm(Var(x), full(width, 1, x.dtype()), full(width, 0, x.dtype()), eps).value;
}

double mean_of(const Tensor& x) { return mean(Var(x)).value.item(); }
double deviation_of(const Tensor& x) { return std::sqrt(mean(square(Var(x) - mean(Var(x)))).value.item()); }
double dot(const Tensor& a, const Tensor& b) { return sum(Var(a) * Var(b)).value.item(); }

// The size of the numbers after each of `layers` random linear maps, as a power of ten.
std::vector<double> sizes(double weight, int layers, bool normalise) {
  Tensor x = uniform(Rng(1), {8, 64}, -1, 1, DType::f64);
  std::vector<double> result{std::log10(deviation_of(x))};
  for (int layer = 0; layer < layers; ++layer) {
    if (normalise) x = normalised(x);
    x = linear(Var(x), uniform(Rng(2).split(std::uint32_t(layer)), {64, 64}, -weight, weight, DType::f64)).value;
    result.push_back(std::log10(deviation_of(x)));
  }
  return result;
}

// The variance of 64 numbers within 1 of `around`, in f32: by squares, by distances, and as the library has it.
std::vector<std::string> variances(double around) {
  const std::int64_t width = 64;
  const Tensor exact = uniform(Rng(7), {1, width}, around - 1, around + 1, DType::f64), x = exact.to(DType::f32);
  const auto numbers = x.span<float>();
  float sum = 0, squares = 0;
  for (const float number : numbers) {
    sum += number;
    squares += number * number;
  }
  const float m = sum / float(width), by_squares = squares / float(width) - m * m;
  float by_distances = 0;
  for (const float number : numbers) by_distances += (number - m) * (number - m) / float(width);
  Saved saved;
  saved.wants = {true, true, true};
  ops::LayerNorm{0}.forward(saved, Tensors{x, full(width, 1, DType::f32), full(width, 0, DType::f32)});
  const double rstd = saved.tensors[3].to_vector()[0], deviation = deviation_of(x.to(DType::f64));
  return {drawing::number(around), drawing::number(by_squares), drawing::number(by_distances),
          drawing::number(1 / (rstd * rstd)), drawing::number(deviation * deviation)};
}

std::string small(double x) { return fmt::format("{:.1e}", x); }
std::string digits(double x) { return fmt::format("{:.4f}", x == 0 ? 0 : x); }  // never "-0"

struct Flows {
  Tensor y, dx;
};
Flows flows(const Tensor& x, const Tensor& gamma, const Tensor& dy, double eps) {
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(x), y = layer_norm(leaf, Var(gamma), Var(full(x.shape()[-1], 0)), eps);
  return {y.value, tape.backward(y, dy).of(leaf)};
}

}  // namespace

void walk(Page& page) {
  page.step("Numbers that grow, or vanish");
  const int layers = 20;
  const std::vector<double> grows = sizes(0.5, layers, false), vanishes = sizes(0.1, layers, false);
  page.text(
      "Send 8 rows of 64 numbers between -1 and 1 through {} layers, each a product with a random matrix. With "
      "weights between -0.5 and 0.5, each layer makes the numbers about {:.1f} times as large. With weights between "
      "-0.1 and 0.1, it leaves {:.0f} %. After {} layers their typical size is:",
      layers, std::pow(10.0, (grows.back() - grows.front()) / layers),
      100 * std::pow(10.0, (vanishes.back() - vanishes.front()) / layers), layers);
  page.picture(drawing::table(page.style(), {"weights up to", "plain", "each layer's input normalised"},
                              {{"0.5", fmt::format("{:.2g}", std::pow(10.0, grows.back())),
                                fmt::format("{:.2g}", std::pow(10.0, sizes(0.5, layers, true).back()))},
                               {"0.1", fmt::format("{:.2g}", std::pow(10.0, vanishes.back())),
                                fmt::format("{:.2g}", std::pow(10.0, sizes(0.1, layers, true).back()))}}));
  page.text(
      "In the plain network, a tanh behind such numbers is flat, a softmax (lesson 6) puts everything on one place, "
      "and gradients grow or vanish in the same way. With layer normalisation before each layer, depth no longer "
      "matters.");

  page.step("Two numbers a row");
  const Tensor x = row({3, 5, 4, 8}), z = normalised(x);
  page.text(
      "Take one row, that is one position of a text. Its mean says where it lies, its deviation how far it spreads: "
      "the root of the variance, the mean squared distance from the mean. Take both out:\n\n  z_i = (x_i - mean) / "
      "sqrt(variance + eps)");
  page.values("x", x);
  page.text("Its mean is {}, its deviation {:.4f}. The library makes of it:", mean_of(x), deviation_of(x));
  page.values("z", z);
  page.text(
      "Now the mean is {:.0f}, and the deviation {:.4f}. The small eps, 0.00001, keeps a row of equal numbers from "
      "dividing by 0. Code works with rstd = 1 / sqrt(variance + eps), the reciprocal, since multiplying is cheaper.",
      std::abs(mean_of(z)), deviation_of(z));
  page.text(
      "Each row has its own two numbers. Other rows and other sequences of the batch do not matter, and nothing must "
      "be remembered for later. That is why transformers normalise layers and not batches.");

  page.step("gamma and beta give it back");
  page.text(
      "Perhaps a layer works better with a larger spread, or with some numbers around 5. So each column gets two "
      "weights that are trained like all others: y_i = gamma_i z_i + beta_i. They start as 1 and 0. With gamma = (1, "
      "1, 2, 0.5) and beta = (0, 0, 0, 5):");
  page.values("y",
              layer_norm(Var(x), Var(row({1, 1, 2, 0.5}).reshape({4})), Var(row({0, 0, 0, 5}).reshape({4}))).value);
  page.text("The scale of a column is now a weight of its own, and no accident of all the layers before.");

  page.step("A trap: the variance in one pass");
  page.text(
      "School knows a shortcut: the variance is mean(x * x) - mean * mean, which needs one pass over the row in "
      "place of two. Here it is in f32, for 64 numbers within 1 of some place:");
  std::vector<std::vector<std::string>> rows;
  for (const double around : {0.0, 100.0, 1000.0, 10000.0}) rows.push_back(variances(around));
  page.picture(drawing::table(page.style(),
                              {"around", "mean(x*x) - mean*mean", "mean((x-mean)^2)", "the library", "exact"}, rows));
  page.text(
      "Far from 0, two large numbers are subtracted that agree in all their digits, as in lesson 3. What is left is "
      "rounding; even a negative variance is possible, and its root is NaN. So: mean first, then the distances.");

  page.step("What the row cannot feel");
  page.text("Add 100 to every number of the row, or multiply all by 10. The library gives:");
  const auto shifted = (Var(x) + Var(row({100}))).value, stretched = scale(Var(x), 10).value;
  page.values("z of x", z);
  page.values("z of x + 100", normalised(shifted));
  page.values("z of 10 x", normalised(stretched));
  const Tensor dy = row({0.3, -1, 0.5, 0.8}), gamma = row({1, 1, 2, 0.5}).reshape({4});
  const Flows some = flows(x, gamma, dy, 1e-5);
  page.text(
      "Always the same (but for eps). So no loss can depend on these two motions, and its slope along them must be "
      "0. A slope along a direction is the dot product of the gradient with it. For some dy, (0.3, -1, 0.5, 0.8):");
  page.values("dx, from the library", some.dx);
  page.picture(drawing::table(page.style(), {"direction", "dx . direction"},
                              {{"(1, 1, 1, 1): a shift", small(dot(some.dx, row({1, 1, 1, 1})))},
                               {"z: a stretch", small(dot(some.dx, z))},
                               {"(1, 0, 0, 0), for comparison", small(dot(some.dx, row({1, 0, 0, 0})))}}));
  page.text("The first is rounding, the second the trace that eps leaves.");

  page.step("The gradient takes both directions out");
  page.text(
      "What comes back to z_i is g_i = gamma_i dy_i. If mean and deviation were fixed, dx would be rstd g. But each "
      "x_i also moves the mean, and with it all z; that costs every element the mean of g. And it moves the "
      "deviation, in proportion to its own z_i; that costs z_i times the mean of g z:\n\n  dx_i = rstd (g_i - "
      "mean(g) - z_i mean(g z))");
  const Tensor g = (Var(dy) * Var(gamma)).value;
  const double mean_g = mean_of(g), mean_gz = dot(g, z) / 4,
               rstd = 1 / std::sqrt(deviation_of(x) * deviation_of(x) + 1e-5);
  std::vector<std::vector<std::string>> parts;
  for (std::size_t i = 0; i < 4; ++i) {
    const double gi = g.to_vector()[i], zi = z.to_vector()[i];
    parts.push_back({std::to_string(i), digits(gi), digits(mean_g), digits(zi * mean_gz),
                     digits(gi - mean_g - zi * mean_gz), digits(rstd * (gi - mean_g - zi * mean_gz)),
                     digits(some.dx.to_vector()[i])});
  }
  page.picture(drawing::table(page.style(),
                              {"i", "g", "mean(g)", "z mean(g z)", "what is left", "times rstd", "library"}, parts));
  page.text(
      "Geometry says the same: g minus its part along (1, 1, 1, 1), minus its part along z. These two directions are "
      "at right angles, since z adds up to 0, so each may be taken out by itself. Taking a direction out is called a "
      "projection.");

  page.step("In the library");
  page.text(
      "Backward gets x and the two numbers of each row, and makes z again: cheaper than to keep a second tensor as "
      "large as x. gamma and beta are stretched over all rows in forward, so their gradients are sums over all rows "
      "(lesson 4).");
  page.code("autograd/cpu/layer_norm.cpp", "void LayerNorm<T>::backward");

  page.step("Your turn");
  page.text(
      "Write layer_norm, which also returns mean and rstd, and layer_norm_backward with its three gradients. The "
      "checks look at usual rows, at rows around 100,000, at a row of equal numbers, at an eps of 0.3, which shows "
      "where eps belongs, and at gammas that differ from column to column. Then they compare your gradients with "
      "small nudges.");
}

Quiz quiz(Rng rng) {
  const double a = double(whole(rng.split(0), 1, 4)), b = a + 2 * double(whole(rng.split(1), 1, 4));
  const Tensor z = normalised(row({a, b, b, a}), 0);
  const std::int64_t width = whole(rng.split(2), 16, 512), rows = whole(rng.split(3), 20, 99);
  const double left = double(whole(rng.split(4), 1, 9)), right = -double(whole(rng.split(5), 1, 9));
  const Flows three = flows(row({1, 2, 6}), full(3, 1), row({left, right, 0}), 1e-12);
  const double eps = std::pow(10.0, -2.0 * double(whole(rng.split(6), 1, 3)));
  Saved saved;
  saved.wants = {true, true, true};
  ops::LayerNorm{eps}.forward(saved, Tensors{row({7, 7, 7, 7}), full(4, 1), full(4, 0)});
  return {
      Question::about_number(fmt::format("A row is ({}, {}, {}, {}). What is its variance, without eps?", a, b, b, a),
                             std::pow(deviation_of(row({a, b, b, a})), 2),
                             "the mean of the squared distances from the mean"),
      Question::about_number(fmt::format("The same row, with eps = 0. What is z of its second number, {}?", b),
                             z.to_vector()[1], "distance from the mean over the deviation, which here are equal"),
      Question::about_number(
          fmt::format("All numbers of a row are 7, and eps = {}. What is rstd?", drawing::number(eps)),
          saved.tensors[3].to_vector()[0], "1 / sqrt(eps), as the variance is 0"),
      Question::about_number(
          fmt::format(
              "The gradient of a row of three, x = (1, 2, 6), begins {:.4f}, {:.4f}. What is its third element?",
              three.dx.to_vector()[0], three.dx.to_vector()[1]),
          -(std::round(three.dx.to_vector()[0] * 1e4) + std::round(three.dx.to_vector()[1] * 1e4)) / 1e4,
          "the elements of dx add up to 0, as a shift changes nothing", 0.02),
      Question::about_number(
          fmt::format("x is ({}, {}). How many numbers does the tape keep besides x and gamma?", rows, width),
          double(2 * rows), "mean and rstd of each row", 0),
      Question::with_choices("Every number of a row is multiplied by 3 (eps is tiny). What becomes of the gradient dx?",
                             {"a third of what it was", "three times what it was", "the same", "0"},
                             "z stays, so everything behind stays, but rstd is a third"),
  };
}

}  // namespace sinkhorn::lessons::lesson_07_layer_norm
