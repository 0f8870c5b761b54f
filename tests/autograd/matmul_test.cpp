// Matrix products against plain sums in f64, for every transposition, dtype and cut.
#include "autograd/ops/matmul.h"

#include <gtest/gtest.h>

#include "autograd/cpu/gemm.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/linear_gelu.h"
#include "autograd/ops/movement.h"

namespace sinkhorn {
namespace {

Tensor random(Shape shape, std::uint64_t key, DType dtype = DType::f64) {
  return uniform(Rng(key), shape, -1, 1, DType::f64).to(dtype);
}

// op(a) op(b) for one pair of matrices, by definition.
Tensor by_definition(const Tensor& a, const Tensor& b, bool ta, bool tb) {
  const std::int64_t m = a.shape()[ta ? 1 : 0], k = a.shape()[ta ? 0 : 1], n = b.shape()[tb ? 0 : 1];
  const std::vector<double> x = a.to_vector(), y = b.to_vector();
  Tensor c = Tensor::zeros({m, n}, DType::f64);
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t p = 0; p < k; ++p)
        c.data<double>()[i * n + j] +=
            x[std::size_t(ta ? p * m + i : i * k + p)] * y[std::size_t(tb ? j * k + p : p * n + j)];
  return c;
}

double tolerance(DType dtype) { return dtype == DType::f64 ? 1e-13 : dtype == DType::f32 ? 1e-5 : 1e-2; }

std::string message(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Matmul, EqualsTheDefinitionForEveryTranspositionAndType) {
  // Shapes on both sides of every block limit: 64 and 256 rows, 128 columns, a depth of 128.
  const std::int64_t extents[][3] = {{1, 1, 1}, {3, 5, 2}, {70, 130, 300}, {600, 33, 129}, {65, 700, 5}, {1, 600, 256}};
  for (auto [m, n, k] : extents) {
    for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
      for (int flags = 0; flags < 4; ++flags) {
        const bool ta = flags & 1, tb = flags & 2;
        const Tensor a = random(ta ? Shape{k, m} : Shape{m, k}, 1, dtype);
        const Tensor b = random(tb ? Shape{n, k} : Shape{k, n}, 2, dtype);
        const Tensor c = matmul(a, b, ta, tb).value;
        EXPECT_EQ(c.dtype(), dtype);
        EXPECT_LE(relative_error(c, by_definition(a, b, ta, tb)), tolerance(dtype))
            << m << " x " << n << " x " << k << " " << dtype << " transposed " << ta << tb;
      }
    }
  }
}

TEST(Matmul, TreatsEveryMatrixOfABatchAlike) {
  const Tensor a = random({2, 3, 4, 5}, 1), b = random({2, 3, 5, 6}, 2), shared = random({5, 6}, 3);
  const Tensor c = matmul(a, b).value.reshape({6, 4, 6}), d = matmul(a, shared).value.reshape({6, 4, 6});
  EXPECT_EQ(matmul(a, b).shape(), Shape({2, 3, 4, 6}));
  for (int i = 0; i < 6; ++i) {
    const Tensor lhs = a.reshape({6, 4, 5}).slice(i, i + 1).reshape({4, 5});
    const Tensor rhs = b.reshape({6, 5, 6}).slice(i, i + 1).reshape({5, 6});
    EXPECT_LE(relative_error(c.slice(i, i + 1).reshape({4, 6}), by_definition(lhs, rhs, false, false)), 1e-13);
    EXPECT_LE(relative_error(d.slice(i, i + 1).reshape({4, 6}), by_definition(lhs, shared, false, false)), 1e-13);
  }
}

TEST(Matmul, OfNothingIsZero) {
  EXPECT_EQ(matmul(random({2, 0}, 1), random({0, 3}, 2)).value.to_vector(), std::vector<double>(6, 0.0));
  EXPECT_EQ(matmul(random({0, 2}, 1), random({2, 3}, 2)).shape(), Shape({0, 3}));
  EXPECT_EQ(matmul(random({0, 4, 2}, 1), random({2, 3}, 2)).shape(), Shape({0, 4, 3}));
  const Tape tape = Tape::record();
  const Var weight = tape.leaf(random({2, 3}, 2));
  const Var y = matmul(random({0, 2, 4}, 1), weight, true);
  EXPECT_EQ(tape.backward(y, y.value).of(weight).to_vector(), std::vector<double>(6, 0.0));
}

