// The gradient microscope names every planted cause first, at several shapes and draws, and claims nothing it cannot
// know.
#include "autograd/microscope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "autograd/ops.h"

namespace sinkhorn {
namespace {

using Values = std::vector<double>;
using Damage = std::function<Tensor(const Tensor& right)>;

constexpr int kSeeds = 5;

/// A smooth curve whose derivative is never 0, element by element.
Var curved(const Var& x) { return tanh(x) + scale(square(x), 0.5); }

/// A problem with the library's own gradient, whose flows then pass through `damage`.
struct Plan {
  std::vector<Shape> shapes;
  std::function<Var(std::span<const Var>)> f = [](std::span<const Var> x) { return curved(x[0]); };
  std::function<Tensors(const Tensors& right, const Tensor& dy)> damage = [](const Tensors& right, const Tensor&) {
    return right;
  };
};

GradientProblem problem_of(const Plan& plan, std::uint64_t seed) {
  GradientProblem problem;
  Draw draw{Rng(seed)};
  for (std::size_t k = 0; k < plan.shapes.size(); ++k) {
    problem.points.push_back(draw.uniform(plan.shapes[k], 0.3, 1.7));
    problem.names.push_back("x" + std::to_string(k));
  }
  problem.value = [=, points = problem.points] {
    const std::vector<Var> vars(points.begin(), points.end());
    return plan.f(vars).value;
  };
  problem.gradients = [=, points = problem.points](const Tensor& dy) {
    const Tape tape = Tape::record();
    std::vector<Var> leaves;
    for (const Tensor& point : points) leaves.push_back(tape.leaf(point));
    const Gradients gradients = tape.backward(plan.f(leaves), dy);
    Tensors flows;
    for (const Var& leaf : leaves) flows.push_back(gradients.of(leaf));
    return plan.damage(flows, dy);
  };
  return problem;
}

Diagnosis diagnosed(const Plan& plan, std::uint64_t seed) {
  return diagnose(compare_gradients(problem_of(plan, seed), Rng(seed + 100)));
}

Plan damaged(Shape shape, const Damage& damage) {
  Plan plan{{shape}};
  plan.damage = [damage](const Tensors& right, const Tensor&) { return Tensors{damage(right[0])}; };
  return plan;
}

std::string said(const Diagnosis& diagnosis) {
  std::string text;
  for (const Finding& f : diagnosis.findings) text += std::string(name_of(f.cause)) + ": " + f.evidence + "\n";
  for (const WrongGradient& w : diagnosis.wrong)
    for (const Finding& f : w.findings)
      text += w.name + " " + std::string(name_of(f.cause)) + " (" + std::to_string(f.fit) + "): " + f.evidence + "\n";
  return text;
}

void expect_first(Cause cause, const Plan& plan, const std::string& evidence = "") {
  for (int seed = 0; seed < kSeeds; ++seed) {
    const Diagnosis diagnosis = diagnosed(plan, std::uint64_t(seed));
    ASSERT_NE(diagnosis.likely(), nullptr) << name_of(cause) << " was not found at " << plan.shapes[0];
    EXPECT_EQ(name_of(diagnosis.likely()->cause), name_of(cause)) << plan.shapes[0] << "\n" << said(diagnosis);
    EXPECT_NE(diagnosis.likely()->evidence.find(evidence), std::string::npos)
        << "no \"" << evidence << "\" in: " << said(diagnosis);
    EXPECT_LE(diagnosis.likely()->fit, cause == Cause::no_flow ? 1 : 1e-5);
  }
}

Tensor from_function(const Shape& shape, const std::function<double(std::int64_t)>& at) {
  Values values;
  values.reserve(std::size_t(shape.count()));
  for (std::int64_t i = 0; i < shape.count(); ++i) values.push_back(at(i));
  return Tensor::from(values, shape);
}

/// Every element of the right gradient through a function of it and its place.
Damage each(const std::function<double(double, std::int64_t)>& change) {
  return [change](const Tensor& right) {
    const Values values = right.to_vector();
    return from_function(right.shape(), [&](std::int64_t i) { return change(values[std::size_t(i)], i); });
  };
}
Damage times(double factor) {
  return each([factor](double x, std::int64_t) { return factor * x; });
}

TEST(Microscope, ARightGradientIsFine) {
  for (const Shape& shape : {Shape{}, Shape{1}, Shape{1, 1}, Shape{5}, Shape{3, 4}, Shape{2, 3, 2}, Shape{0, 3}})
    for (int seed = 0; seed < kSeeds; ++seed) {
      const Diagnosis diagnosis = diagnosed({{shape}}, std::uint64_t(seed));
      EXPECT_TRUE(diagnosis.is_fine()) << shape << "\n" << said(diagnosis);
      EXPECT_EQ(diagnosis.likely(), nullptr);
      EXPECT_EQ(diagnosis.right.size(), 1u);
    }
}

TEST(Microscope, NamesSignAndFactor) {
  for (const Shape& shape : {Shape{}, Shape{1, 1}, Shape{7}, Shape{3, 4}, Shape{2, 3, 5}}) {
    expect_first(Cause::sign, damaged(shape, times(-1)), "-1 x");
    expect_first(Cause::factor, damaged(shape, times(2)), "added twice");
    expect_first(Cause::factor, damaged(shape, times(0.5)), "used twice");
  }
  expect_first(Cause::factor, damaged({3, 7}, times(7)), "7 is the extent of axis 1 of x0 (3, 7)");
  expect_first(Cause::factor, damaged({3, 7}, times(7)), "a mean, taken as a sum");
  expect_first(Cause::factor, damaged({3, 7}, times(1. / 3)), "3 is the extent of axis 0 of x0 (3, 7)");
  expect_first(Cause::factor, damaged({3, 7}, times(1. / 3)), "a sum, taken as a mean");
  expect_first(Cause::factor, damaged({3, 7}, times(21)), "21 is the number of elements");
  expect_first(Cause::factor, damaged({3, 7}, times(std::sqrt(7))), "1/sqrt(7) forgotten");
  expect_first(Cause::factor, damaged({3, 7}, times(1 / std::sqrt(7))), "1/sqrt(7)");
  expect_first(Cause::factor, damaged({3, 7}, times(-7)), "And the sign is wrong");
  expect_first(Cause::factor, damaged({3, 7}, times(1.37)), "1.37 x numeric in all 21");
  expect_first(Cause::precision, damaged({3, 7}, times(1.000003)), "1.000003");
}

TEST(Microscope, NamesAnExtentOfTheOutput) {
  Plan plan{{{3}, {5, 3}}};
  plan.f = [](std::span<const Var> x) { return x[0] * x[1]; };
  plan.damage = [](const Tensors& right, const Tensor&) { return Tensors{times(0.2)(right[0]), right[1]}; };
  expect_first(Cause::factor, plan, "5 is the extent of axis 0 of x1 (5, 3)");
}

TEST(Microscope, NamesNothingForOneElementWithAFactorWithoutAName) {
  for (const Shape& shape : {Shape{}, Shape{1}, Shape{1, 1}}) {
    for (const double factor : {1.37, -0.3, 3.0}) {
      const Diagnosis diagnosis = diagnosed(damaged(shape, times(factor)), 1);
      EXPECT_EQ(diagnosis.likely(), nullptr) << said(diagnosis);
      EXPECT_EQ(diagnosis.wrong.size(), 1u);
    }
  }
}

Damage permute_as(const Shape& read_as, std::initializer_list<int> axes) {
  const std::vector<int> order(axes);
  return [=](const Tensor& right) { return permute(right.reshape(read_as), order).value.reshape(right.shape()); };
}

TEST(Microscope, NamesTranspositions) {
  expect_first(Cause::transposed, damaged({3, 3}, permute_as({3, 3}, {1, 0})), "^T equals numeric");
  expect_first(Cause::transposed, damaged({2, 2}, permute_as({2, 2}, {1, 0})));
  expect_first(Cause::transposed, damaged({2, 4, 4}, permute_as({2, 4, 4}, {0, 2, 1})), "last two axes");
  // The transpose's numbers under the input's own shape, and under the transposed one.
  expect_first(Cause::transposed, damaged({3, 5}, permute_as({3, 5}, {1, 0})),
               "reshaped where it should be transposed");
  expect_first(Cause::transposed,
               damaged({3, 5},
                       [](const Tensor& right) {
                         return permute(right, {1, 0}).value;
                       }),
               "The gradient is (5, 3), the input (3, 5); transposed");
  expect_first(Cause::axes_permuted, damaged({2, 3, 4}, permute_as({2, 3, 4}, {1, 0, 2})), "order 1, 0, 2");
}

TEST(Microscope, DoesNotTakeASymmetricMatrixForTransposed) {
  // dx of tr(x^T C x) with C = 1 is symmetric where x is; here the values are made so.
  Plan plan{{{3, 3}}};
  plan.f = [](std::span<const Var> x) { return scale(sum(curved(x[0])), 1); };
  plan.damage = [](const Tensors& right, const Tensor&) {
    return Tensors{each([](double x, std::int64_t i) { return i == 4 ? 2.2 * x : x; })(right[0])};
  };
  for (int seed = 0; seed < kSeeds; ++seed) {
    GradientProblem problem = problem_of(plan, std::uint64_t(seed));
    const Tensor& x = problem.points[0];
    x.assign(add(x, permute(x, {1, 0})).value);
    const Diagnosis diagnosis = diagnose(compare_gradients(problem, Rng(1)));
    ASSERT_NE(diagnosis.likely(), nullptr);
    for (const Finding& finding : diagnosis.wrong.at(0).findings)
      EXPECT_EQ(name_of(finding.cause), "part") << said(diagnosis);
  }
}

TEST(Microscope, NamesReversalsAndRotations) {
  for (const Shape& shape : {Shape{6}, Shape{3, 6}, Shape{2, 6, 3}}) {
    const int axis = shape.rank() == 1 ? 0 : 1;
    const std::int64_t after = shape.product(axis + 1, shape.rank());
    const auto taken_from = [=](const std::function<std::int64_t(std::int64_t)>& to_old) -> Damage {
      return [=](const Tensor& right) {
        const Values values = right.to_vector();
        return from_function(shape, [&](std::int64_t i) {
          const std::int64_t j = i / after % 6;
          return values[std::size_t(i + (to_old(j) - j) * after)];
        });
      };
    };
    expect_first(Cause::reversed, damaged(shape, taken_from([](std::int64_t j) { return 5 - j; })),
                 "backwards along axis " + std::to_string(axis));
    for (const int by : {1, 2, 4, 5})
      expect_first(Cause::rotated, damaged(shape, taken_from([by](std::int64_t j) { return (j + by) % 6; })),
                   "Shifted by " + std::to_string(by <= 2 ? by : by - 6) + " along axis " + std::to_string(axis));
    const std::vector<std::int64_t> mixed = {2, 0, 1, 5, 3, 4};
    expect_first(Cause::permuted, damaged(shape, taken_from([=](std::int64_t j) { return mixed[std::size_t(j)]; })),
                 shape.rank() == 1 ? "sorted" : "slices 2, 0, 1, 5, 3, 4 in this order");
  }
}

TEST(Microscope, NamesAMissingSumOverABroadcastAxis) {
  Plan plan{{{4, 3}, {3}}};
  plan.f = [](std::span<const Var> x) { return curved(x[0]) * x[1]; };
  plan.damage = [](const Tensors& right, const Tensor& dy) { return Tensors{right[0], dy}; };
  // In x + b what flows to b is what flows to x.
  Plan bias{{{4, 3}, {3}}};
  bias.f = [](std::span<const Var> x) { return x[0] + x[1]; };
  bias.damage = [](const Tensors& right, const Tensor& dy) { return Tensors{right[0], dy}; };
  expect_first(Cause::missing_sum, bias, "(4, 3), the input (3); summed over axis 0");
  for (const int slice : {0, 2, 3}) {
    bias.damage = [slice](const Tensors& right, const Tensor& dy) {
      return Tensors{right[0], dy.slice(slice, slice + 1).reshape({3})};
    };
    expect_first(Cause::missing_sum, bias, "slice " + std::to_string(slice));
  }
  Plan middle{{{2, 3, 4}, {2, 1, 4}}};
  middle.f = [](std::span<const Var> x) { return x[0] + curved(x[1]); };
  middle.damage = [](const Tensors& right, const Tensor&) {
    const Tensor third = times(1. / 3)(right[1]);
    return Tensors{right[0], mul(third, Tensor::full({2, 3, 4}, 1, DType::f64)).value};
  };
  expect_first(Cause::missing_sum, middle, "summed over axis 1");
  expect_first(Cause::wrong_shape, plan, "(4, 3), the input (3)");  // not what flows to it, so no sum explains it
}

TEST(Microscope, NamesWrongShapesAndTypes) {
  Plan summed{{{3, 4}}};
  summed.f = [](std::span<const Var> x) { return sum(x[0], 1, true); };
  summed.damage = [](const Tensors&, const Tensor& dy) { return Tensors{dy}; };
  expect_first(Cause::not_stretched, summed, "stretched along axis 1 it is the numeric one");
  expect_first(Cause::reshaped, damaged({3, 4}, [](const Tensor& t) { return t.reshape({2, 6}); }), "Reshape");
  expect_first(Cause::reshaped, damaged({3, 4}, [](const Tensor& t) { return t.reshape({12}); }));
  expect_first(Cause::wrong_shape, damaged({3, 4}, [](const Tensor&) { return Tensor::full({5}, 1, DType::f64); }));
  expect_first(Cause::wrong_shape, damaged({3, 4}, [](const Tensor&) { return Tensor::full({4}, 1, DType::f64); }));
  expect_first(Cause::wrong_type, damaged({3, 4}, [](const Tensor& t) { return t.to(DType::f32); }), "f32");
}

TEST(Microscope, NamesNoFlow) {
  for (const Shape& shape : {Shape{}, Shape{3, 4}}) {
    expect_first(Cause::no_flow, damaged(shape, [](const Tensor&) { return Tensor(); }), "constant");
    expect_first(Cause::no_flow, damaged(shape, times(0)), "is 0");
  }
}

TEST(Microscope, NamesWhatIsNotFinite) {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()})
    expect_first(Cause::not_finite, damaged({3, 4}, each([bad](double x, std::int64_t i) { return i == 6 ? bad : x; })),
                 "1 of 12 analytic elements are not finite, first at [1, 2]");
  Plan root{{{3}}};
  root.f = [](std::span<const Var> x) { return log(scale(x[0], -1)); };
  expect_first(Cause::not_finite, root, "the function itself");
}

