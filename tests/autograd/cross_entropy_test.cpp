// The loss against its definition in f64, and what counts.
#include "autograd/ops/cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/gradcheck.h"
#include "autograd/ops/elementwise.h"
#include "autograd/pool.h"

namespace sinkhorn {
namespace {

// Mean over the rows of `rows` of log sum exp - x_target.
double by_definition(const Tensor& logits, const Tensor& targets, const std::vector<int>& rows) {
  const std::vector<double> x = logits.to_vector();
  const std::int64_t width = logits.shape()[-1];
  double total = 0;
  for (int r : rows) {
    double sum = 0;
    for (std::int64_t i = 0; i < width; ++i) sum += std::exp(x[std::size_t(r * width + i)]);
    total += std::log(sum) - x[std::size_t(r * width + targets.data<std::int32_t>()[r])];
  }
  return total / double(rows.size());
}

TEST(CrossEntropy, IsTheMeanOverWhatCounts) {
  const Tensor targets = Tensor::from<std::int32_t>({0, 1, 2, 1}, {2, 2});
  const Tensor counted = Tensor::full({2, 2}, 1, DType::boolean);
  counted.data<bool>()[2] = false;
  for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    const Tensor logits = uniform(Rng(1), {2, 2, 3}, -3, 3, DType::f64).to(dtype);
    const double tolerance = dtype == DType::f64 ? 1e-14 : 1e-6;
    const CrossEntropy all = cross_entropy(logits, targets), some = cross_entropy(logits, targets, counted),
                       few = cross_entropy(logits, targets, counted, 1);
    EXPECT_EQ(all.loss.value.dtype(), dtype == DType::f64 ? DType::f64 : DType::f32);
    EXPECT_NEAR(all.loss.value.item(), by_definition(logits, targets, {0, 1, 2, 3}), tolerance);
    EXPECT_NEAR(some.loss.value.item(), by_definition(logits, targets, {0, 1, 3}), tolerance);
    EXPECT_NEAR(few.loss.value.item(), by_definition(logits, targets, {0}), tolerance);
    EXPECT_EQ(all.count.item(), 4);
    EXPECT_EQ(some.count.item(), 3);
    EXPECT_EQ(few.count.item(), 1);
  }
}

TEST(CrossEntropy, OfUniformLogitsIsTheLogarithmOfTheClasses) {
  const Tensor logits = Tensor::full({5, 96}, 3.25);
  EXPECT_NEAR(cross_entropy(logits, Tensor::zeros({5}, DType::i32)).loss.value.item(), std::log(96), 1e-6);
}

TEST(CrossEntropy, SurvivesHugeLogits) {
  const Tensor logits = Tensor::from<float>({1e4f, -1e4f, 0, -3e38f, 3e38f, 0}, {2, 3});
  EXPECT_EQ(cross_entropy(logits, Tensor::from<std::int32_t>({0, 1}, {2})).loss.value.item(), 0);
  EXPECT_NEAR(cross_entropy(logits.slice(0, 1), Tensor::from<std::int32_t>({1}, {1})).loss.value.item(), 2e4, 1e-2);
}

TEST(CrossEntropy, IsZeroWithZeroGradientWhereNothingCounts) {
  const Tape tape = Tape::record();
  const Var logits = tape.leaf(uniform(Rng(1), {3, 4}, -1, 1));
  // Targets that do not count may be anything.
  const CrossEntropy none = cross_entropy(logits, Tensor::full({3}, -100, DType::i32), {}, -100);
  EXPECT_EQ(none.loss.value.item(), 0);
  EXPECT_EQ(none.count.item(), 0);
  EXPECT_EQ(tape.backward(none.loss).of(logits).to_vector(), std::vector<double>(12, 0.0));
}

TEST(CrossEntropy, NamesATargetThatIsNoClass) {
  const Tensor logits = Tensor::zeros({2, 4});
  for (std::int32_t target : {4, -1}) {
    const Tensor targets = Tensor::from<std::int32_t>({0, target}, {2});
    try {
      cross_entropy(logits, targets);
      FAIL() << target << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.what(), "cross_entropy: target " + std::to_string(target) + " is outside 4 classes");
    }
    const Tensor counted = Tensor::from<bool>(std::array<bool, 2>{true, false}, {2});
    EXPECT_EQ(cross_entropy(logits, targets, counted).count.item(), 1);
  }
  EXPECT_THROW(cross_entropy(logits, Tensor::zeros({3}, DType::i32)), Error);
  EXPECT_THROW(cross_entropy(logits, Tensor::zeros({2})), Error);
}