TEST(Matmul, ComputesOnlyTheGradientsThatAreWanted) {
  const Tape tape = Tape::record();
  const Var a = tape.leaf(random({4, 3, 5}, 1));
  const Var y = matmul(a, random({4, 5, 2}, 2));
  EXPECT_EQ(tape.nodes().back().kept_bytes, 4u * 5 * 2 * 8) << "the lhs is needed for the gradient of the rhs alone";
  const Tensors flows = ops::Matmul{}.backward({{Tensor(), random({4, 5, 2}, 2)}, {true, false}}, y.value);
  EXPECT_TRUE(flows[0]);
  EXPECT_FALSE(flows[1]);
}

TEST(Matmul, ErrorsNameBothShapes) {
  auto tensor = [](Shape shape) { return Tensor::zeros(shape); };
  EXPECT_EQ(message([&] {
              matmul(tensor({4, 32, 64}), tensor({4, 63, 16}));
            }),
            "matmul: inner extents differ: lhs (4, 32, 64) has 64 columns, rhs (4, 63, 16) has 63 rows");
  EXPECT_EQ(message([&] {
              matmul(tensor({2, 3}), tensor({4, 3}), true, true);
            }),
            "matmul: inner extents differ: lhs (2, 3) has 2 rows (transposed), rhs (4, 3) has 3 columns (transposed)");
  EXPECT_EQ(message([&] {
              matmul(tensor({4, 2, 3}), tensor({5, 3, 2}));
            }),
            "matmul: leading axes differ: lhs (4, 2, 3), rhs (5, 3, 2); make them equal or give one matrix as rhs");
  EXPECT_EQ(message([&] {
              matmul(tensor({3}), tensor({3, 2}));
            }),
            "matmul: needs two axes or more, got lhs (3) and rhs (3, 2)");
  EXPECT_EQ(message([&] { matmul(tensor({2, 3}), random({3, 2}, 1)); }), "matmul: dtypes differ: lhs f32, rhs f64");
}

TEST(Linear, AddsTheBiasToEveryRow) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    const Tensor x = random({3, 50, 20}, 1, dtype), weight = random({300, 20}, 2, dtype),
                 bias = random({300}, 3, dtype);
    Tensor want = by_definition(x.reshape({150, 20}), weight, false, true);
    EXPECT_LE(relative_error(linear(x, weight).value.reshape({150, 300}), want), tolerance(dtype));
    for (std::int64_t i = 0; i < want.count(); ++i) want.data<double>()[i] += bias.to_vector()[std::size_t(i % 300)];
    EXPECT_LE(relative_error(linear(x, weight, bias).value.reshape({150, 300}), want), tolerance(dtype));
  }
}

TEST(Linear, ErrorsNameWhatDoesNotFit) {
  const Tensor x = Tensor::zeros({2, 3}), weight = Tensor::zeros({4, 3});
  EXPECT_EQ(message([&] {
              linear(Tensor::zeros({2, 5}), weight);
            }),
            "linear: x (2, 5) has 5 columns, weight (4, 3) takes 3");
  EXPECT_EQ(message([&] { linear(x, weight, Tensor::zeros({3})); }),
            "linear: bias (3) does not fit weight (4, 3); expected (4)");
  EXPECT_EQ(message([&] { linear(x, random({4, 3}, 1)); }), "linear: dtypes differ: x f32, weight f64, bias f32");
}