TEST(Microscope, NamesSwappedGradients) {
  Plan plan{{{2, 3}, {2, 3}, {4}}};
  plan.f = [](std::span<const Var> x) { return curved(x[0]) * x[1] + sum(square(x[2])); };
  plan.damage = [](const Tensors& right, const Tensor&) { return Tensors{right[1], right[0], right[2]}; };
  expect_first(Cause::swapped, plan, "the other way round");
  plan.damage = [](const Tensors& right, const Tensor&) { return Tensors{right[1], right[1], right[2]}; };
  expect_first(Cause::swapped, plan, "of x0 equals the numeric one of x1.");
  plan.damage = [](const Tensors& right, const Tensor&) { return Tensors{right[2], right[1], right[2]}; };
  expect_first(Cause::swapped, plan, "of x0 equals the numeric one of x2.");
}

TEST(Microscope, NamesAPartThatIsWrong) {
  const auto where = [](const std::function<bool(std::int64_t row, std::int64_t column)>& is_wrong, double factor) {
    return each([=](double x, std::int64_t i) { return is_wrong(i / 5, i % 5) ? factor * x : x; });
  };
  expect_first(Cause::part, damaged({4, 5}, where([](auto, auto c) { return c == 4; }, 0)),
               "index 4 (the last, of 5) along axis 1");
  expect_first(Cause::part, damaged({4, 5}, where([](auto r, auto) { return r == 0; }, 0.5)),
               "index 0 (the first, of 4) along axis 0; the others agree. There analytic = 0.5 x numeric");
  expect_first(Cause::part, damaged({4, 5}, where([](auto r, auto) { return r < 2; }, 3)), "the first 2, of 4");
  expect_first(Cause::part, damaged({4, 5}, where([](auto r, auto) { return r % 2 == 1; }, 3)), "indices 1, 3 (of 4)");
  expect_first(Cause::part, damaged({4, 5}, where([](auto r, auto c) { return c > r; }, 3)), "above the diagonal");
  expect_first(Cause::part, damaged({4, 5}, where([](auto r, auto c) { return c < r; }, 3)), "below the diagonal");
  expect_first(Cause::part, damaged({4, 5}, where([](auto r, auto c) { return c == r; }, 3)), "on the diagonal");
  expect_first(Cause::part, damaged({4, 5}, where([](auto r, auto c) { return c == 1 && r == 2; }, 3)), "[2, 1]");
}

