// The gradient checker catches wrong gradients, and no op escapes it: both are shown by planting errors.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <limits>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "build_info.h"
#include "tests/shared.h"

namespace sinkhorn {
namespace {

using Gradient = std::function<Tensors(const Tensors& x, const Tensor& dy)>;

// f at a random point with a gradient written by hand.
GradientReport check(const std::vector<Shape>& shapes, const std::function<Var(const Tensors&)>& f,
                     const Gradient& gradient) {
  GradientProblem problem;
  for (std::size_t k = 0; k < shapes.size(); ++k) {
    problem.points.push_back(uniform(Rng(k), shapes[k], 0.5, 2, DType::f64));
    problem.names.push_back("x" + std::to_string(k));
  }
  problem.value = [=, points = problem.points] { return f(points).value; };
  problem.gradients = [=, points = problem.points](const Tensor& dy) { return gradient(points, dy); };
  return check_gradients(problem, Rng(5));
}

Tensor product(const Tensor& a, const Tensor& b, double factor = 1) { return scale(mul(a, b), factor).value; }

// A right gradient and wrong ones of the same function.
struct Plant {
  std::string name;
  std::vector<Shape> shapes;
  std::function<Var(const Tensors&)> f;
  Gradient right;
  std::vector<std::pair<std::string, Gradient>> wrong;
};

std::vector<Plant> plants() {
  return {{"square",
           {{3, 4}},
           [](const Tensors& x) { return square(x[0]); },
           [](const Tensors& x, const Tensor& dy) { return Tensors{product(x[0], dy, 2)}; },
           {{"sign", [](const Tensors& x, const Tensor& dy) { return Tensors{product(x[0], dy, -2)}; }},
            {"factor", [](const Tensors& x, const Tensor& dy) { return Tensors{product(x[0], dy, 1)}; }},
            {"factor near 1", [](const Tensors& x, const Tensor& dy) { return Tensors{product(x[0], dy, 2.000001)}; }},
            {"zero", [](const Tensors& x, const Tensor&) { return Tensors{Tensor::zeros(x[0].shape(), DType::f64)}; }},
            {"no flow", [](const Tensors&, const Tensor&) { return Tensors{Tensor()}; }},
            {"cotangent ignored", [](const Tensors& x, const Tensor&) { return Tensors{scale(x[0], 2).value}; }},
            {"NaN in one element",
             [](const Tensors& x, const Tensor& dy) {
               Tensor dx = product(x[0], dy, 2).clone();
               dx.data<double>()[7] = std::numeric_limits<double>::quiet_NaN();
               return Tensors{dx};
             }},
            {"one element off",
             [](const Tensors& x, const Tensor& dy) {
               Tensor dx = product(x[0], dy, 2).clone();
               dx.data<double>()[11] *= 1.00001;
               return Tensors{dx};
             }}}},
          {"transpose",
           {{3, 3}},
           [](const Tensors& x) {
             return permute(x[0], {1, 0});
           },
           [](const Tensors&, const Tensor& dy) {
             return Tensors{permute(dy, {1, 0}).value};
           },
           // A plain sum of the outputs as the loss would not see this one.
           {{"permutation", [](const Tensors&, const Tensor& dy) { return Tensors{dy}; }}}},
          {"rotation",
           {{5}},
           [](const Tensors& x) { return rotate(x[0], 0, 2); },
           [](const Tensors&, const Tensor& dy) { return Tensors{rotate(dy, 0, -2).value}; },
           {{"direction", [](const Tensors&, const Tensor& dy) { return Tensors{rotate(dy, 0, 2).value}; }}}},
          {"bias",
           {{4, 3}, {3}},
           [](const Tensors& x) { return add(x[0], x[1]); },
           [](const Tensors&, const Tensor& dy) {
             return Tensors{dy, sum_to(dy, {3})};
           },
           {{"missing accumulation over a broadcast axis",
             [](const Tensors&, const Tensor& dy) {
               return Tensors{dy, dy.slice(3, 4).reshape({3})};
             }}}},
          {"product of x with itself",
           {{2, 2}},
           [](const Tensors& x) { return mul(x[0], x[0]); },
           [](const Tensors& x, const Tensor& dy) { return Tensors{product(x[0], dy, 2)}; },
           {{"missing second flow", [](const Tensors& x, const Tensor& dy) { return Tensors{product(x[0], dy)}; }}}}};
}

TEST(GradientChecker, CatchesPlantedErrors) {
  for (const Plant& plant : plants()) {
    const GradientReport right = check(plant.shapes, plant.f, plant.right);
    EXPECT_LE(right.worst, kGradientTolerance) << plant.name << ": " << right.where;
    EXPECT_TRUE(right.smooth && right.repeatable) << plant.name;
    for (const auto& [name, gradient] : plant.wrong) {
      const GradientReport wrong = check(plant.shapes, plant.f, gradient);
      EXPECT_GT(wrong.worst, kGradientTolerance) << plant.name << ": " << name;
      EXPECT_TRUE(wrong.smooth) << plant.name << ": " << name << " passes for a kink";
    }
  }
}

TEST(GradientChecker, CatchesAGradientThatDoesNotRepeat) {
  int calls = 0;
  const GradientReport report = check(
      {{2}}, [](const Tensors& x) { return scale(x[0], 1); },
      [&](const Tensors&, const Tensor& dy) { return Tensors{scale(dy, 1, 1e-12 * calls++).value}; });
  EXPECT_LE(report.worst, kGradientTolerance);
  EXPECT_FALSE(report.repeatable);
}

// |x| at a point whose element 0 is `at`.
GradientProblem absolute_value(double at) {
  const Tensor x = Tensor::from(std::vector<double>{at, 1}, {2});
  return {{x},
          {"x"},
          [=] { return abs(x).value; },
          [=](const Tensor& dy) {
            const Tape tape = Tape::record();
            const Var leaf = tape.leaf(x);
            return Tensors{tape.backward(abs(leaf), dy).of(leaf)};
          }};
}

TEST(GradientChecker, DrawsAgainOnAKinkAndGivesUpInTheEnd) {
  EXPECT_FALSE(check_gradients(absolute_value(1e-4), Rng(1)).smooth);  // the step crosses it
  EXPECT_TRUE(check_gradients(absolute_value(0.1), Rng(1)).smooth);
  int draws = 0;
  EXPECT_TRUE(check_case("moves away", [&](Draw&) { return absolute_value(draws++ < 3 ? 1e-4 : 0.5); }).passed);
  EXPECT_EQ(draws, 4);
  draws = 0;
  const CaseResult stuck = check_case("stays", [&](Draw&) { return ++draws, absolute_value(-1e-4); });
  EXPECT_FALSE(stuck.passed);
  EXPECT_EQ(draws, 20);
  EXPECT_NE(stuck.report.where.find("kink"), std::string::npos) << stuck.report.where;
}

TEST(RelativeError, LetsNoNaNPass) {
  const Tensor x = Tensor::from(std::vector<double>{1, 2}, {2});
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const auto of = [&](double a, double b) { return relative_error(Tensor::from(std::vector<double>{a, b}, {2}), x); };
  EXPECT_EQ(of(1, 2), 0);
  EXPECT_DOUBLE_EQ(of(1, 2.5), 0.25);
  EXPECT_EQ(of(nan, 2), infinity);
  EXPECT_EQ(of(1, infinity), infinity);
  EXPECT_EQ(relative_error(x, x.reshape({2, 1})), infinity);
  EXPECT_EQ(relative_error(Tensor::zeros({0}), Tensor::zeros({0})), 0);
}

// Compiles a file that applies an op of its own, which may have gradient cases and may be on the list.
struct Compiled {
  bool accepted;
  std::string messages;
};
Compiled compile_op(bool has_cases, bool is_listed) {
  const testing::TemporaryFolder folder;
  const std::string source = folder.path / "op.cpp";
  std::ofstream(source) << "#include \"autograd/tape.h\"\n"
                           "namespace sinkhorn {\n"
                           "struct Own {\n"
                           "  static constexpr std::string_view name = \"own\";\n"
                           "  Output forward(Saved&, Inputs in) const { return in[0]; }\n"
                           "  Tensors backward(const Saved&, const Tensor& dy) const { return {dy}; }\n"
                        << (has_cases ? "  static std::vector<Case<Own>> cases() { return {}; }\n" : "") << "};\n"
                        << (is_listed ? "template <> inline constexpr bool contains<Own, AllOps> = true;\n" : "")
                        << "Var own(const Var& x) { return apply(Own{}, {x}); }\n"
                           "}  // namespace sinkhorn\n";
  const std::string command = std::string(build_info::compiler_path) + " -std=c++20 -fsyntax-only -I'" +
                              std::string(build_info::source_dir) + "' '" + source + "' 2>&1";
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return {false, "cannot run the compiler"};
  std::string messages;
  std::array<char, 4096> part;
  for (std::size_t n; (n = fread(part.data(), 1, part.size(), pipe)) > 0;) messages.append(part.data(), n);
  return {pclose(pipe) == 0, messages};
}

TEST(AnOp, CompilesOnlyWithGradientCasesAndOnTheList) {
  const Compiled good = compile_op(true, true), unlisted = compile_op(true, false), unchecked = compile_op(false, true);
  EXPECT_TRUE(good.accepted) << good.messages;
  EXPECT_FALSE(unlisted.accepted);
  EXPECT_NE(unlisted.messages.find("add the op to AllOps"), std::string::npos) << unlisted.messages;
  EXPECT_FALSE(unchecked.accepted);
  EXPECT_NE(unchecked.messages.find("cases"), std::string::npos) << unchecked.messages;
}

}  // namespace
}  // namespace sinkhorn
