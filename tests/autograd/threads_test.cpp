// Results do not depend on the number of threads: forward and backward give the same bits for 1, 2 and 4.
#include <gtest/gtest.h>

#include "autograd/ops.h"
#include "autograd/parallel.h"

namespace sinkhorn {
namespace {

using Function = std::function<Var(std::span<const Var>)>;

// The output and the gradients of all inputs, for a fixed random cotangent.
Tensors forward_and_backward(const Tensors& inputs, const Function& f) {
  const Tape tape = Tape::record();
  std::vector<Var> leaves;
  for (const Tensor& input : inputs) leaves.push_back(tape.leaf(input));
  const Var y = f(leaves);
  const Gradients gradients = tape.backward(y, uniform(Rng(99), y.shape(), -1, 1, DType::f64).to(y.value.dtype()));
  Tensors results{y.value};
  for (const Var& leaf : leaves) results.push_back(gradients.of(leaf));
  return results;
}

struct Subject {
  std::string name;
  std::vector<Shape> inputs;
  Function f;
};

// Shapes large enough to be cut into many chunks, and with ragged ends.
std::vector<Subject> subjects() {
  const Tensor ids = integers(Rng(7), {3000}, 50), picks = integers(Rng(8), {3, 40, 2}, 20);
  const Tensor few = integers(Rng(10), {3000, 4}, 8), many = integers(Rng(11), {3000, 4}, 5000);
  const Tensor allowed = Draw(Rng(9)).mask({3000, 65});
  return {
      {"matmul", {{700, 300}, {300, 200}}, [](auto x) { return matmul(x[0], x[1]); }},
      {"matmul batched", {{7, 90, 60}, {7, 110, 60}}, [](auto x) { return matmul(x[0], x[1], false, true); }},
      {"matmul shared", {{5, 60, 90}, {60, 110}}, [](auto x) { return matmul(x[0], x[1], true); }},
      {"linear", {{2500, 128}, {384, 128}, {384}}, [](auto x) { return linear(x[0], x[1], x[2]); }},
      {"layer_norm", {{3000, 65}, {65}, {65}}, [](auto x) { return layer_norm(x[0], x[1], x[2]); }},
      {"softmax", {{3000, 65}}, [=](auto x) { return softmax(x[0], allowed); }},
      {"log_softmax", {{3000, 65}}, [](auto x) { return log_softmax(x[0]); }},
      {"log_sum_exp", {{3000, 65}}, [=](auto x) { return log_sum_exp(x[0], allowed); }},
      {"embedding", {{50, 100}}, [=](auto x) { return embedding(x[0], ids); }},
      {"embedding_bag of few rows", {{8, 70}, {3000, 4}}, [=](auto x) { return embedding_bag(x[0], x[1], few); }},
      {"embedding_bag of many rows", {{5000, 70}, {3000, 4}}, [=](auto x) { return embedding_bag(x[0], x[1], many); }},
      {"product_key_top_k", {{2, 3000, 30}}, [](auto x) { return product_key_top_k(x[0], 5).scores; }},
      {"top_k", {{3000, 30}}, [](auto x) { return top_k(x[0], 3, 0.75).weights; }},
      {"gather_buckets", {{3, 20, 50, 90}, {3, 40, 2}}, [=](auto x) { return gather_buckets(x[0], x[1], picks); }},
      {"sorting_matrix", {{3, 40, 2}}, [=](auto x) { return sorting_matrix(x[0], picks, 500); }},
      {"sinkhorn", {{300, 7, 65}}, [=](auto x) { return sinkhorn(x[0], allowed.slice(0, 300), 3); }},
      {"maps", {{3000, 65}}, [](auto x) { return gelu(tanh(x[0]) * sigmoid(x[0])); }},
      {"broadcasting", {{3000, 65}, {65}, {3000, 1}, {}}, [](auto x) { return (x[0] + x[1]) * x[2] * x[3]; }},
      {"mask_fill", {{3000, 65}}, [=](auto x) { return mask_fill(x[0], allowed, -1); }},
      {"dropout", {{3000, 65}}, [](auto x) { return dropout(x[0], 0.3, Rng(3)); }},
      {"gated_gelu", {{3000, 66}}, [](auto x) { return gated_gelu(x[0]); }},
      {"movement",
       {{30, 50, 64}, {30, 50, 64}},
       [](auto x) {
         return permute(rotate(pad(concat({x[0], x[1]}, 1), 1, 3, 4), 1, 9), {2, 0, 1});
       }},
      {"sums", {{70, 90, 33}}, [](auto x) { return sum(x[0], 0) + sum(x[0], 1, true) * mean(x[0]); }},
      {"sum of a long row", {{200000}}, [](auto x) { return sum(x[0]); }},
      {"max", {{70, 90, 33}}, [](auto x) { return max(x[0], 1); }},
      {"cumulative_mean",
       {{30, 100, 65}},
       [=](auto x) {
         return cumulative_mean(x[0], allowed.reshape({-1}).slice(0, 3000).reshape({30, 100}));
       }},
      {"cross_entropy", {{3000, 50}}, [=](auto x) { return cross_entropy(x[0], ids).loss; }},
  };
}

class Threads : public testing::TestWithParam<DType> {};

TEST_P(Threads, DoNotChangeABit) {
  const int before = threads();
  for (const Subject& subject : subjects()) {
    Tensors inputs;
    for (const Shape& shape : subject.inputs)
      inputs.push_back(uniform(Rng(inputs.size()), shape, -2, 2, DType::f64).to(GetParam()));
    set_threads(1);
    const Tensors one = forward_and_backward(inputs, subject.f);
    for (int count : {2, 4}) {
      set_threads(count);
      const Tensors many = forward_and_backward(inputs, subject.f);
      for (std::size_t i = 0; i < one.size(); ++i)
        EXPECT_TRUE(equal_bits(one[i], many[i])) << subject.name << ": result " << i << " on " << count << " threads";
    }
  }
  set_threads(before);
}

INSTANTIATE_TEST_SUITE_P(Types, Threads, testing::Values(DType::f32, DType::f64, DType::bf16), [](const auto& info) {
  std::ostringstream name;
  name << info.param;
  return name.str();
});

}  // namespace
}  // namespace sinkhorn
