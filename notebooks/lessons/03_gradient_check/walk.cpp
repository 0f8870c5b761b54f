#include <cmath>
#include <limits>

#include "autograd/gradcheck.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/movement.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/softmax.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_03_gradient_check {
namespace {

Tensor number(double x, DType dtype = DType::f64) { return Tensor::full({}, x, dtype); }
Tensor row(const std::vector<double>& numbers) { return Tensor::from(numbers, {std::int64_t(numbers.size())}); }

double exp_of(double x, DType dtype) { return exp(Var(number(x, dtype))).value.item(); }

enum class Points { one_side, two, four };
double difference(Points points, double x, double h, const std::function<double(double)>& f) {
  if (points == Points::one_side) return (f(x + h) - f(x)) / h;
  if (points == Points::two) return (f(x + h) - f(x - h)) / (2 * h);
  return (f(x - 2 * h) - 8 * f(x - h) + 8 * f(x + h) - f(x + 2 * h)) / (12 * h);
}

// |difference - slope| / slope of exp, the mean over places from 0.5 to 1.5.
double error_of(Points points, double h, DType dtype) {
  constexpr int kPlaces = 16;
  double sum = 0;
  for (int i = 0; i < kPlaces; ++i) {
    const double x = 0.5 + i / 15.0;
    const double slope = difference(points, x, h, [dtype](double at) { return exp_of(at, dtype); });
    sum += std::abs(slope / std::exp(x) - 1);
  }
  return sum / kPlaces;
}

// The numeric gradient of the sum of dy * f(x).
Tensor numeric_gradient(const Tensor& at, const Tensor& dy, const std::function<Var(const Var&)>& f) {
  const Tensor x = at.clone();
  Tensor result = at.like();
  for (std::int64_t i = 0; i < x.count(); ++i)
    result.span<double>()[i] = difference(Points::four, at.span<double>()[i], 1e-3, [&](double value) {
      x.span<double>()[i] = value;
      const double loss = sum(f(Var(x)) * Var(dy)).value.item();
      x.span<double>()[i] = at.span<double>()[i];
      return loss;
    });
  return result;
}

std::vector<std::string> cells(const std::string& name, const Tensor& numbers) {
  std::vector<std::string> result{name};
  // What is rounding alone is shown as 0.
  for (const double x : numbers.to_vector()) result.push_back(drawing::number(std::abs(x) < 1e-11 ? 0 : x, 4));
  return result;
}

GradientReport relu_report(const Tensor& x) {
  return check_gradients({{x},
                          {"x"},
                          [x] { return relu(Var(x)).value; },
                          [x](const Tensor& dy) {
                            const Tape tape = Tape::record();
                            const Var leaf = tape.leaf(x);
                            return Tensors{tape.backward(relu(leaf), dy).of(leaf)};
                          }},
                         Rng(1));
}

std::string says_of(const GradientReport& report) {
  if (!report.smooth) return "a kink: draws again";
  return report.worst <= kGradientTolerance ? "agrees" : "disagrees";
}

}  // namespace

