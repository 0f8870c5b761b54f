// Batches made ready on a second thread: in order, before they are asked for, with their errors, and on the device.
#include "tools/batches_ahead.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>

#include "autograd/error.h"
#include "cuda/device.h"

namespace sinkhorn {
namespace {

Batch numbered(std::int64_t step, std::int64_t micro_step) {
  const Tensor number = Tensor::full({1, 1}, double(100 * step + micro_step), DType::i32);
  return {number, number};
}

std::int64_t number_of(const Batch& batch) { return std::int64_t(batch.inputs.to_vector()[0]); }

/// Waits until it is true; false if that takes too long for any machine.
template <class Condition>
bool comes_true(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!condition() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  return condition();
}

TEST(BatchesAhead, ComeInTheOrderOfSteps) {
  BatchesAhead ahead(numbered, 5, 8, 3, Device::cpu);
  for (std::int64_t step = 5; step <= 8; ++step)
    for (std::int64_t micro = 0; micro < 3; ++micro) {
      EXPECT_EQ(number_of(ahead.get(step, micro)), 100 * step + micro);
      if (micro == 1) {
        EXPECT_EQ(number_of(ahead.get(step, 0)), 100 * step);  // a step that is looked into again
      }
    }
  EXPECT_EQ(number_of(ahead.get(9, 0)), 900);
}

// However fast the steps are: while one runs, those of the next two are assembled, by another thread.
TEST(BatchesAhead, AreReadyBeforeTheyAreAskedFor) {
  const std::thread::id here = std::this_thread::get_id();
  std::atomic<int> assembled_here = 0;
  BatchesAhead ahead(
      [&](std::int64_t step, std::int64_t micro) {
        assembled_here += std::this_thread::get_id() == here;
        return numbered(step, micro);
      },
      1, 50, 2, Device::cpu);
  for (std::int64_t step = 1; step <= 50; ++step) {
    const std::size_t left = std::size_t(2 * (50 - step + 1));
    ASSERT_TRUE(comes_true([&] { return ahead.ready() == std::min<std::size_t>(4, left); })) << step;
    for (std::int64_t micro = 0; micro < 2; ++micro) EXPECT_EQ(number_of(ahead.get(step, micro)), 100 * step + micro);
  }
  EXPECT_EQ(ahead.waits(), 0);
  EXPECT_EQ(assembled_here, 0);
}

TEST(BatchesAhead, CountHowOftenAStepWaited) {
  std::promise<void> gate;
  const std::shared_future<void> open = gate.get_future().share();
  BatchesAhead ahead(
      [open](std::int64_t step, std::int64_t micro) {
        if (step == 3) open.wait();
        return numbered(step, micro);
      },
      1, 4, 1, Device::cpu);
  ASSERT_TRUE(comes_true([&] { return ahead.ready() == 2; }));
  ahead.get(1, 0);
  ahead.get(2, 0);
  EXPECT_EQ(ahead.waits(), 0);
  std::thread opener([&] {
    comes_true([&] { return ahead.waits() == 1; });
    gate.set_value();
  });
  EXPECT_EQ(number_of(ahead.get(3, 0)), 300);
  opener.join();
  EXPECT_EQ(ahead.waits(), 1);
}

TEST(BatchesAhead, AnErrorComesWithItsBatchAndNoSooner) {
  BatchesAhead ahead(
      [](std::int64_t step, std::int64_t micro) {
        if (step == 3) fail<DataError>("data: gone");
        return numbered(step, micro);
      },
      1, 9, 1, Device::cpu);
  EXPECT_EQ(number_of(ahead.get(1, 0)), 100);
  EXPECT_EQ(number_of(ahead.get(2, 0)), 200);
  EXPECT_THROW(ahead.get(3, 0), DataError);
  EXPECT_THROW(ahead.get(3, 0), DataError);
}

TEST(BatchesAhead, EndBeforeTheirLastStep) {
  int assembled = 0;
  {
    BatchesAhead ahead([&](std::int64_t step, std::int64_t micro) { return ++assembled, numbered(step, micro); }, 1,
                       1'000'000'000, 1, Device::cpu);
    ahead.get(1, 0);
  }
  EXPECT_LE(assembled, 3);
}

TEST(BatchesAhead, AreSentOneStepAhead) {
  if (!cuda::is_usable()) GTEST_SKIP() << cuda::probe().reason;
  BatchesAhead ahead(numbered, 1, 3, 2, Device::cuda);
  ASSERT_TRUE(comes_true([&] { return ahead.ready() == 4; }));
  ahead.send();
  for (std::int64_t step = 1; step <= 2; ++step)
    for (std::int64_t micro = 0; micro < 2; ++micro) {
      const Batch batch = ahead.get(step, micro);
      EXPECT_EQ(batch.inputs.device(), step == 1 ? Device::cuda : Device::cpu);
      EXPECT_EQ(number_of(batch), 100 * step + micro);
    }
}

}  // namespace
}  // namespace sinkhorn