// Loss and gradients of x, W and b for a flow of 3 into the loss.
Tensors differentiated(const Tensors& inputs, const std::function<CrossEntropy(const std::vector<Var>&)>& loss_of) {
  const Tape tape = Tape::record();
  std::vector<Var> leaves;
  for (const Tensor& input : inputs) leaves.push_back(tape.leaf(input));
  const CrossEntropy result = loss_of(leaves);
  const Gradients gradients = tape.backward(result.loss, Tensor::full({}, 3, result.loss.value.dtype()));
  Tensors all{result.loss.value};
  for (const Var& leaf : leaves) all.push_back(gradients.of(leaf));
  return all;
}

TEST(LinearCrossEntropy, IsThatOfTheLogitsHoweverItIsSliced) {
  Draw draw(Rng(4));
  const Tensor targets = draw.integers({3, 300}, 70), counted = draw.mask({3, 300}, 0.8);
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    // Mixed precision: parameters stay f32 beside bf16.
    const DType parameters = dtype == DType::bf16 ? DType::f32 : dtype;
    const Tensors inputs{draw.uniform({3, 300, 24}).to(dtype), draw.uniform({70, 24}, -0.5, 0.5).to(parameters),
                         draw.uniform({70}).to(parameters)};
    const Tensors want = differentiated(inputs, [&](const std::vector<Var>& v) {
      return cross_entropy(linear(v[0], v[1], v[2]), targets, counted, 3);
    });
    for (const std::int64_t at_once : {1, 70 * 100, 70 * 256, 1 << 20}) {
      const Tensors got = differentiated(inputs, [&](const std::vector<Var>& v) {
        auto [loss, others] = apply_all(ops::LinearCrossEntropy{{}, 3, at_once}, {v[0], v[1], v[2], targets, counted});
        return CrossEntropy{loss, others[0]};
      });
      EXPECT_EQ(got[0].item(), want[0].item()) << dtype << ", " << at_once;
      // The gradient of a bf16 x is rounded twice: as made, and times the flow.
      const double limit = dtype == DType::f64 ? 1e-14 : dtype == DType::f32 ? 1e-6 : 1e-2;
      for (std::size_t i = 1; i < want.size(); ++i)
        EXPECT_LE(relative_error(got[i], want[i]), limit) << dtype << ", " << at_once << ", gradient " << i;
    }
  }
}

TEST(LinearCrossEntropy, HoldsASliceOfTheLogits) {
  const std::int64_t rows = 4096, width = 8, classes = 1024;
  const Tape tape = Tape::record();
  const Var x = tape.leaf(Tensor::zeros({rows, width})), weight = tape.leaf(Tensor::zeros({classes, width}));
  const Tensor targets = Tensor::zeros({rows}, DType::i32);
  const auto peak_of = [&](const std::function<Var()>& loss_of) {
    Pool& pool = Pool::of(Device::cpu);
    pool.reset_peak();
    const std::size_t before = pool.stats().peak;
    const Var loss = loss_of();
    return pool.stats().peak - before;
  };
  const std::size_t all = rows * classes * sizeof(float);
  EXPECT_GE(peak_of([&] { return cross_entropy(linear(x, weight), targets).loss; }), all);
  EXPECT_LE(
      peak_of([&] {
        return apply(ops::LinearCrossEntropy{.logits_at_once = 256 * classes}, {x, weight, Var(), targets, Tensor()});
      }),
      all / 8);
}

TEST(LinearCrossEntropy, RecordsNothingWithoutATape) {
  const Tensor x = uniform(Rng(1), {6, 4}, -1, 1), weight = uniform(Rng(2), {5, 4}, -1, 1);
  const Tensor targets = integers(Rng(3), {6}, 5);
  const CrossEntropy plain = cross_entropy(linear(x, weight), targets),
                     fused = linear_cross_entropy(x, weight, {}, {}, targets);
  EXPECT_EQ(fused.loss.value.item(), plain.loss.value.item());
  EXPECT_EQ(fused.count.item(), 6);
  EXPECT_LT(fused.loss.node, 0) << "nothing is recorded";
}

TEST(LinearCrossEntropy, SaysWhatDoesNotFit) {
  const Tensor x = Tensor::zeros({2, 4}), weight = Tensor::zeros({3, 4}), targets = Tensor::zeros({2}, DType::i32);
  const auto message = [&](const Tensor& x, const Tensor& weight, const Tensor& targets) -> std::string {
    try {
      linear_cross_entropy(x, weight, {}, {}, targets);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message(x, Tensor::zeros({3, 5}), targets),
            "linear_cross_entropy: x (2, 4) has 4 columns, weight (3, 5) takes 5");
  EXPECT_EQ(message(x, weight, Tensor::zeros({3}, DType::i32)),
            "linear_cross_entropy: needs x (..., D) and i32 targets (...), got (2, 4) and i32 (3)");
  EXPECT_EQ(message(x, weight, Tensor::full({2}, 3, DType::i32)), "cross_entropy: target 3 is outside 3 classes");
}

}  // namespace
}  // namespace sinkhorn
