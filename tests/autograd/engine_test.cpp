// Tensors, the pool, random numbers and parallel_for.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdint>

#include "autograd/cpu/random_words.h"
#include "autograd/ops.h"
#include "autograd/parallel.h"
#include "autograd/pool.h"
#include "build_info.h"
#include "tests/autograd/expect.h"

namespace sinkhorn {
namespace {

using testing::expect_error;
using testing::expect_values;
using testing::filled;

TEST(Shape, RefusesWhatCannotBe) {
  expect_error([] { Shape{1, 1, 1, 1, 1, 1, 1}; }, {"rank 7", "6"});
  expect_error([] { (Shape{2, 3}[2]); }, {"axis 2", "(2, 3)"});
  expect_error([] { (Shape{2, 3}[-3]); }, {"axis -3", "(2, 3)"});
  expect_error([] { Tensor(Shape{2, -3}); }, {"negative", "(2, -3)"});
  expect_error<OutOfMemory>([] { Tensor(Shape{1ll << 40, 1ll << 40}); }, {"(1099511627776, 1099511627776)"});
  EXPECT_EQ((Shape{2, 3}[-1]), 3);
  EXPECT_EQ(Shape{}.count(), 1);
}

TEST(Tensor, RefusesWhatDoesNotFit) {
  const Tensor x = filled({2, 2}, {1, 2, 3, 4});
  expect_error([&] { x.data<float>(); }, {"f64", "f32"});
  expect_error([&] { x.item(); }, {"(2, 2)"});
  expect_error([&] { x.slice(1, 3); }, {"1 .. 3", "(2, 2)"});
  expect_error([&] { Tensor::from(std::vector<float>{1, 2}, {3}); }, {"2 values", "(3)"});
}

TEST(Tensor, SharesOnCopySliceAndReshape) {
  const Tensor x = filled({3, 2}, {1, 2, 3, 4, 5, 6});
  EXPECT_TRUE(x.is_sole_owner());
  const Tensor tail = x.slice(1, 3);
  EXPECT_FALSE(x.is_sole_owner());
  expect_values(tail, {3, 4, 5, 6});
  EXPECT_EQ(tail.raw(), x.raw() + 16);
  const Tensor copy = tail.clone();
  EXPECT_TRUE(copy.is_sole_owner());
  EXPECT_TRUE(equal_bits(copy, tail));
}

TEST(Tensor, JoinsWhatLiesBehindEachOther) {
  const Tensor x = filled({4, 2}, {1, 2, 3, 4, 5, 6, 7, 8});
  const auto joined = [](std::vector<Tensor> parts) { return Tensor::adjoining(parts); };
  const Tensor all = joined({x.slice(1, 2), x.slice(2, 2), x.slice(2, 4)});
  EXPECT_EQ(all.raw(), x.raw() + 16);
  expect_values(all, {3, 4, 5, 6, 7, 8});
  EXPECT_EQ(all.shape(), Shape({3, 2}));
  EXPECT_FALSE(joined({x.slice(0, 1), x.slice(2, 3)})) << "a gap";
  EXPECT_FALSE(joined({x.slice(2, 3), x.slice(1, 2)})) << "the other way round";
  EXPECT_FALSE(joined({x.slice(0, 1), x.slice(1, 2).clone()})) << "another buffer";
  EXPECT_FALSE(joined({x.slice(0, 2), x.slice(2, 4).reshape({4, 1})})) << "another width";
  EXPECT_FALSE(joined({x, Tensor()}));
  EXPECT_FALSE(joined({Tensor(), x}));
}

TEST(Bf16, RoundsToNearestEven) {
  const auto bits = [](float x) { return bf16(x).bits; };
  EXPECT_EQ(bits(1), 0x3f80);
  EXPECT_EQ(bits(1 + 1.0f / 256), 0x3f80);  // a tie, to even
  EXPECT_EQ(bits(1 + 3.0f / 256), 0x3f82);  // a tie, to even
  EXPECT_EQ(bits(std::nextafter(1 + 1.0f / 256, 2.0f)), 0x3f81);
  EXPECT_EQ(bits(3.4e38f), 0x7f80);  // beyond the largest: infinity
  EXPECT_TRUE(std::isnan(float(bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_EQ(bits(-0.0f), 0x8000);
}

TEST(Pool, ReusesBuffersAndCounts) {
  Pool& pool = Pool::of(Device::cpu);
  pool.reset_peak();
  const PoolStats before = pool.stats();
  const std::byte* first = nullptr;
  {
    const Tensor x(Shape{1000, 333});
    first = x.raw();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % 64, 0u);
    EXPECT_GE(pool.stats().in_use - before.in_use, x.bytes());
    EXPECT_LE(pool.stats().in_use - before.in_use, x.bytes() + x.bytes() / 8 + 64);
  }
  EXPECT_EQ(pool.stats().in_use, before.in_use);
  EXPECT_GE(pool.stats().peak, before.in_use + 1000 * 333 * 4);
  const std::size_t asked = pool.stats().system_allocations;
  EXPECT_EQ(Tensor(Shape{1000, 333}).raw(), first);
  EXPECT_EQ(pool.stats().system_allocations, asked);
  pool.release();
  EXPECT_LT(pool.stats().reserved, before.reserved + 1000 * 333 * 4);
}

// One step through every kind of op.
void train_step() {
  const Tape tape = Tape::record();
  const Var x = tape.leaf(uniform(Rng(1), {4, 30, 64}, -1, 1)), w = tape.leaf(uniform(Rng(2), {64, 64}, -1, 1));
  const Var gain = tape.leaf(Tensor::full({64}, 1)), bias = tape.leaf(Tensor::zeros({64}));
  Var y = layer_norm(linear(x, w, bias), gain, bias);
  y = dropout(gelu(y), 0.1, Rng(3)) * gain + cumulative_mean(x);
  y = rotate(concat({gated_gelu(y), slice(y, 2, 0, 32)}, 2), 1, 3);
  tape.backward(mean(square(softmax(permute(y, {0, 2, 1})))));
}

TEST(Pool, AsksTheSystemForNothingFromTheSecondStepOn) {
  train_step();
  const PoolStats first = Pool::of(Device::cpu).stats();
  for (int step = 0; step < 5; ++step) train_step();
  EXPECT_EQ(Pool::of(Device::cpu).stats().system_allocations, first.system_allocations);
  EXPECT_EQ(Pool::of(Device::cpu).stats().in_use, first.in_use);
}

TEST(Pool, SaysWhatWasAskedWhenMemoryEnds) {
  if (!build_info::sanitizers.empty()) GTEST_SKIP() << "a sanitizer ends the program where memory does";
  expect_error<OutOfMemory>([] { Tensor(Shape{1ll << 50}); }, {"out of memory", "in use", "lower batch_size"});
  EXPECT_EQ(Tensor::full({3}, 2).to_vector()[2], 2);  // and goes on
}

TEST(Philox, HasTheKnownAnswers) {
  // Random123's kat_vectors for philox4x32-10.
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0),
            (Word4{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
  const RandomBits bits{0x299f31d0a4093822ull, 0x13198a2e};
  EXPECT_EQ(bits.word(5), philox({1, 0, 0x13198a2e, 0}, 0xa4093822, 0x299f31d0)[1]);
  EXPECT_EQ(bits.word((7ull << 34) + 6), philox({1, 7, 0x13198a2e, 0}, 0xa4093822, 0x299f31d0)[2]);
}

TEST(Philox, UniformNeverReachesEitherEnd) {
  const RandomBits bits = Rng(11).bits();
  float least = 1, largest = 0;
  double sum = 0, squares = 0;
  constexpr std::uint64_t kDraws = 1 << 22;
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    const float u = bits.uniform(i);
    least = std::min(least, u);
    largest = std::max(largest, u);
    sum += u;
    squares += double(u) * u;
  }
  EXPECT_GT(least, 0);
  EXPECT_LT(largest, 1);
  EXPECT_LE(least, 1e-5f);  // and yet comes close
  EXPECT_GE(largest, 1 - 1e-5f);
  EXPECT_NEAR(sum / kDraws, 0.5, 7e-4);  // five standard deviations
  EXPECT_NEAR(squares / kDraws, 1.0 / 3, 8e-4);
  // The two ends that the formula can reach.
  EXPECT_GT(RandomBits::to_uniform(0), 0);
  EXPECT_LT(RandomBits::to_uniform(~0u), 1);
  for (std::uint64_t i = 0; i < 1000; ++i) EXPECT_EQ(double(bits.uniform<float>(i)), bits.uniform<double>(i));
}

TEST(Philox, ComesInBulkToo) {
  const RandomBits bits{12345678901234567ull, 42};
  for (const std::int64_t begin : {0, 4, 7, 1001})
    for (const std::int64_t end : {begin, begin + 1, begin + 255, begin + 600}) {
      std::int64_t next = begin;
      cpu::for_random_words(bits, begin, end, [&](std::int64_t i, std::int64_t n, const std::uint32_t* words) {
        EXPECT_EQ(i, next);
        for (std::int64_t j = 0; j < n; ++j) EXPECT_EQ(words[j], bits.word(std::uint64_t(i + j)));
        next += n;
      });
      EXPECT_EQ(next, end);
    }
}

TEST(Rng, SplitsIntoStreamsThatDifferAndFollowTheStep) {
  Tensor step = Tensor::zeros({1}, DType::i32);
  const Rng rng(7, step);
  const auto drawn = [](const Rng& stream) { return uniform(stream, {64}, 0, 1); };
  EXPECT_TRUE(equal_bits(drawn(rng.split(1)), drawn(rng.split(1))));
  EXPECT_FALSE(equal_bits(drawn(rng.split(1)), drawn(rng.split(2))));
  EXPECT_FALSE(equal_bits(drawn(rng.split(1)), drawn(Rng(8).split(1))));
  const Tensor before = drawn(rng.split(1));
  step.data<std::int32_t>()[0] = 1;
  EXPECT_FALSE(equal_bits(before, drawn(rng.split(1))));
}

TEST(Rng, NormalHasItsMoments) {
  double sum = 0, squares = 0;
  const std::vector<double> x = normal(Rng(9), {200000}, 3, 2, DType::f64).to_vector();
  for (const double value : x) sum += value, squares += (value - 3) * (value - 3);
  EXPECT_NEAR(sum / 200000, 3, 0.025);  // five standard deviations
  EXPECT_NEAR(squares / 200000, 4, 0.07);
}

TEST(ParallelFor, VisitsEachItemOnceInTheSameChunks) {
  const int before = threads();
  for (const int count : {1, 2, 4}) {
    set_threads(count);
    EXPECT_EQ(threads(), count);
    std::vector<std::atomic<int>> visits(1000);
    std::atomic<bool> cut_well = true;
    parallel_for(1000, 37, [&](std::int64_t begin, std::int64_t end) {
      if (begin % 37 != 0 || end != std::min<std::int64_t>(begin + 37, 1000)) cut_well = false;
      for (std::int64_t i = begin; i < end; ++i) ++visits[std::size_t(i)];
    });
    EXPECT_TRUE(cut_well);
    for (const auto& visit : visits) EXPECT_EQ(visit, 1);
    parallel_for(0, 1, [](std::int64_t, std::int64_t) { FAIL() << "nothing to do"; });
  }
  set_threads(before);
}

TEST(ParallelFor, RethrowsAndGoesOn) {
  const int before = threads();
  for (const int count : {1, 4}) {
    set_threads(count);
    for (int round = 0; round < 20; ++round) {
      expect_error<DataError>(
          [&] {
            parallel_for(100, 1, [](std::int64_t begin, std::int64_t) {
              if (begin == 42) fail<DataError>("item ", begin);
            });
          },
          {"item 42"});
      std::atomic<int> items = 0;
      parallel_for(100, 1, [&](std::int64_t, std::int64_t) { ++items; });
      EXPECT_EQ(items, 100);
    }
  }
  set_threads(before);
}

TEST(ParallelFor, RunsNestedCallsInPlace) {
  std::atomic<int> items = 0;
  parallel_for(10, 1, [&](std::int64_t, std::int64_t) {
    parallel_for(10, 3, [&](std::int64_t begin, std::int64_t end) { items += int(end - begin); });
  });
  EXPECT_EQ(items, 100);
}

}  // namespace
}  // namespace sinkhorn
