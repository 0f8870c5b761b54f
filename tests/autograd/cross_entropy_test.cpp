// The loss against its definition in f64, and what counts.
#include "autograd/ops/cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>

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

}  // namespace
}  // namespace sinkhorn