// One step back, and the gradient of a step forward.
TEST(Linear, UndoesInPlaceAndDifferentiatesWhatItUndid) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Tensor x = random({5, 3}, 1, dtype), weight = random({4, 3}, 2, dtype), bias = random({4}, 3, dtype),
                 before = random({5, 4}, 4, dtype), dy = random({5, 4}, 5, dtype);
    const Tape forward = Tape::record(), back = Tape::record();
    const Var x1 = forward.leaf(x), w1 = forward.leaf(weight), b1 = forward.leaf(bias);
    const Var y = linear(x1, w1, b1, {}, {before});
    const Tensor rebuilt = y.value.clone();
    const Var x2 = back.leaf(x), w2 = back.leaf(weight), b2 = back.leaf(bias);
    const Var undone = linear(x2, w2, b2, {}, {.onto = rebuilt, .undo = true, .in_place = true});
    EXPECT_EQ(undone.value.raw(), rebuilt.raw());
    EXPECT_LE(relative_error(rebuilt, before), dtype == DType::f32 ? 1e-6 : 1e-14);
    const Gradients want = forward.backward(y, dy), got = back.backward(undone, dy);
    EXPECT_TRUE(equal_bits(got.of(x2), want.of(x1)));
    EXPECT_TRUE(equal_bits(got.of(w2), want.of(w1)));
    EXPECT_TRUE(equal_bits(got.of(b2), want.of(b1)));
    // What something else stands before is added apart, with the same meaning.
    const Tape apart = Tape::record();
    const Var x3 = apart.leaf(x);
    const Var again = add_to({.onto = y.value, .undo = true}, linear(x3, weight, bias));
    EXPECT_LE(relative_error(again.value, before), dtype == DType::f32 ? 1e-6 : 1e-14);
    EXPECT_TRUE(equal_bits(apart.backward(again, dy).of(x3), want.of(x1)));
  }
}

// So many rows that they are cut into pieces, the last of them a short one; with a second flow into the same gradient.
TEST(Linear, WeightGradientsOfManyRows) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    const Tensor x = random({2500, 6}, 1, dtype), dy = random({2500, 5}, 2, dtype), weight = random({5, 6}, 3, dtype);
    Tensor want = by_definition(dy, x, true, false);
    for (std::int64_t i = 0; i < want.count(); ++i) want.data<double>()[i] *= 2;
    const int before = threads();
    Tensors got;
    for (const int count : {1, 3}) {
      set_threads(count);
      const Tape tape = Tape::record();
      const Var w = tape.leaf(weight);
      got.push_back(tape.backward(linear(x, w) + linear(x, w), dy).of(w));
    }
    set_threads(before);
    EXPECT_LE(relative_error(got[0], want), tolerance(dtype));
    EXPECT_TRUE(equal_bits(got[0], got[1]));
  }
}

// To the bit, with and without copies of the parameters in bf16.
TEST(LinearGelu, EqualsTheComposedForm) {
  for (const auto& [dtype, parameters] : {std::pair(DType::f32, DType::f32),
                                          {DType::f64, DType::f64},
                                          {DType::bf16, DType::bf16},
                                          {DType::bf16, DType::f32}}) {
    const Tensor x = random({3, 50, 20}, 1, dtype), weight = random({30, 20}, 2, parameters),
                 bias = random({30}, 3, parameters), dy = random({3, 50, 30}, 4, dtype);
    const auto results = [&](auto f) {
      const Tape tape = Tape::record();
      const Var leaf = tape.leaf(x), w = tape.leaf(weight), b = tape.leaf(bias);
      const Var y = f(leaf, w, b);
      const Gradients flows = tape.backward(y, dy);
      return Tensors{y.value, flows.of(leaf), flows.of(w), flows.of(b), f(x, weight, bias).value};
    };
    const Tensors fused = results([](auto... in) { return linear_gelu(in...); });
    const Tensors composed = results([](auto... in) { return gelu(linear(in...)); });
    for (std::size_t i = 0; i < fused.size(); ++i)
      EXPECT_TRUE(equal_bits(fused[i], composed[i])) << dtype << ", parameters in " << parameters << ", result " << i;
  }
  EXPECT_EQ(message([&] {
              linear_gelu(random({2, 5}, 1), random({4, 3}, 2));
            }),
            "linear: x (2, 5) has 5 columns, weight (4, 3) takes 3");
}

