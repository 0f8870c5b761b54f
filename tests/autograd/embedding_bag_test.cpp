// Weighted sums of table rows: known numbers, and agreement with the same sums composed of other ops.
#include "autograd/ops/embedding_bag.h"

#include "autograd/ops.h"
#include "tests/autograd/expect.h"

namespace sinkhorn {
namespace {

TEST(EmbeddingBag, SumsWeightedRows) {
  const Tape tape = Tape::record();
  const Var table = tape.leaf(Tensor::from<double>({1, 2, 10, 20, 100, 200}, {3, 2}));
  const Var weights = tape.leaf(Tensor::from<double>({0.5, 2, 3, -1}, {2, 2}));
  const Var y = embedding_bag(table, weights, Tensor::from<std::int32_t>({2, 0, 0, 0}, {2, 2}));
  testing::expect_values(y, {52, 104, 2, 4});
  const Gradients gradients = tape.backward(y, Tensor::from<double>({1, 0, 0, 1}, {2, 2}));
  testing::expect_values(gradients.of(table), {2, 2, 0, 0, 0.5, 0});
  testing::expect_values(gradients.of(weights), {100, 1, 2, 2});
}

// Few rows are picked thousands of times, which is summed in pieces; many rows are hardly ever picked.
TEST(EmbeddingBag, EqualsItsComposition) {
  const std::int64_t bags = 700, size = 5, width = 9;
  for (std::int32_t rows : {1, 3, 20000})
    for (DType dtype : {DType::f64, DType::f32, DType::bf16}) {
      const Tensor ids = integers(Rng(1), {bags, size}, rows);
      const Tensor numbers = uniform(Rng(2), {rows, width}, -1, 1, DType::f64).to(dtype);
      const Tensor shares = uniform(Rng(3), {bags, size}, -1, 1, DType::f64).to(dtype);
      const Tensor cotangent = uniform(Rng(4), {bags, width}, -1, 1, DType::f64).to(dtype);
      const auto run = [&](DType in, bool composed) {
        const Tape tape = Tape::record();
        const Var table = tape.leaf(numbers.to(in)), weights = tape.leaf(shares.to(in));
        const Var y = composed ? sum(mul(embedding(table, ids), reshape(weights, {bags, size, 1})), 1)
                               : embedding_bag(table, weights, ids);
        const Gradients gradients = tape.backward(y, cotangent.to(in));
        return Tensors{y.value, gradients.of(table), gradients.of(weights)};
      };
      const Tensors got = run(dtype, false), want = run(DType::f64, true);
      for (std::size_t i = 0; i < want.size(); ++i)
        EXPECT_LE(relative_error(got[i].to(DType::f64), want[i]), dtype == DType::f64   ? 1e-14
                                                                  : dtype == DType::f32 ? 3e-6
                                                                                        : 5e-3)
            << "result " << i << ", " << rows << " rows, " << dtype;
    }
}

TEST(EmbeddingBag, RefusesWhatDoesNotFit) {
  using testing::expect_error;
  const Tensor table = Tensor::zeros({3, 2}), weights = Tensor::zeros({2, 2});
  expect_error(
      [&] {
        embedding_bag(table, weights, Tensor::full({2, 2}, 3, DType::i32));
      },
      {"embedding_bag: id 3", "3 rows"});
  expect_error([&] { embedding_bag(table, weights, Tensor::full({2, 2}, -1, DType::i32)); }, {"id -1"});
  expect_error([&] { embedding_bag(table, weights, Tensor::zeros({2, 2})); }, {"ids must be i32", "f32"});
  expect_error([&] { embedding_bag(table, weights, Tensor::zeros({2, 1}, DType::i32)); }, {"ids must be i32"});
  expect_error(
      [&] {
        embedding_bag(weights.reshape({4}), weights, Tensor::zeros({2, 2}, DType::i32));
      },
      {"table (V, D)"});
  expect_error([&] { embedding_bag(table, weights.to(DType::f64), Tensor::zeros({2, 2}, DType::i32)); }, {"dtypes"});
}

}  // namespace
}  // namespace sinkhorn
