// Graphs: what was recorded is done again to the bit, reads what changes from memory, and keeps its memory to itself.
#include "autograd/graph.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/ops.h"
#include "autograd/optimizer.h"
#include "cuda/runtime.h"
#include "tests/autograd/expect.h"
#include "tests/cuda/agreement.h"

namespace sinkhorn {
namespace {

using testing::expect_error;

// Forward and backward through products, sums, rows that share a key (which sorts) and noise, from `x` (6, 8) and
// `ids`.
Tensor gradient(const Tensor& x, const Tensor& ids, const Rng& noise) {
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(x);
  const Var rows = embedding(leaf, ids);
  const Var y = dropout(gelu(matmul(rows, leaf, false, true)), 0.3, noise);
  const Var sum = layer_norm(concat({y, y}, 1), Tensor::full({12}, 2, DType::f32, Device::cuda),
                             Tensor::zeros({12}, DType::f32, Device::cuda));
  return tape.backward(mean(square(sum + gumbel(noise.split(1), sum.shape(), DType::f32, Device::cuda)))).of(leaf);
}

struct Work {
  Tensor x = uniform(Rng(1), {6, 8}, -1, 1).to(Device::cuda);
  Tensor ids = integers(Rng(2), {9}, 6).to(Device::cuda);
  Tensor host_step = Tensor::zeros({}, DType::i32), step = host_step.to(Device::cuda);
  Rng noise{7, host_step, step};
  Tensor result = x.like();

