// The tape: what it refuses, how flows add up, and what it keeps.
#include "autograd/tape.h"

#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "tests/autograd/expect.h"

namespace sinkhorn {
namespace {

using testing::expect_error;
using testing::expect_values;
using testing::filled;

TEST(Tape, RefusesASecondWalk) {
  const Tape tape = Tape::record();
  const Var x = tape.leaf(filled({1}, {2})), y = square(x);
  tape.backward(y);
  expect_error([&] { tape.backward(y); }, {"backward", "already walked", "record a new tape"});
  expect_error([&] { exp(x); }, {"exp", "already walked", "new one"});
}

TEST(Tape, RefusesConstantsAndForeignRoots) {
  const Tape tape = Tape::record(), other = Tape::record();
  const Var x = tape.leaf(filled({1}, {2})), z = other.leaf(filled({1}, {3}));
  expect_error([&] { tape.backward(Var(filled({1}, {2}))); }, {"backward", "constant"});
  expect_error([&] { tape.backward(x.detach()); }, {"backward", "constant"});
  expect_error([&] { tape.backward(square(z)); }, {"backward"});
  expect_error([&] { Tape().backward(x); }, {"backward"});
  expect_error([&] { x* z; }, {"mul", "two different tapes"});
}

TEST(Tape, RefusesSeedsThatDoNotFit) {
  const Tape tape = Tape::record();
  const Var y = square(tape.leaf(filled({2}, {1, 2})));
  expect_error([&] { tape.backward(y); }, {"backward", "(2)", "seed"});
  expect_error([&] { tape.backward(y, filled({3}, {1, 1, 1})); }, {"seed", "(3)", "(2)"});
  expect_error([&] { tape.backward(y, Tensor::zeros({2})); }, {"seed", "f32", "f64"});
}

TEST(Tape, AddsFlowsThatMeet) {
  const Tape tape = Tape::record();
  const Var x = tape.leaf(filled({2}, {3, -1}));
  // x + x hands one tensor to two inputs; the sum must not be written into it.
  const Var y = (x + x) * x + x;
  expect_values(y, {21, 1});
  expect_values(tape.backward(y, filled({2}, {1, 1})).of(x), {13, -3});  // 4 x + 1
}

TEST(Tape, LeavesTheSeedAndTheValuesAlone) {
  const Tape tape = Tape::record();
  const Tensor seed = filled({2}, {1, 2}), at = filled({2}, {3, 4});
  const Var x = tape.leaf(at);
  tape.backward(reshape(x, {2}) + x, seed);
  expect_values(seed, {1, 2});
  expect_values(at, {3, 4});
}

TEST(Tape, GivesNothingToWhatTheRootDoesNotSee) {
  const Tape tape = Tape::record();
  const Var x = tape.leaf(filled({1}, {2})), y = tape.leaf(filled({1}, {5}));
  const Gradients gradients = tape.backward(square(x) + square(y).detach());
  expect_values(gradients.of(x), {4});
  EXPECT_FALSE(gradients.of(y));
}

TEST(Tape, HasOneLeafPerParameter) {
  const Parameter p{filled({1}, {3}), {}};
  const Tape tape = Tape::record();
  const Var y = tape.leaf(p) * tape.leaf(p);
  EXPECT_EQ(tape.nodes().size(), 2u);
  expect_values(tape.backward(y).of(p), {6});
}

TEST(Tape, AddsIntoTheGradientsOfParameters) {
  const Parameter p{filled({2}, {3, 4}), filled({2}, {100, 200})};
  const auto walk = [&] {
    const Tape tape = Tape::record(true);
    const Var x = tape.leaf(p);
    const Gradients gradients = tape.backward(sum(x * x + x));
    EXPECT_FALSE(gradients.of(p));
  };
  walk();
  expect_values(p.gradient, {107, 209});
  walk();  // a second micro-batch
  expect_values(p.gradient, {114, 218});
}

// Products add their flows to what has gathered; a watched tape keeps every flow apart, and its sums say what is right.
TEST(Tape, GathersFlowsWhereTheyMeet) {
  const auto drawn = [](std::uint64_t key, Shape shape) { return uniform(Rng(key), shape, -1, 1, DType::f64); };
  const Tensor x = drawn(1, {6, 3}), dy = drawn(2, {6, 4});
  Parameter weight{drawn(3, {4, 3})}, bias{drawn(4, {4})};
  const auto run = [&](bool watched) {
    weight.gradient = Tensor::full({4, 3}, 0.5, DType::f64);
    bias.gradient = Tensor::full({4}, 0.5, DType::f64);
    const Tape tape = Tape::record(true);
    int flows = 0;
    if (watched) tape.watch([&](const TapeEvent& event) { flows += event.kind == TapeEvent::Kind::flow; });
    const Var leaf = tape.leaf(x);
    const auto rows = [&](std::int64_t begin, std::int64_t end) {
      return linear(slice(leaf, 0, begin, end), tape.leaf(weight), tape.leaf(bias));
    };
    const Var y = add(concat({rows(0, 2), rows(2, 6)}, 0), linear(leaf, tape.leaf(weight)));
    const Gradients gradients = tape.backward(y, dy, leaf, Tensor::full({6, 3}, 2, DType::f64));
    EXPECT_EQ(flows > 0, watched);
    return Tensors{gradients.of(leaf), weight.gradient, bias.gradient};
  };
  const Tensors got = run(false), want = run(true);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_LE(relative_error(got[i], want[i]), 1e-14) << i;
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(x), y = square(leaf);
  EXPECT_THROW(tape.backward(y, x, leaf, dy), Error) << "another shape";
  EXPECT_THROW(tape.backward(y, x, Var(x), x), Error) << "a constant";
}

TEST(Tape, KeepsNothingForConstants) {
  const Var y = gelu(exp(Var(filled({1}, {1}))));
  EXPECT_EQ(y.node, -1);
  EXPECT_FALSE(y.tape);
}

TEST(Tape, ShowsWhatEachNodeKeeps) {
  const Tape tape = Tape::record();
  const Var x = tape.leaf(filled({2, 3}, {1, 2, 3, 4, 5, 6}));
  sum(exp(x), 1);
  const std::vector<NodeInfo> nodes = tape.nodes();
  ASSERT_EQ(nodes.size(), 4u);
  EXPECT_EQ(nodes[0].name, "leaf");
  EXPECT_EQ(nodes[1].name, "exp");
  EXPECT_EQ(nodes[1].kept_bytes, 48u);
  EXPECT_EQ(nodes[2].name, "sum");
  EXPECT_EQ(nodes[2].shape, (Shape{2, 1}));
  EXPECT_EQ(nodes[2].inputs, std::vector<int>{1});
  EXPECT_EQ(nodes[3].name, "reshape");
  EXPECT_EQ(tape.kept_bytes(), 48u);
}

TEST(Tape, ShowsTheTensorsThatAreKept) {
  const Tape tape = Tape::record();
  const Var x = tape.leaf(filled({2}, {1, 2})), y = exp(x);
  mul(y, x);
  const std::vector<NodeInfo> nodes = tape.nodes();
  ASSERT_EQ(nodes[1].kept.size(), 1u);
  EXPECT_EQ(nodes[1].kept[0].shape, (Shape{2}));
  EXPECT_EQ(nodes[1].kept[0].bytes, nodes[1].kept_bytes);
  EXPECT_EQ(nodes[1].kept[0].memory, y.value.raw());
  ASSERT_EQ(nodes[2].kept.size(), 2u);
  EXPECT_EQ(nodes[2].kept[0].memory, y.value.raw());  // shared, and counted for both
  EXPECT_EQ(nodes[2].kept[1].memory, x.value.raw());
  EXPECT_EQ(tape.kept_bytes(), 3 * nodes[1].kept_bytes);
}

TEST(Tape, TellsOfEveryMoment) {
  const Tape tape = Tape::record();
  std::vector<std::string> told;
  Tensors kept;
  tape.watch([&](const TapeEvent& event) {
    const char* kinds[] = {"leaf", "value", "incoming", "flow"};
    told.push_back(std::string(kinds[int(event.kind)]) + " " + std::string(event.op) + " " +
                   std::to_string(event.node) + (event.input < 0 ? "" : " to " + std::to_string(event.input)) +
                   (event.tensor ? "" : " nothing"));
    if (event.kind == TapeEvent::Kind::flow) kept.push_back(event.tensor);
  });
  const Var x = tape.leaf(filled({2}, {3, 5}));
  tape.leaf(filled({1}, {1}));
  const Gradients gradients = tape.backward(mul(x, x), filled({2}, {1, 1}));
  EXPECT_EQ(told,
            (std::vector<std::string>{"leaf leaf 0", "leaf leaf 1", "value mul 2", "incoming mul 2", "flow mul 2 to 0",
                                      "flow mul 2 to 1", "incoming leaf 1 nothing", "incoming leaf 0"}));
  EXPECT_EQ(gradients.of(x).to_vector(), (std::vector<double>{6, 10}));
  for (const Tensor& flow : kept) EXPECT_EQ(flow.to_vector(), (std::vector<double>{3, 5}));  // not written to
}

TEST(Tape, FreesWhatItKeptAsItWalks) {
  const Tape tape = Tape::record();
  const Var x = tape.leaf(filled({2}, {1, 2}));
  tape.backward(sum(exp(x)));
  EXPECT_EQ(tape.kept_bytes(), 0u);
}

}  // namespace
}  // namespace sinkhorn