// Whoever else holds the gradient of the result finds it as it was.
TEST(LinearGelu, WritesOverNoGradientThatSomebodyHolds) {
  const Tensor dy = random({5, 4}, 1), before = dy.clone();
  const Tape tape = Tape::record();
  const Var x = tape.leaf(random({5, 3}, 2));
  tape.backward(linear_gelu(x, random({4, 3}, 3)), dy);
  EXPECT_TRUE(equal_bits(dy, before));
}

// Weights behind each other, as those of a flat buffer are, in values and in gradients: nothing is copied, and all bits
// are those of weights that lie anywhere.
TEST(Linear, OfSeveralWeightsIsOneProductWhereTheyLie) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    const DType of_parameters = wide(dtype);
    const Tensor x = random({300, 6}, 1, dtype), dy = random({300, 9}, 2, dtype);
    const Tensor values = random({9, 6}, 3, of_parameters), rounded = values.to(dtype);
    const Tensor gradients = random({9, 6}, 4, of_parameters), before = gradients.clone();
    const Parameter first{values.slice(0, 4), gradients.slice(0, 4)}, second{values.slice(4, 9), gradients.slice(4, 9)};
    const Tape tape = Tape::record(true), apart = Tape::record();
    const auto multiply = [&](const Tape& tape, const Var& a, const Var& b, const Tensor& rounded) {
      const Var weights[] = {a, b};
      const Var input = tape.leaf(x), y = linear(input, weights, rounded);
      return std::pair(input, y);
    };
    const auto [input, y] = multiply(tape, tape.leaf(first), tape.leaf(second), rounded);
    const Var a = apart.leaf(values.slice(0, 4).clone()), b = apart.leaf(values.slice(4, 9).clone());
    const auto [input_apart, y_apart] = multiply(apart, a, b, {});
    const KeptTensor kept = tape.nodes().back().kept[1];
    EXPECT_EQ(kept.memory, dtype == of_parameters ? values.raw() : rounded.raw());
    EXPECT_EQ(kept.shape, Shape({9, 6}));
    EXPECT_TRUE(equal_bits(y.value, y_apart.value));
    EXPECT_LE(relative_error(y.value, by_definition(x, rounded, false, true)), tolerance(dtype));
    const Gradients in_place = tape.backward(y, dy), returned = apart.backward(y_apart, dy);
    EXPECT_TRUE(equal_bits(in_place.of(input), returned.of(input_apart)));
    EXPECT_FALSE(in_place.of(first)) << "it was added where it gathers";
    const Tensor flow = concat({returned.of(a), returned.of(b)}, 0).value;
    EXPECT_LE(relative_error(flow, by_definition(dy, x, true, false)), tolerance(of_parameters));
    EXPECT_LE(relative_error(gradients, add(before, flow).value), tolerance(of_parameters));
  }
  EXPECT_EQ(message([] {
              const Var weights[] = {Tensor::zeros({4, 3}), Tensor::zeros({2, 5})};
              linear(Tensor::zeros({2, 3}), weights);
            }),
            "linear: weight f32 (2, 5) does not fit below f32 (4, 3)");
}

TEST(Linear, MakesItsInputAgainInsteadOfKeepingIt) {
  const Tensor h = random({20, 3}, 1), weight = random({4, 3}, 2), dy = random({20, 4}, 3);
  const auto run = [&](bool again) {
    const Tape tape = Tape::record();
    const Var hidden = tape.leaf(h), w = tape.leaf(weight), x = gelu(hidden);
    const Var y = linear(x, w, {}, {}, {}, again ? Remake([h] { return gelu(h).value; }) : Remake());
    const std::size_t kept = tape.nodes().back().kept_bytes;
    const Gradients gradients = tape.backward(y, dy);
    return std::tuple(kept, gradients.of(hidden), gradients.of(w));
  };
  const auto [kept, of_hidden, of_weight] = run(false);
  const auto [kept_less, of_hidden_again, of_weight_again] = run(true);
  EXPECT_EQ(kept - kept_less, h.bytes());
  EXPECT_TRUE(equal_bits(of_hidden, of_hidden_again));
  EXPECT_TRUE(equal_bits(of_weight, of_weight_again));
}

