// Movement against index arithmetic written out, for every dtype, and what refuses.
#include "autograd/ops/movement.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "autograd/ops.h"
#include "tests/autograd/expect.h"

namespace sinkhorn {
namespace {

using testing::expect_error;
using testing::expect_values;
using testing::filled;

const std::vector<DType> kAllTypes{DType::f32, DType::f64, DType::bf16, DType::i32, DType::boolean};

Tensor counted(Shape shape, DType dtype = DType::f64) {
  std::vector<double> values(std::size_t(shape.count()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = double(i % 100);
  return Tensor::from(values, shape).to(dtype);
}

TEST(Reshape, SharesItsMemory) {
  const Tensor x = counted({2, 6});
  const Var y = reshape(x, {3, -1});
  EXPECT_EQ(y.shape(), (Shape{3, 4}));
  EXPECT_EQ(y.value.raw(), x.raw());
  expect_error([&] { reshape(x, {5, -1}); }, {"reshape", "(2, 6)", "(5, -1)"});
}

TEST(Permute, EqualsIndexArithmetic) {
  for (const DType dtype : kAllTypes) {
    const Tensor x = counted({3, 4, 5, 2}, dtype);
    const std::vector<double> from = x.to_vector();
    std::vector<int> axes{0, 1, 2, 3};
    do {
      const Var y = permute(x, axes);
      const std::vector<double> to = y.value.to_vector();
      std::size_t i = 0;
      std::int64_t at[4];
      for (at[0] = 0; at[0] < y.shape()[0]; ++at[0])
        for (at[1] = 0; at[1] < y.shape()[1]; ++at[1])
          for (at[2] = 0; at[2] < y.shape()[2]; ++at[2])
            for (at[3] = 0; at[3] < y.shape()[3]; ++at[3]) {
              std::int64_t source[4];
              for (int k = 0; k < 4; ++k) source[axes[k]] = at[k];
              const std::int64_t index = ((source[0] * 4 + source[1]) * 5 + source[2]) * 2 + source[3];
              ASSERT_EQ(to[i++], from[std::size_t(index)]) << dtype << " " << y.shape();
            }
    } while (std::next_permutation(axes.begin(), axes.end()));
  }
  // More elements than one thread's share, and axes counted from the end.
  const Tensor large = counted({300, 7, 64});
  EXPECT_TRUE(equal_bits(permute(permute(large, {-1, 0, 1}), {1, 2, 0}).value, large));
}

TEST(Permute, RefusesWhatIsNoPermutation) {
  const Tensor x = counted({2, 3});
  for (const std::vector<int>& axes : {std::vector<int>{0, 0}, {0}, {0, 1, 1}, {1, -1}})
    expect_error([&] { permute(x, axes); }, {"permute", "(2, 3)"});
  expect_error([&] { permute(x, {0, 2}); }, {"axis 2", "(2, 3)"});
}

TEST(BroadcastTo, RepeatsAnyDtype) {
  for (const DType dtype : kAllTypes) {
    const Tensor x = filled({2, 1}, {1, 0}).to(dtype);
    expect_values(broadcast_to(x, {2, 2, 3}).value, {1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0});
  }
  expect_error([] { broadcast_to(Tensor::zeros({2, 3}), {3, 3}); }, {"broadcast_to", "(2, 3)", "(3, 3)"});
  expect_error([] { broadcast_to(Tensor::zeros({2, 3}), {1, 3}); }, {"broadcast_to", "(2, 3)", "(1, 3)"});
}

TEST(SliceConcatPad, TakeApartAndPutTogether) {
  for (const DType dtype : kAllTypes)
    for (int axis = -3; axis < 3; ++axis) {
      const Tensor x = counted({4, 5, 6}, dtype);
      const Var front = slice(x, axis, 0, 1), middle = slice(x, axis, 1, 3), back = slice(x, axis, 3, x.shape()[axis]);
      EXPECT_TRUE(equal_bits(concat({front, middle, back}, axis).value, x));
      const Var zeros = Tensor::zeros(x.shape().with(axis, 2), dtype);
      EXPECT_TRUE(equal_bits(pad(x, axis, 2, 0).value, concat({zeros, x}, axis).value));
      EXPECT_TRUE(equal_bits(slice(pad(x, axis, 3, 1), axis, 3, 3 + x.shape()[axis]).value, x));
    }
  expect_values(slice(counted({2, 3}), 1, 1, 2), {1, 4});
  expect_values(concat({filled({2, 1}, {1, 2}), filled({2, 2}, {3, 4, 5, 6})}, 1), {1, 3, 4, 2, 5, 6});
  expect_values(pad(filled({2}, {1, 2}), 0, 1, 2), {0, 1, 2, 0, 0});
}

TEST(SliceConcatPad, CopyBlocksLongerThanOnePiece) {
  const Tensor x = counted({2, 100000});
  expect_values(slice(x, 1, 1, 99999).value, [&] {
    std::vector<double> want;
    for (std::int64_t i = 0; i < x.count(); ++i)
      if (i % 100000 >= 1 && i % 100000 < 99999) want.push_back(x.data<double>()[i]);
    return want;
  }());
}

TEST(SliceConcatPad, RefuseWhatDoesNotFit) {
  const Tensor x = counted({2, 3});
  expect_error([&] { slice(x, 1, 2, 4); }, {"slice", "2 .. 4", "axis 1", "(2, 3)"});
  expect_error([&] { slice(x, 1, 2, 1); }, {"slice", "2 .. 1"});
  expect_error([&] { slice(x, 2, 0, 1); }, {"axis 2", "(2, 3)"});
  expect_error([&] { pad(x, 0, -1, 0); }, {"pad", "-1"});
  expect_error([&] { concat({x, counted({2, 4})}, 0); }, {"concat", "(2, 3)", "(2, 4)", "axis 0"});
  expect_error([&] { concat({x, counted({3})}, 0); }, {"concat", "(2, 3)", "(3)"});
  expect_error([&] { concat({x, counted({2, 3}, DType::i32)}, 0); }, {"concat", "f64", "i32"});
  expect_error([&] { concat({}, 0); }, {"concat", "nothing"});
}

TEST(Rotate, TurnsToTheLeft) {
  const Tensor x = counted({5});
  expect_values(rotate(x, 0, 2), {2, 3, 4, 0, 1});
  expect_values(rotate(x, 0, -1), {4, 0, 1, 2, 3});
  expect_values(rotate(x, 0, 12), {2, 3, 4, 0, 1});
  EXPECT_EQ(rotate(x, 0, 5).value.raw(), x.raw());
  EXPECT_EQ(rotate(counted({0, 2}), 0, 1).shape(), (Shape{0, 2}));
  for (const DType dtype : kAllTypes) {
    const Tensor y = counted({3, 7, 4}, dtype);
    for (const std::int64_t shift : {1, 6, 100, -3})
      EXPECT_TRUE(equal_bits(rotate(rotate(y, 1, shift), -2, -shift).value, y)) << dtype << " by " << shift;
  }
}

TEST(EveryNth, TakesPiecesInTheirOrder) {
  expect_values(every_nth(counted({6}), 0, 1, 1, 3), {1, 4});
  expect_values(every_nth(counted({8}), 0, 2, 1, 2), {2, 3, 6, 7});
  for (const DType dtype : kAllTypes) {
    const Tensor x = counted({12, 12, 3}, dtype);
    for (const int axis : {0, 1})
      for (const std::int64_t width : {1, 2})
        for (const std::int64_t first : {0, 2}) {
          std::vector<Var> pieces;
          for (std::int64_t at = first * width; at < 12; at += 3 * width)
            pieces.push_back(slice(x, axis, at, at + width));
          EXPECT_TRUE(equal_bits(every_nth(x, axis, width, first, 3).value, concat(pieces, axis).value))
              << dtype << " " << axis << " " << width << " " << first;
        }
  }
  expect_error([] { every_nth(counted({6, 2}), 0, 1, 2, 2); }, {"every_nth", "piece 2 of every 2", "axis 0", "(6, 2)"});
  expect_error([] { every_nth(counted({6, 2}), 0, 2, 0, 2); }, {"2 wide", "(6, 2)"});
  expect_error([] { every_nth(counted({6, 2}), 0, 0, 0, 2); }, {"0 wide", "(6, 2)"});
}

// What the parts of a parameter learn is added where its gradient gathers.
TEST(EveryNth, AddsToAParametersGradientInPlace) {
  Parameter p{counted({4, 2}), Tensor::full({4, 2}, 10, DType::f64)};
  const Tape tape = Tape::record(true);
  const Var odd = every_nth(tape.leaf(p), 0, 1, 1, 2), even = every_nth(tape.leaf(p), 0, 1, 0, 2);
  tape.backward(sum(add(mul(odd, odd), even)));
  expect_values(p.gradient, {11, 11, 14, 16, 11, 11, 22, 24});
}

TEST(Movement, LeavesMasksOffTheTape) {
  const Var y = rotate(Tensor::zeros({4}, DType::boolean), 0, 1);
  EXPECT_EQ(y.node, -1);
  EXPECT_EQ(y.value.dtype(), DType::boolean);
}

}  // namespace
}  // namespace sinkhorn