TEST(Microscope, NamesRowsOffsetsAndTerms) {
  expect_first(Cause::factor_along_axis, damaged({4, 5}, each([](double x, std::int64_t i) {
                                                   const std::int64_t row = i / 5;
                                                   return x / (1.5 + double(row));
                                                 })),
               "axis 0 alone");
  expect_first(Cause::factor_along_axis,
               damaged({4, 5}, each([](double x, std::int64_t i) { return x * (1.5 + double(i % 5)); })),
               "axis 1 alone");
  Plan offset{{{4, 5}}};
  offset.damage = [](const Tensors& right, const Tensor& dy) {
    return Tensors{add(right[0], scale(sum(dy), 0.3)).value};
  };
  expect_first(Cause::offset, offset, "in all 20 elements");
  Plan centred{{{4, 5}}};
  centred.f = [](std::span<const Var> x) { return x[0] - mean(x[0], 1, true); };
  centred.damage = [](const Tensors&, const Tensor& dy) { return Tensors{dy}; };
  expect_first(Cause::missing_term, centred, "a constant for each row");
  Plan probabilities{{{4, 5}}};
  probabilities.f = [](std::span<const Var> x) { return softmax(x[0]); };
  for (int seed = 0; seed < kSeeds; ++seed) {
    const GradientProblem right = problem_of(probabilities, std::uint64_t(seed));
    GradientProblem wrong = right;
    wrong.gradients = [right](const Tensor& dy) { return Tensors{mul(right.value(), dy).value}; };
    const Diagnosis diagnosis = diagnose(compare_gradients(wrong, Rng(7)));
    ASSERT_NE(diagnosis.likely(), nullptr);
    EXPECT_EQ(name_of(diagnosis.likely()->cause), "missing-term") << said(diagnosis);
    EXPECT_NE(diagnosis.likely()->evidence.find("a multiple of the output"), std::string::npos) << said(diagnosis);
  }
}

