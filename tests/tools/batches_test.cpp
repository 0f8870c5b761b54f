// Windows of text: functions of seed and step alone, spread over the whole text, and one token longer than a sequence.
#include "tools/batches.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "autograd/error.h"

namespace sinkhorn {
namespace {

std::vector<std::int32_t> counting(std::int32_t count) {
  std::vector<std::int32_t> text(static_cast<std::size_t>(count));
  std::iota(text.begin(), text.end(), 0);
  return text;
}

TEST(Batches, TargetsFollowInputs) {
  const Windows windows = training_windows(counting(100), 3, 8, 1, 5, 0);
  EXPECT_EQ(windows.rows, 3);
  EXPECT_EQ(windows.columns, 9);
  const auto inputs = windows.inputs(), targets = windows.targets();
  ASSERT_EQ(inputs.size(), 24u);
  ASSERT_EQ(targets.size(), 24u);
  for (std::size_t i = 0; i < inputs.size(); ++i) EXPECT_EQ(targets[i], inputs[i] + 1);
  EXPECT_EQ(inputs[0], windows.tokens[0]);
  EXPECT_EQ(inputs[8], windows.tokens[9]);
}

TEST(Batches, DependOnSeedStepAndMicroStepOnly) {
  const auto text = counting(10000);
  const auto tokens = [&](std::uint64_t seed, std::int64_t step, std::int64_t micro) {
    return training_windows(text, 4, 8, seed, step, micro).tokens;
  };
  EXPECT_EQ(tokens(1, 2, 3), tokens(1, 2, 3));
  EXPECT_NE(tokens(1, 2, 3), tokens(2, 2, 3));
  EXPECT_NE(tokens(1, 2, 3), tokens(1, 3, 3));
  EXPECT_NE(tokens(1, 2, 3), tokens(1, 2, 4));
}

TEST(Batches, ReachEveryPlace) {
  const auto text = counting(20);  // 12 windows of 9
  std::set<std::int32_t> begins;
  for (std::int64_t step = 0; step < 200; ++step) begins.insert(training_windows(text, 1, 8, 1, step, 0).tokens[0]);
  EXPECT_EQ(begins.size(), 12u);
  EXPECT_EQ(*begins.rbegin(), 11);
  EXPECT_EQ(training_windows(counting(9), 2, 8, 1, 0, 0).inputs()[8], 0);
  EXPECT_THROW(training_windows(counting(8), 1, 8, 1, 0, 0), Error);
}

TEST(Batches, ValidationIsFixedAndSpread) {
  const auto text = counting(109);  // 101 windows of 9
  std::vector<std::int32_t> begins;
  for (std::int64_t index = 0; index < 2; ++index) {
    const Windows windows = validation_windows(text, 3, 8, index, 2);
    for (std::size_t row = 0; row < 3; ++row) begins.push_back(windows.tokens[row * 9]);
  }
  EXPECT_EQ(begins, (std::vector<std::int32_t>{0, 20, 40, 60, 80, 100}));
  EXPECT_EQ(validation_windows(text, 1, 8, 0, 1).tokens[0], 0);
}

}  // namespace
}  // namespace sinkhorn
