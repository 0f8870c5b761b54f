// Layer norm and embedding against their definitions.
#include "autograd/ops/layer_norm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/gradcheck.h"
#include "autograd/ops/embedding.h"

namespace sinkhorn {
namespace {

TEST(LayerNorm, EqualsTheDefinition) {
  const std::int64_t rows = 6, width = 37;
  for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    const Tensor x = uniform(Rng(1), {2, 3, width}, 4, 6, DType::f64).to(dtype);
    const Tensor gamma = uniform(Rng(2), {width}, -1, 1, DType::f64).to(dtype);
    const Tensor beta = uniform(Rng(3), {width}, -1, 1, DType::f64).to(dtype);
    const std::vector<double> v = x.to_vector(), g = gamma.to_vector(), b = beta.to_vector();
    std::vector<double> want;
    for (std::int64_t r = 0; r < rows; ++r) {
      double mean = 0, variance = 0;
      for (std::int64_t i = 0; i < width; ++i) mean += v[std::size_t(r * width + i)] / double(width);
      for (std::int64_t i = 0; i < width; ++i)
        variance += std::pow(v[std::size_t(r * width + i)] - mean, 2) / double(width);
      for (std::int64_t i = 0; i < width; ++i)
        want.push_back((v[std::size_t(r * width + i)] - mean) / std::sqrt(variance + 1e-5) * g[std::size_t(i)] +
                       b[std::size_t(i)]);
    }
    EXPECT_LE(relative_error(layer_norm(x, gamma, beta).value, Tensor::from(want, x.shape())),
              dtype == DType::f64   ? 1e-14
              : dtype == DType::f32 ? 1e-5
                                    : 1e-2);
  }
}

TEST(LayerNorm, OfAConstantRowIsBeta) {
  const Tensor y = layer_norm(Tensor::full({2, 4}, 1e6), Tensor::full({4}, 3), Tensor::full({4}, 0.5)).value;
  EXPECT_EQ(y.to_vector(), std::vector<double>(8, 0.5));
}

TEST(LayerNorm, ErrorsNameWhatDoesNotFit) {
  const Tensor x = Tensor::zeros({2, 4}), four = Tensor::zeros({4});
  EXPECT_THROW(layer_norm(x, Tensor::zeros({3}), four), Error);
  EXPECT_THROW(layer_norm(x, four, Tensor::zeros({4}, DType::f64)), Error);
  EXPECT_THROW(layer_norm(Tensor::zeros({}), four, four), Error);
}

TEST(Embedding, CopiesRows) {
  const Tensor table = Tensor::from<float>({1, 2, 3, 4, 5, 6}, {3, 2});
  const Var y = embedding(table, Tensor::from<std::int32_t>({2, 0, 2}, {1, 3}));
  EXPECT_EQ(y.shape(), Shape({1, 3, 2}));
  EXPECT_EQ(y.value.to_vector(), std::vector<double>({5, 6, 1, 2, 5, 6}));
}

TEST(Embedding, NamesAnIdOutsideTheTable) {
  for (std::int32_t id : {3, -1}) {
    try {
      embedding(Tensor::zeros({3, 2}), Tensor::from<std::int32_t>({0, id}, {2}));
      FAIL() << id << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.what(), "embedding: id " + std::to_string(id) + " is outside a table of 3 rows");
    }
  }
  EXPECT_THROW(embedding(Tensor::zeros({3, 2}), Tensor::zeros({2})), Error) << "ids must be i32";
}

// A row that collects 100,000 terms of 0.1: one f32 sum would be off by 1e-3.
TEST(Embedding, SumsAHubExactly) {
  const std::int64_t count = 100'000;
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Tape tape = Tape::record();
    const Var table = tape.leaf(Tensor::zeros({2, 3}, dtype));
    const Var y = embedding(table, Tensor::full({count}, 1, DType::i32));
    const Tensor flow = tape.backward(y, Tensor::full({count, 3}, 0.1, dtype)).of(table);
    const double term = Tensor::full({}, 0.1, dtype).item();
    EXPECT_EQ(flow.to_vector()[0], 0);
    for (std::size_t i : {3, 4, 5})
      EXPECT_EQ(flow.to_vector()[i], Tensor::full({}, term * double(count), DType::f64).to(dtype).item());
  }
}

}  // namespace
}  // namespace sinkhorn