TEST(Microscope, NamesAnIncomingGradientThatDoesNotComeIn) {
  Plan plan{{{3, 4}}};
  const auto with = [&](const std::function<Tensor(const Tensor& right, const Tensor& dy)>& wrong) {
    plan.damage = [wrong](const Tensors& right, const Tensor& dy) { return Tensors{wrong(right[0], dy)}; };
    return plan;
  };
  expect_first(Cause::ignores_incoming,
               with([](const Tensor& right, const Tensor& dy) { return div(right, dy).value; }), "stays the same");
  expect_first(Cause::ignores_incoming,
               with([](const Tensor& right, const Tensor& dy) { return mul(right, dy).value; }),
               "Does dy come in twice");
  expect_first(Cause::ignores_incoming,
               with([](const Tensor& right, const Tensor&) { return scale(right, 1, 2).value; }), "does not double");
}

TEST(Microscope, NamesWhatDoesNotRepeat) {
  for (const bool grows : {true, false}) {
    int calls = 0;
    Plan plan{{{3, 4}}};
    plan.damage = [&](const Tensors& right, const Tensor&) {
      ++calls;
      return Tensors{scale(right[0], grows ? calls : 1, grows ? 0 : 1e-12 * calls).value};
    };
    const Diagnosis diagnosis = diagnosed(plan, 3);
    ASSERT_NE(diagnosis.likely(), nullptr);
    EXPECT_EQ(name_of(diagnosis.likely()->cause), "not-repeatable");
    EXPECT_EQ(diagnosis.likely()->evidence.find("not cleared") != std::string::npos, grows) << said(diagnosis);
  }
}