TEST(Linear, RefusesResidualsThatDoNotFit) {
  const Tensor x = random({2, 3}, 1), weight = random({4, 3}, 2);
  EXPECT_EQ(message([&] {
              linear(x, weight, {}, {}, {random({2, 3}, 3)});
            }),
            "linear: the residual is f64 (2, 3), expected f64 (2, 4)");
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(random({2, 4}, 3));
  EXPECT_EQ(message([&] { linear(x, weight, {}, {}, {.onto = leaf, .in_place = true}); }),
            "linear: a residual that is undone or written in place must be a constant");
  EXPECT_EQ(message([&] {
              add_to({.onto = leaf, .undo = true}, random({2, 4}, 4));
            }),
            "add_to: a residual that is undone or written in place must be a constant");
}

// The plain loop is what a machine without BLAS gets; it must not rot where BLAS is there.
template <class T>
void compare_plain_loop(std::int64_t m, double tolerance) {
  const std::int64_t n = 53, k = 300, lda = 311, ldb = 307, ldc = 61;
  const Tensor a = random({311, lda}, 1, dtype_of<T>), b = random({311, ldb}, 2, dtype_of<T>);
  const Tensor c = random({m, ldc}, 3, dtype_of<T>);
  for (int flags = 0; flags < 4; ++flags) {
    for (T beta : {T(0), T(1), T(-0.5)}) {
      const Tensor got = c.clone(), want = c.clone();
      const bool ta = flags & 1, tb = flags & 2;
      cpu::gemm_plain<T>(ta, tb, m, n, k, T(0.7), a.data<T>(), lda, b.data<T>(), ldb, beta, got.data<T>(), ldc);
      cpu::gemm_serial<T>(ta, tb, m, n, k, T(0.7), a.data<T>(), lda, b.data<T>(), ldb, beta, want.data<T>(), ldc);
      EXPECT_LE(relative_error(got, want), tolerance) << "transposed " << ta << tb << " beta " << beta;
      EXPECT_EQ(want.data<T>()[n], c.data<T>()[n]) << "wrote beyond a row";
    }
  }
}

TEST(Gemm, PlainLoopEqualsBlas) {
  for (std::int64_t m : {37, 1}) {  // one row has its own path
    compare_plain_loop<float>(m, 1e-5);
    compare_plain_loop<double>(m, 1e-13);
  }
}

TEST(Gemm, BetaZeroOverwritesEvenNaN) {
  const float a[] = {2}, b[] = {3};
  float c[] = {NAN};
  cpu::gemm_plain<float>(false, false, 1, 1, 1, 1, a, 1, b, 1, 0, c, 1);
  EXPECT_EQ(c[0], 6);
  c[0] = NAN;
  cpu::gemm_serial<float>(false, false, 1, 1, 1, 1, a, 1, b, 1, 0, c, 1);
  EXPECT_EQ(c[0], 6);
}

TEST(Gemm, BlocksCoverTheProductOnce) {
  for (auto [m, n, k] :
       {std::array<std::int64_t, 3>{1, 1, 1}, {4096, 512, 128}, {128, 512, 4096}, {1, 1000, 512}, {257, 129, 700}}) {
    Tensor seen = Tensor::zeros({m, n}, DType::i32);
    cpu::for_each_block(m, n, k,
                        [=, n = n](std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
                          EXPECT_LE(rows, 256);
                          for (std::int64_t i = row; i < row + rows; ++i)
                            for (std::int64_t j = column; j < column + columns; ++j)
                              ++seen.data<std::int32_t>()[i * n + j];
                        });
    EXPECT_TRUE(equal_bits(seen, Tensor::full({m, n}, 1, DType::i32))) << m << " " << n;
  }
}

}  // namespace
}  // namespace sinkhorn
