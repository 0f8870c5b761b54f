#include <cmath>

#include "autograd/ops.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/09_attention/exercise.h"

namespace sinkhorn::lesson {
namespace {

struct Problem {
  std::string name;
  std::int64_t queries, keys, width, value_width;
  bool causal;
};

// Said with the library's ops: product, scale, softmax, product.
Var composed(const Var& q, const Var& k, const Var& v, bool causal) {
  const Var scores = scale(matmul(q, k, false, true), 1 / std::sqrt(double(q.shape()[1])));
  Tensor allowed;
  if (causal) {
    allowed = Tensor(scores.shape(), DType::boolean);
    const std::int64_t keys = k.shape()[0];
    for (std::int64_t i = 0; i < allowed.count(); ++i) allowed.data<bool>()[i] = i % keys <= i / keys;
  }
  return matmul(softmax(scores, allowed), v);
}

// The library's attention as models use it: one local head whose one window is the whole sequence.
Tensor fused(const Tensor& q, const Tensor& k, const Tensor& v, bool causal) {
  const std::int64_t length = q.shape()[0], width = q.shape()[1];
  const Var kv = concat({reshape(Var(k), {1, length, 1, 1, width}), reshape(Var(v), {1, length, 1, 1, width})}, 2);
  const Routing routing{Tensor::zeros({1, 0, 1, 1}, DType::f64), Tensor::zeros({1, 0, 1, 1}, DType::i32)};
  const Tensor none = Tensor::zeros({0, 1, width}, DType::f64);
  const NullBlock null = causal ? NullBlock{none, none} : NullBlock{};
  const Var y = bucketed_attention(q.reshape({1, length, 1, width}), kv, routing, null, {length, length, 1, causal});
  return y.value.reshape({length, width});
}

void check_one(lessons::Checks& checks, const Problem& p, const Rng& rng) {
  const Tensor q = uniform(rng.split(0), {p.queries, p.width}, -2, 2, DType::f64),
               k = uniform(rng.split(1), {p.keys, p.width}, -2, 2, DType::f64),
               v = uniform(rng.split(2), {p.keys, p.value_width}, -2, 2, DType::f64),
               dy = uniform(rng.split(3), {p.queries, p.value_width}, -1, 1, DType::f64);
  const Tape tape = Tape::record();
  const Var leaf_q = tape.leaf(q), leaf_k = tape.leaf(k), leaf_v = tape.leaf(v);
  const Var want = composed(leaf_q, leaf_k, leaf_v, p.causal);
  const Gradients flow = tape.backward(want, dy);

  checks.attempt("y, " + p.name, [&] { checks.near("y, " + p.name, attention(q, k, v, p.causal), want.value); });
  checks.attempt("gradients, " + p.name, [&] {
    const AttentionGradients own = attention_backward(q, k, v, dy, p.causal);
    checks.near("dq, " + p.name, own.dq, flow.of(leaf_q));
    checks.near("dk, " + p.name, own.dk, flow.of(leaf_k));
    checks.near("dv, " + p.name, own.dv, flow.of(leaf_v));
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  const std::vector<Problem> problems{{"5 queries, 7 keys", 5, 7, 3, 2, false},
                                      {"6 tokens, causal", 6, 6, 2, 4, true},
                                      {"one token, causal", 1, 1, 3, 2, true}};
  for (const Rng& rng : checks.rounds()) {
    for (std::uint32_t i = 0; i < problems.size(); ++i) check_one(checks, problems[i], rng.split(i));

    for (const bool causal : {false, true}) {
      const std::string name = std::string("y as the library's fused attention has it") + (causal ? ", causal" : "");
      const Tensor x = uniform(rng.split(10), {3, 6, 4}, -2, 2, DType::f64);
      const Tensor q = x.slice(0, 1).reshape({6, 4}), k = x.slice(1, 2).reshape({6, 4}),
                   v = x.slice(2, 3).reshape({6, 4});
      checks.attempt(name, [&] { checks.near(name, attention(q, k, v, causal), fused(q, k, v, causal)); });
    }

    // Scores in the hundreds, as a model at the start of training may have them.
    const Tensor far = uniform(rng.split(11), {4, 3}, 20, 40, DType::f64),
                 v = uniform(rng.split(12), {4, 2}, -1, 1, DType::f64);
    checks.attempt("y of scores around 1000", [&] {
      checks.near("y of scores around 1000", attention(far, far, v, true), composed(far, far, v, true).value);
    });

    for (const bool causal : {false, true}) {
      const std::int64_t queries = causal ? 5 : 3;
      const GradientProblem own = lessons::problem_of(
          {"q", "k", "v"},
          {uniform(rng.split(20), {queries, 3}, -1, 1, DType::f64), uniform(rng.split(21), {5, 3}, -1, 1, DType::f64),
           uniform(rng.split(22), {5, 2}, -1, 1, DType::f64)},
          [=](const Tensors& at) { return attention(at[0], at[1], at[2], causal); },
          [=](const Tensors& at, const Tensor& dy) {
            const AttentionGradients flow = attention_backward(at[0], at[1], at[2], dy, causal);
            return Tensors{flow.dq, flow.dk, flow.dv};
          });
      checks.gradients(std::string("your gradients against differences of your attention") + (causal ? ", causal" : ""),
                       own, rng.split(23));
    }
  }
}

}  // namespace sinkhorn::lesson