void walk(Page& page) {
  page.step("A gradient is a claim");
  page.text(
      "Lessons 1 and 2 gave two ways to a slope: the chain rule, and a nudge. The chain rule is fast and exact, if "
      "nobody made a mistake in it. The nudge is slow, but it needs nothing except forward. So let one test the "
      "other. This is gradient checking, and it is how all gradients of this library are tested.\n\nIt matters more "
      "than other tests. A model with a wrong gradient does not crash. It trains, only worse, and nobody knows "
      "why.\n\nBut the test itself can lie, in both directions. This lesson is about how, one lie at a time.");

  page.step("How small is a small nudge?");
  page.text(
      "The slope of exp is exp itself, so its error can be measured. Here are the errors, relative to the slope and "
      "averaged over 16 places x, for three formulas in f64 (numbers with 16 digits):\n\n  one side     (f(x+h) - "
      "f(x)) / h\n  two points   (f(x+h) - f(x-h)) / 2h\n  four points  (f(x-2h) - 8 f(x-h) + 8 f(x+h) - f(x+2h)) / "
      "12h");
  std::vector<std::vector<std::string>> rows;
  for (int k = 1; k <= 13; k += 2) {
    const double h = std::pow(10.0, -k);
    std::vector<std::string> cells{drawing::number(h)};
    for (const Points points : {Points::one_side, Points::two, Points::four})
      cells.push_back(drawing::number(error_of(points, h, DType::f64), 2));
    rows.push_back(cells);
  }
  page.picture(drawing::table(page.style(), {"h", "one side", "two points", "four points"}, rows));
  page.text("And as a picture: how many digits of the four-point slope are right, for h from 1 down to 1e-15.");
  std::vector<double> digits;
  double best = 1, best_h = 1;
  for (int k = 0; k <= 60; ++k) {
    const double h = std::pow(10.0, -k / 4.0), e = error_of(Points::four, h, DType::f64);
    digits.push_back(-std::log10(std::max(e, 1e-17)));
    if (e < best) {
      best = e;
      best_h = h;
    }
  }
  page.picture(drawing::curve(page.style(), digits, 9));
  page.text(
      "First the error falls with h, since the formula assumes that h is small. Then it grows again: f(x+h) and "
      "f(x-h) agree in nearly all of their 16 digits, the difference keeps only the digits that are left, and it is "
      "divided by a small h. The best h for four points lies near {:.0e}, with {:.0f} digits right. Smaller is not "
      "better.",
      best_h, std::floor(-std::log10(best)));

  page.step("Why four points, why f64");
  double best_f32 = 1;
  for (int k = 0; k <= 28; ++k)
    best_f32 = std::min(best_f32, error_of(Points::two, std::pow(10.0, -k / 4.0), DType::f32));
  const double h = 0.1;
  page.text(
      "From both sides, the errors of odd order cancel: what is left shrinks with h squared. Four points cancel the "
      "next one, too, and the rest shrinks with h to the fourth. Make h ten times smaller, from {} to {}, and "
      "see:\n\n  one side     the error becomes {:8.1f} times smaller\n  two points   {:31.1f}\n  four points  "
      "{:31.1f}",
      h, h / 10, error_of(Points::one_side, h, DType::f64) / error_of(Points::one_side, h / 10, DType::f64),
      error_of(Points::two, h, DType::f64) / error_of(Points::two, h / 10, DType::f64),
      error_of(Points::four, h, DType::f64) / error_of(Points::four, h / 10, DType::f64));
  page.text(
      "A fast fall lets h stay large, far away from rounding. In f32, numbers with 7 digits as training uses, the "
      "best that two points reach here over all h is an error of {:.0e}, against {:.0e} of four points in f64. A "
      "tolerance must lie above such noise, and mistakes that are smaller hide below it. So gradients are checked in "
      "f64. The library's own formula:",
      best_f32, best);
  page.code("autograd/gradcheck.cpp", "double central_difference(double& x");

  page.step("A loss that looks away");
  const Tensor x = row({0.3, -1.2, 0.8, 1.5, -0.4});
  const auto rotated = [](const Var& v) { return rotate(v, 0, 1); };
  const auto shares = [](const Var& v) { return softmax(v); };
  const Tensor ones = Tensor::full({5}, 1, DType::f64), dy = uniform(Rng(3), {5}, -1, 1, DType::f64);
  page.text(
      "A function with many outputs needs a single number to be checked by. The handy choice is their sum. Take y = "
      "x rotated by one place, (x1, x2, x3, x4, x0), and a gradient that forgets to rotate back, and simply hands on "
      "what came, dx = dy. Checked with the sum, that is with dy = (1, 1, 1, 1, 1):");
  page.picture(drawing::table(page.style(), {"dy = 1", "x0", "x1", "x2", "x3", "x4"},
                              {cells("claimed", ones), cells("numeric", numeric_gradient(x, ones, rotated))}));
  page.text("Perfect, and wrong. With a dy drawn at random, the loss being the sum of dy * y:");
  page.picture(drawing::table(page.style(), {"random dy", "x0", "x1", "x2", "x3", "x4"},
                              {cells("claimed", dy), cells("numeric", numeric_gradient(x, dy, rotated))}));
  page.text(
      "It gets worse. Softmax (lesson 6) makes shares that add up to 1. Their sum never moves, so with dy = 1 its "
      "numeric gradient is 0, and a softmax that claims a gradient of 0 passes. With the same random dy:");
  page.picture(drawing::table(
      page.style(), {"softmax", "x0", "x1", "x2", "x3", "x4"},
      {cells("dy = 1", numeric_gradient(x, ones, shares)), cells("random dy", numeric_gradient(x, dy, shares))}));

  page.step("NaN passes, unless asked the right way round");
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();
  const volatile double error = kNaN;  // so that the compiler does not decide it
  page.text(
      "NaN, \"not a number\", is what 0/0 gives. Every comparison with NaN is false. So a wrong gradient that is NaN "
      "goes through every test that asks whether the error is too large:");
  const auto told = [](bool b) { return std::string(b ? "true" : "false"); };
  page.picture(drawing::table(page.style(), {"with error = NaN", "gives"},
                              {{"error > 1e-7", told(error > 1e-7)},
                               {"error <= 1e-7", told(error <= 1e-7)},
                               {"std::max(0.0, error)", drawing::number(std::max(0.0, double(error)))},
                               {"inf / inf", drawing::number(kInf / kInf)}}));
  page.text(
      "Ask whether it is small enough, and fail otherwise. Beware of running maxima, too: std::max(worst, NaN) keeps "
      "worst. And an infinite gradient makes a relative error of infinity over infinity, which is NaN again.");

  page.step("Large or small, compared with what?");
  page.text(
      "Is an error of 1e-5 large? If the gradient is 1000, it is rounding. If it is 1e-9, as where a loss is the "
      "mean over a billion things, everything is wrong. So errors are divided by the size of the gradient itself. "
      "But one element of many may rightly be 0, and its numeric slope is 1e-13 or so, by rounding; relative to "
      "itself that is an error of 100 %. The library adds a thousandth of the largest element to the denominator. It "
      "demands an error of {} at most.",
      kGradientTolerance);
  page.code("autograd/gradcheck.cpp", "auto error = [&](double a, double b) {");

  page.step("Kinks");
  page.text(
      "relu(x) is x if x > 0, else 0. At 0 it has a kink, and a nudge that steps over the kink sees a bit of both "
      "sides. With four points and h = 0.001:");
  std::vector<std::vector<std::string>> kinks;
  for (const double at : {1.0, 0.0015, 0.0005, 0.0, -0.0005}) {
    const Tensor point = row({at});
    kinks.push_back(
        {drawing::number(at), at > 0 ? "1" : "0",
         fmt::format("{:.4f}", numeric_gradient(point, row({1}), [](const Var& v) { return relu(v); }).item()),
         says_of(relu_report(point))});
  }
  page.picture(drawing::table(page.style(), {"x", "slope by the rule", "numeric", "the library says"}, kinks));
  page.text(
      "Here the rule is right and the nudge is wrong. The library tries h/2 as well: on smooth ground both agree, on "
      "a kink they do not, and it draws another point. Exactly at 0 both steps see the same half, and the check "
      "fails; random points never stand there. Maxima and sorting have such places, too. (Your exercise has none.)");

  page.step("Your turn");
  page.text(
      "The exercise is a checker that lies. It takes a function and a claimed gradient, and says whether the claim "
      "is right, and if not, which element is worst:");
  page.code("notebooks/lessons/03_gradient_check/exercise.h", "struct Claim {");
  page.text(
      "The checks bring two dozen claims, some right, most wrong, all with numbers drawn at random. Read each line "
      "of the file as if somebody wanted to get past it. Then look at `sinkhorn gradcheck`, which does this for "
      "every op.");
}