  void operator()() const { result.assign(gradient(x, ids, noise)); }
  // Other inputs, and the next step's noise.
  void advance(std::uint64_t seed) {
    x.assign(uniform(Rng(seed), {6, 8}, -1, 1));
    ids.assign(integers(Rng(seed), {9}, 6));
    *host_step.data<std::int32_t>() = std::int32_t(seed);
    step.assign(host_step);
  }
};

TEST(DeviceGraph, ALaunchGivesTheBitsOfThePlainWorkAndReadsWhatChanges) {
  SINKHORN_NEEDS_DEVICE();
  Work work;
  work();
  const Tensor first = work.result.clone();
  work.result.fill(5);
  const Arena arena(Device::cuda);
  const Graph graph(arena, work);
  EXPECT_EQ(work.result.to_vector(), std::vector<double>(48, 5)) << "recording does nothing";
  EXPECT_GT(graph.size(), 10);
  graph.launch();
  EXPECT_TRUE(equal_bits(work.result, first));
  Tensor before = first;
  for (std::uint64_t seed = 3; seed < 6; ++seed) {
    work.advance(seed);
    work();
    const Tensor plain = work.result.clone();
    EXPECT_FALSE(equal_bits(plain, before));
    work.result.fill(5);
    graph.launch();
    EXPECT_TRUE(equal_bits(work.result, plain)) << seed;
    before = plain;
  }
  // The noise alone: the word on the device is what counts.
  work.step.fill(99);
  graph.launch();
  EXPECT_FALSE(equal_bits(work.result, before));
}

TEST(DeviceGraph, NeitherCopiesNorWaitsWhileRecording) {
  SINKHORN_NEEDS_DEVICE();
  const Arena arena(Device::cuda);
  const Tensor there = Tensor::full({4}, 2, DType::f32, Device::cuda), here = Tensor::zeros({4});
  const auto refused = [&](const std::function<void()>& work) {
    expect_error([&] { Graph(arena, work); }, {"a graph is being recorded", "do it before"});
  };
  refused([&] { there.to_vector(); });
  refused([&] { here.to(Device::cuda); });
  refused([] { cuda::wait(); });
  refused([&] { Graph(arena, [] {}); });
  // And all goes on.
  EXPECT_EQ(there.to_vector(), std::vector<double>(4, 2));
  const Graph graph(arena, [&] { there.fill(3); });
  graph.launch();
  EXPECT_EQ(there.to_vector(), std::vector<double>(4, 3));
}

// What is made once and kept for every pass, the weights of summaries, is not kept of a recording, which makes nothing.
TEST(DeviceGraph, NothingIsKeptOfARecording) {
  SINKHORN_NEEDS_DEVICE();
  const Tensor x = uniform(Rng(1), {1, 52, 1, 3}, -1, 1), there = x.to(Device::cuda);  // a length of no other test
  const auto summary = [](const Tensor& of) { return bucket_summary(of, Summary::sum_of_means, 4, 0).value; };
  const Tensor want = summary(x), result = want.to(Device::cuda).like();
  const Arena arena(Device::cuda);
  const Graph graph(arena, [&] { result.assign(summary(there)); });
  for (int time = 0; time < 2; ++time)  // made, and kept
    EXPECT_LE(testing::squared_error(summary(there), want), 1e-12);
  graph.launch();
  EXPECT_LE(testing::squared_error(result, want), 1e-12);
}

TEST(DeviceGraph, DoesAPartWhereItsWordIsSetByThen) {
  SINKHORN_NEEDS_DEVICE();
  const auto word_of = [](int value) { return Tensor::full({1}, value, DType::i32, Device::cuda); };
  const Tensor outer = word_of(1), inner = word_of(1), x = Tensor::zeros({5}, DType::f32, Device::cuda), y = x.like();
  const auto work = [&](bool outer_on, bool inner_on) {
    x.fill(1);
    when({outer_on, outer}, [&] {
      x.assign(add(x, x).value);
      when({inner_on, inner}, [&] { x.assign(mul(x, Tensor::full({5}, 5, DType::f32, Device::cuda)).value); });
      x.assign(add(x, x).value);
    });
    y.assign(add(x, x).value);
  };
  const Arena arena(Device::cuda);
  const Graph graph(arena, [&] { work(false, false); });
  for (const int a : {0, 1, -7, 0, 1})
    for (const int b : {1, 0}) {
      outer.fill(a);
      inner.fill(b);
      y.fill(99);
      graph.launch();
      const std::vector<double> want(5, a == 0 ? 2 : b == 0 ? 8 : 40);
      EXPECT_EQ(y.to_vector(), want) << a << " " << b;
      y.fill(99);
      work(a != 0, b != 0);
      EXPECT_EQ(y.to_vector(), want) << "plain, " << a << " " << b;
    }
  // An error in a part ends the recording, and all goes on.
  expect_error([&] { Graph(arena, [&] {
                       when({true, outer}, [&] { x.to_vector(); });
                     }); },
               {"a graph is being recorded"});
  const Graph without_word(arena, [&] { when({false}, [&] { y.fill(3); }); });
  without_word.launch();
  graph.launch();
  EXPECT_EQ(y.to_vector(), std::vector<double>(5, 8)) << "the last words stand";
}

// Its flow has begun when the chain goes back; and a gradient of its own is not meant where no tape gathers there.
TEST(DeviceGraph, AParameterOfAChainMayBeUsedBehindIt) {
  SINKHORN_NEEDS_DEVICE();
  const Tensor x = uniform(Rng(1), {4, 3}, -1, 1).to(Device::cuda);
  for (const bool has_gradient : {false, true})
    for (const bool may_be_left_out : {false, true}) {
      Parameter p{uniform(Rng(2), {3}, -1, 1).to(Device::cuda)};
      if (has_gradient) p.gradient = Tensor::zeros({3}, DType::f32, Device::cuda);
      Switch runs;
      if (may_be_left_out) runs.word = Tensor::full({1}, 1, DType::i32, Device::cuda);
      const Branch times_p{[&](const Tape& tape, const Var& in, const Var&, Choices&, const Residual& residual) {
                             return add_to(residual, mul(in, tape ? tape.leaf(p) : Var(p.value)));
                           },
                           {&p}};
      const Tape tape = Tape::record();
      const Var chain = reversible_chain(tape, tape.leaf(x), {}, {{{times_p}, {times_p}, runs}});
      const Tensor got = tape.backward(sum(mul(chain, tape.leaf(p)))).of(p);
      // y1 = x + x p, y2 = x + y1 p, and the loss is the sum of (y1 + y2) p
      const Tape plain = Tape::record();
      const Var q = plain.leaf(p.value), y1 = add(x, mul(x, q)), y2 = add(x, mul(y1, q));
      const Tensor want = plain.backward(sum(mul(add(y1, y2), q))).of(q);
      ASSERT_TRUE(got) << has_gradient << may_be_left_out;
      EXPECT_LE(testing::squared_error(got, want), 1e-12) << has_gradient << may_be_left_out;
    }
}

TEST(DeviceGraph, SwitchesAreDrawnAlikeOnBothSides) {
  SINKHORN_NEEDS_DEVICE();
  const Tensor host_step = Tensor::zeros({}, DType::i32), step = host_step.to(Device::cuda);
  const Rng stream(7, host_step, step);
  std::vector<Switch> recorded;
  const Arena arena(Device::cuda);
  const Graph graph(arena, [&] { recorded = draw_switches(stream, 6, 0.75); });
  int on = 0, alone = 0;
  for (std::int32_t now = 1; now <= 60; ++now) {
    *host_step.data<std::int32_t>() = now;
    step.assign(host_step);
    graph.launch();
    const std::vector<Switch> drawn = draw_switches(stream, 6, 0.75);
    int of_step = 0;
    for (std::size_t i = 0; i < 6; ++i) {
      EXPECT_EQ(drawn[i].word.to_vector(), std::vector<double>{double(drawn[i].on)}) << now << " " << i;
      EXPECT_EQ(recorded[i].word.to_vector(), std::vector<double>{double(drawn[i].on)}) << now << " " << i;
      of_step += drawn[i].on;
    }
    EXPECT_GE(of_step, 1);
    alone += of_step == 1 && drawn[0].on;
    on += of_step;
  }
  EXPECT_NEAR(on, 60 * (6 * 0.25 + std::pow(0.75, 6)), 25);
  EXPECT_GE(alone, 5) << "the first stays where all others go";
  EXPECT_FALSE(draw_switches(Rng(7), 6, 0.75)[0].word) << "nothing on the device to read";
}

TEST(DeviceGraph, NobodyElseGetsItsMemoryWhileItLives) {
  SINKHORN_NEEDS_DEVICE();
  Pool& pool = Pool::of(Device::cuda);
  Work work;
  work();
  const Tensor want = work.result.clone();
  work();  // beside the copy, which took a block
  const std::size_t in_use = pool.stats().in_use, asked = pool.stats().system_allocations;
  {
    const Arena arena(Device::cuda);
    const Graph graph(arena, work), again(arena, work);
    EXPECT_EQ(pool.stats().system_allocations, asked) << "blocks of the plain run serve both";
    EXPECT_EQ(pool.stats().in_use, in_use);
    Tensors others(200);
    for (int i = 0; i < 200; ++i) others[std::size_t(i)] = Tensor::full({1 + 4 * i}, i, DType::f32, Device::cuda);
    pool.reset_peak();
    const std::size_t before = pool.stats().peak;
    graph.launch();
    EXPECT_TRUE(equal_bits(work.result, want));
    EXPECT_GT(pool.stats().peak, before) << "what the work holds counts in every launch";
    again.launch();
    EXPECT_TRUE(equal_bits(work.result, want));
    for (int i = 0; i < 200; ++i)
      EXPECT_EQ(others[std::size_t(i)].to_vector(), std::vector<double>(std::size_t(1 + 4 * i), i));
  }
  pool.release();
  EXPECT_EQ(pool.stats().reserved, pool.stats().in_use) << "the arena's blocks came back";
}

TEST(DeviceGraph, ATensorThatIsHandedOutKeepsItsPlace) {
  SINKHORN_NEEDS_DEVICE();
  const Arena arena(Device::cuda);
  const Tensor x = Tensor::full({5}, 2, DType::f32, Device::cuda);
  Tensor square_of, cube_of;
  const Graph one(arena, [&] { square_of = mul(x, x).value; });
  const Graph other(arena, [&] { cube_of = mul(mul(x, x), x).value; });
  one.launch();
  other.launch();
  EXPECT_EQ(square_of.to_vector(), std::vector<double>(5, 4));
  EXPECT_EQ(cube_of.to_vector(), std::vector<double>(5, 8));
}

}  // namespace
}  // namespace sinkhorn
