// Ops on shapes large enough to be cut into many pieces, and with ragged ends; for tests of threads and of devices.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "autograd/ops.h"

namespace sinkhorn::testing {

using Function = std::function<Var(std::span<const Var>)>;

/// The output and the gradients of all inputs, for a fixed random cotangent.
inline Tensors forward_and_backward(const Tensors& inputs, const Function& f) {
  const Tape tape = Tape::record();
  std::vector<Var> leaves;
  for (const Tensor& input : inputs) leaves.push_back(tape.leaf(input));
  const Var y = f(leaves);
  const Tensor seed = uniform(Rng(99), y.shape(), -1, 1, DType::f64).to(y.value.dtype()).to(y.value.device());
  const Gradients gradients = tape.backward(y, seed);
  Tensors results{y.value};
  for (const Var& leaf : leaves) results.push_back(gradients.of(leaf));
  return results;
}

struct Subject {
  std::string name;
  std::vector<Shape> inputs;
  Function f;
};

/// Each runs on the device of its inputs.
inline std::vector<Subject> subjects() {
  const Tensor ids = integers(Rng(7), {3000}, 50), picks = integers(Rng(8), {3, 40, 2}, 20);
  const Tensor few = integers(Rng(10), {3000, 4}, 8), many = integers(Rng(11), {3000, 4}, 5000);
  const Tensor allowed = Draw(Rng(9)).mask({3000, 65});
  const auto on = [](const Tensor& x, const Var& like) { return x.to(like.value.device()); };
  return {
      {"matmul", {{700, 300}, {300, 200}}, [](auto x) { return matmul(x[0], x[1]); }},
      {"matmul batched", {{7, 90, 60}, {7, 110, 60}}, [](auto x) { return matmul(x[0], x[1], false, true); }},
      {"matmul shared", {{5, 60, 90}, {60, 110}}, [](auto x) { return matmul(x[0], x[1], true); }},
      {"linear", {{2500, 128}, {384, 128}, {384}}, [](auto x) { return linear(x[0], x[1], x[2]); }},
      {"linear onto a residual",
       {{2500, 128}, {384, 128}, {384}, {2500, 384}},
       [](auto x) { return linear(x[0], x[1], x[2], {}, {x[3]}); }},
      {"linear_gelu", {{2500, 128}, {384, 128}, {384}}, [](auto x) { return linear_gelu(x[0], x[1], x[2]); }},
      {"layer_norm", {{3000, 65}, {65}, {65}}, [](auto x) { return layer_norm(x[0], x[1], x[2]); }},
      {"softmax", {{3000, 65}}, [=](auto x) { return softmax(x[0], on(allowed, x[0])); }},
      {"log_softmax", {{3000, 65}}, [](auto x) { return log_softmax(x[0]); }},
      {"log_sum_exp", {{3000, 65}}, [=](auto x) { return log_sum_exp(x[0], on(allowed, x[0])); }},
      {"embedding", {{50, 100}}, [=](auto x) { return embedding(x[0], on(ids, x[0])); }},
      {"embedding_bag of few rows",
       {{8, 70}, {3000, 4}},
       [=](auto x) { return embedding_bag(x[0], x[1], on(few, x[0])); }},
      {"embedding_bag of many rows",
       {{5000, 70}, {3000, 4}},
       [=](auto x) { return embedding_bag(x[0], x[1], on(many, x[0])); }},
      {"embedding_bag of wide rows",
       {{8, 1104}, {300, 4}},
       [=](auto x) { return embedding_bag(x[0], x[1], on(few.slice(0, 300), x[0])); }},
      {"bucket_summary of long buckets",
       {{2, 600, 3, 16}},
       [](auto x) {
         return bucket_summary(x[0], Summary::mean, 300, 1, 0, {}, false) +
                bucket_summary(x[0], Summary::sum_of_means, 300, 1);
       }},
      {"product_key_top_k", {{2, 3000, 30}}, [](auto x) { return product_key_top_k(x[0], 5).scores; }},
      {"product_key_top_k of many keys", {{2, 50, 300}}, [](auto x) { return product_key_top_k(x[0], 290).scores; }},
      {"top_k", {{3000, 30}}, [](auto x) { return top_k(x[0], 3, 0.75).weights; }},
      {"gather_buckets",
       {{3, 20, 50, 90}, {3, 40, 2}},
       [=](auto x) { return gather_buckets(x[0], x[1], on(picks, x[0])); }},
      {"route_buckets",
       {{2, 3, 150, 70}, {2, 3, 150, 70}},
       [](auto x) {
         return route_buckets({x[0], x[1]}, 3, 0.75).weights;
       }},
      {"sorting_matrix", {{3, 40, 2}}, [=](auto x) { return sorting_matrix(x[0], on(picks, x[0]), 500); }},
      {"sinkhorn", {{300, 7, 65}}, [=](auto x) { return sinkhorn(x[0], on(allowed.slice(0, 300), x[0]), 3); }},
      {"maps", {{3000, 65}}, [](auto x) { return gelu(tanh(x[0]) * sigmoid(x[0])); }},
      {"broadcasting", {{3000, 65}, {65}, {3000, 1}, {}}, [](auto x) { return (x[0] + x[1]) * x[2] * x[3]; }},
      {"mask_fill", {{3000, 65}}, [=](auto x) { return mask_fill(x[0], on(allowed, x[0]), -1); }},
      {"dropout", {{3000, 65}}, [](auto x) { return dropout(x[0], 0.3, Rng(3)); }},
      {"gated_gelu", {{3000, 66}}, [](auto x) { return gated_gelu(x[0]); }},
      {"movement",
       {{30, 50, 64}, {30, 50, 64}},
       [](auto x) {
         return permute(rotate(pad(concat({x[0], x[1]}, 1), 1, 3, 4), 1, 9), {2, 0, 1});
       }},
      {"every_nth", {{60, 50, 64}}, [](auto x) { return every_nth(x[0], 1, 5, 1, 2) + every_nth(x[0], 1, 25, 0, 2); }},
      {"sums", {{70, 90, 33}}, [](auto x) { return sum(x[0], 0) + sum(x[0], 1, true) * mean(x[0]); }},
      {"sum of a long row", {{200000}}, [](auto x) { return sum(x[0]); }},
      {"max", {{70, 90, 33}}, [](auto x) { return max(x[0], 1); }},
      {"cumulative_mean",
       {{30, 100, 65}},
       [=](auto x) {
         return cumulative_mean(x[0], on(allowed.reshape({-1}).slice(0, 3000).reshape({30, 100}), x[0]));
       }},
      {"cross_entropy", {{3000, 50}}, [=](auto x) { return cross_entropy(x[0], on(ids, x[0])).loss; }},
      {"linear_cross_entropy",
       {{3000, 40}, {50, 40}, {50}},
       [=](auto x) {
         const ops::LinearCrossEntropy sliced{.logits_at_once = 50 * 700};
         return apply(sliced, {x[0], x[1], x[2], on(ids, x[0]), Tensor()});
       }},
  };
}

}  // namespace sinkhorn::testing