TEST(Microscope, NamesAKink) {
  const Tensor x = Tensor::from(Values{1e-4, 1}, {2});
  const GradientProblem problem{{x}, {"x"}, [=] { return abs(x).value; }, [](const Tensor& dy) { return Tensors{dy}; }};
  const Diagnosis diagnosis = diagnose(compare_gradients(problem, Rng(1)));
  ASSERT_NE(diagnosis.likely(), nullptr);
  EXPECT_EQ(name_of(diagnosis.likely()->cause), "kink") << said(diagnosis);
}

TEST(Microscope, ClaimsNothingForRandomGradients) {
  for (const Shape& shape : {Shape{}, Shape{1}, Shape{1, 1}, Shape{2}, Shape{3}, Shape{2, 2}, Shape{1, 3}, Shape{3, 1},
                             Shape{3, 4}, Shape{4, 4}, Shape{2, 3, 4}})
    for (int seed = 0; seed < 20; ++seed) {
      Plan plan{{shape, {3, 4}}};
      plan.f = [](std::span<const Var> x) { return curved(x[0]) * sum(curved(x[1])); };
      plan.damage = [&](const Tensors& right, const Tensor& dy) {
        const Tensor noise = uniform(Rng(std::uint64_t(seed) + 50), shape, -1, 1, DType::f64);
        return Tensors{mul(noise, sum(dy)).value, right[1]};
      };
      const Diagnosis diagnosis = diagnosed(plan, std::uint64_t(seed));
      EXPECT_EQ(diagnosis.likely(), nullptr) << shape << " seed " << seed << "\n" << said(diagnosis);
      ASSERT_EQ(diagnosis.wrong.size(), 1u);
      EXPECT_EQ(diagnosis.wrong[0].wrong, shape.count());
      EXPECT_FALSE(diagnosis.wrong[0].worst.empty());
      for (std::size_t i = 1; i < diagnosis.wrong[0].worst.size(); ++i)
        EXPECT_GE(diagnosis.wrong[0].worst[i - 1].error, diagnosis.wrong[0].worst[i].error);
    }
}