Quiz quiz(Rng rng) {
  const std::int64_t power = whole(rng.split(0), 2, 3);
  const double a = rounded(rng.split(1), 0.5, 3, 1), h = rounded(rng.split(2), 0.1, 0.4, 1);
  const std::int64_t count = whole(rng.split(3), 3, 9);
  const double claimed = rounded(rng.split(4), 1.1, 1.9, 2), slope = rounded(rng.split(5), 2.1, 2.9, 2);
  const auto cube = [](double x) { return x * x * x; };
  return {
      Question::about_number(
          fmt::format("f(x) = x * x * x at x = {}, h = {}. What does (f(x+h) - f(x-h)) / 2h give?", a, h),
          difference(Points::two, a, h, cube), "3 x x + h h: the slope, and an error of h squared", 0.001),
      Question::about_number(fmt::format("The same function, x = {}, four points, h = {}. What do they give?", a, h),
                             difference(Points::four, a, h, cube),
                             "3 x x exactly: the error of four points begins at the fifth power", 0.001),
      Question::about_number(fmt::format("The two-point error is 1e-4 at some h, well above rounding. h becomes {} "
                                         "times smaller. By what factor does the error shrink?",
                                         power == 2 ? 2 : 10),
                             power == 2 ? 4 : 100, "it goes with h squared"),
      Question::about_number(fmt::format("Softmax of {} scores, checked with the plain sum as the loss. What is the "
                                         "numeric gradient of the first score, rounded to 6 decimals?",
                                         count),
                             0, "the shares add up to 1 whatever the scores are: their sum never moves", 0),
      Question::about_number(
          fmt::format(
              "Claimed {:.2f}, numeric {:.2f}, nothing else around. How large is the error, relative to the larger?",
              claimed, slope),
          (slope - claimed) / slope, "|claimed - numeric| / max of both"),
      Question::with_choices("A claimed gradient is NaN. Which test notices?",
                             {"if (!(error <= tolerance)) fail", "if (error > tolerance) fail",
                              "worst = std::max(worst, error), then if (worst > tolerance) fail", "none of these"},
                             "every comparison with NaN is false, so the question must be whether it is small enough"),
  };
}

}  // namespace sinkhorn::lessons::lesson_03_gradient_check