TEST(Microscope, NotesASumThatShouldVanishAndPlacesWithoutAPattern) {
  Plan noise{{{3, 4}}};
  noise.f = [](std::span<const Var> x) { return softmax(x[0]); };
  noise.damage = [](const Tensors&, const Tensor& dy) {
    return Tensors{mul(uniform(Rng(9), {3, 4}, -1, 1, DType::f64), sum(dy)).value};
  };
  const Diagnosis sums = diagnosed(noise, 1);
  EXPECT_EQ(sums.likely(), nullptr) << said(sums);
  ASSERT_EQ(sums.wrong.at(0).notes.size(), 1u);
  EXPECT_NE(sums.wrong[0].notes[0].find("axis 1 the numeric gradient always sums to 0"), std::string::npos);
  const Diagnosis places = diagnosed(
      damaged({4, 5}, each([](double x, std::int64_t i) { return i == 3 || i == 11 || i == 15 ? x * double(i) : x; })),
      1);
  EXPECT_FALSE(places.wrong.at(0).notes.empty());
}

// ------------------------------------------------------------------ the checker and code that is wrong in other ways

std::string failure_of(const GradientProblem& problem) {
  const GradientReport report = check_gradients(problem, Rng(1));
  EXPECT_FALSE(report.passed());
  EXPECT_FALSE(report.worst <= kGradientTolerance);
  return report.where;
}
void expect_failure(const GradientProblem& problem, const std::string& part) {
  const std::string where = failure_of(problem);
  EXPECT_NE(where.find(part), std::string::npos) << where;
  for (const char* line : {"\n", "\x1b"}) EXPECT_EQ(where.find(line), std::string::npos) << where;
  (void)diagnose(check_gradients(problem, Rng(1)).gradients);
}

TEST(GradientChecker, ReportsCodeThatIsWrongInAnyWay) {
  const auto with = [](const Damage& damage) { return problem_of(damaged({3, 4}, damage), 1); };
  expect_failure(with([](const Tensor& t) {
                   return t.reshape({4, 3});
                 }),
                 "x0: the analytic gradient is f64 (4, 3), expected f64 (3, 4)");
  expect_failure(with([](const Tensor&) { return Tensor::full({2}, 1, DType::f64); }), "f64 (2), expected f64 (3, 4)");
  expect_failure(with([](const Tensor& t) { return t.to(DType::f32); }), "f32 (3, 4), expected f64 (3, 4)");
  expect_failure(with([](const Tensor& t) { return t.to(DType::i32); }), "i32 (3, 4)");
  expect_failure(with([](const Tensor&) { return Tensor(); }), "analytic 0");
  expect_failure(with([](const Tensor&) -> Tensor { throw std::runtime_error("index 7 of 5"); }), "index 7 of 5");
  expect_failure(with([](const Tensor&) -> Tensor { throw 7; }), "no std::exception");
  expect_failure(with([](const Tensor& t) { return times(std::nan(""))(t); }), "analytic nan");

  GradientProblem problem = problem_of({{{3, 4}, {2}}}, 1);
  problem.gradients = [](const Tensor& dy) { return Tensors{dy}; };
  expect_failure(problem, "gave 1 tensors for 2 inputs");
  problem = problem_of({{{3, 4}}}, 1);
  problem.value = [] { return Tensor(); };
  expect_failure(problem, "no value");
  problem.value = [] { return Tensor::zeros({2}, DType::f32); };
  expect_failure(problem, "the function's value is f32");
  problem.value = []() -> Tensor { throw std::out_of_range("beyond"); };
  expect_failure(problem, "beyond");
}

TEST(GradientChecker, PutsThePointsBackWhateverHappens) {
  GradientProblem problem = problem_of({{{3, 4}}}, 1);
  const Tensor before = problem.points[0].clone();
  const auto right = problem.gradients;
  problem.gradients = [=, x = problem.points[0]](const Tensor& dy) {
    x.fill(0);
    return right(dy);
  };
  expect_failure(problem, "wrote into its input x0");
  EXPECT_TRUE(equal_bits(before, problem.points[0]));
  problem.gradients = [=](const Tensor& dy) {
    Tensors flows = right(dy);
    dy.fill(0);
    return flows;
  };
  expect_failure(problem, "wrote into the incoming gradient");
  const auto value = problem.value;
  int calls = 0;
  problem.gradients = right;
  problem.value = [&calls, value] {
    if (++calls == 9) throw std::runtime_error("the ninth");
    return value();
  };
  EXPECT_NE(check_gradients(problem, Rng(1)).where.find("the ninth"), std::string::npos);
  EXPECT_TRUE(equal_bits(before, problem.points[0]));
}

TEST(Microscope, HasANameAndATitleForEveryCause) {
  std::set<std::string_view> names;
  for (int cause = 0; cause <= int(Cause::missing_term); ++cause) {
    EXPECT_FALSE(title_of(Cause(cause)).empty());
    EXPECT_TRUE(names.insert(name_of(Cause(cause))).second);
  }
}

}  // namespace
}  // namespace sinkhorn
