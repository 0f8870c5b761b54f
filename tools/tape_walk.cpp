#include "tools/tape_walk.h"

#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "models/transformer.h"

namespace sinkhorn {
namespace {

using Built = TapeExample::Built;

Tensor numbers(std::initializer_list<float> values, Shape shape) {
  return Tensor::from(std::vector<float>(values), shape);
}
Tensor random(std::uint32_t tag, Shape shape) { return uniform(Rng(7).split(tag), shape, -1, 1); }

// y = a b + c
Built line(const Tape& tape) {
  const Var a = tape.leaf(numbers({2}, {})), b = tape.leaf(numbers({-3}, {})), c = tape.leaf(numbers({10}, {}));
  return {a * b + c, {{"a", a.value}, {"b", b.value}, {"c", c.value}}};
}

// Four points of three numbers each, five hidden units, two classes. The points are constants: nothing flows to them.
Built perceptron(const Tape& tape) {
  const Var x = random(1, {4, 3});
  const Tensor classes = Tensor::from(std::vector<std::int32_t>{0, 1, 1, 0}, {4});
  const Var w1 = tape.leaf(random(2, {3, 5})), b1 = tape.leaf(random(3, {5}));
  const Var w2 = tape.leaf(random(4, {5, 2})), b2 = tape.leaf(random(5, {2}));
  const Var hidden = tanh(matmul(x, w1) + b1);
  const Var logits = matmul(hidden, w2) + b2;
  return {cross_entropy(logits, classes).loss,
          {{"W1", w1.value}, {"b1", b1.value}, {"W2", w2.value}, {"b2", b2.value}}};
}

// Four tokens attend to each other: x is used three times, so three gradients meet in it.
Built softmax_attention(const Tape& tape) {
  const Var x = tape.leaf(random(1, {4, 3}));
  const Var wq = tape.leaf(random(2, {3, 2})), wk = tape.leaf(random(3, {3, 2})), wv = tape.leaf(random(4, {3, 2}));
  const Var q = matmul(x, wq), k = matmul(x, wk), v = matmul(x, wv);
  const Var weights = softmax(scale(matmul(q, k, false, true), 1 / std::sqrt(2.0)));
  return {mean(square(matmul(weights, v))), {{"x", x.value}, {"Wq", wq.value}, {"Wk", wk.value}, {"Wv", wv.value}}};
}

// The model of this project, one layer and one head: twelve tokens in three buckets of four.
Built sinkhorn_layer(const Tape& tape, bool composed) {
  const ModelConfig config{
      .dim = 8, .depth = 1, .max_seq_len = 12, .heads = 1, .bucket_size = 4, .causal = true, .n_top_buckets = 1};
  Initializer init(Rng(3), DType::f32);
  SinkhornTransformer model(config, init);
  model.use_composed_attention(composed);
  const Scope scope{.tape = tape, .rng = Rng(5), .training = true};
  const Var x = tape.leaf(random(1, {1, 12, 8}));
  Built built{mean(square(model(scope, x))), {{"x", x.value}}};
  for_each_parameter(model, [&](const std::string& name, const Parameter& p) {
    // "layers.layers.0.1.norm.weight" and "layers.layers.0.0.fn.to_q.weight": with one layer the ends tell them apart,
    // but for the norms of its two halves.
    const auto part = std::min(name.rfind('.'), name.size() - 1);
    const std::string owner = name.substr(0, part), last = name.substr(part + 1);
    const std::string inner = owner.substr(owner.rfind('.') + 1);
    if (inner == "norm")
      built.names.emplace_back((name.find(".0.0.") != std::string::npos ? "attn_norm." : "ff_norm.") + last, p.value);
    else
      built.names.emplace_back(inner == "sinkhorn_attention" ? last : inner + "." + last, p.value);
  });
  return built;
}

int value_at(const std::vector<TapeWalk::Node>& nodes, const TapeWalk::Node& node, const KeptTensor& kept) {
  // An input first, then its own, then any: views share memory with what they are views of.
  for (const int input : node.info.inputs)
    if (input >= 0 && nodes[std::size_t(input)].value.raw() == kept.memory) return input;
  if (node.value.raw() == kept.memory) return int(&node - nodes.data());
  for (std::size_t i = 0; i < nodes.size(); ++i)
    if (nodes[i].value.raw() == kept.memory) return int(i);
  return -1;
}

}  // namespace

const std::vector<TapeExample>& tape_examples() {
  static const std::vector<TapeExample> examples = {
      {"line", "y = a b + c with three numbers", line},
      {"perceptron", "two layers with biases, tanh between them, and cross-entropy", perceptron},
      {"softmax-attention", "four tokens attend to each other", softmax_attention},
      {"sinkhorn-layer", "one layer of this project's model: 12 tokens in 3 buckets",
       [](const Tape& tape) { return sinkhorn_layer(tape, false); }},
      {"sinkhorn-composed", "the same layer, its attention composed of small ops",
       [](const Tape& tape) { return sinkhorn_layer(tape, true); }},
  };
  return examples;
}

const TapeExample& find_tape_example(const std::string& name) {
  std::vector<std::string> names;
  names.reserve(tape_examples().size());
  for (const TapeExample& example : tape_examples()) {
    if (example.name == name) return example;
    names.push_back(example.name);
  }
  const std::string near = nearest(name, names);
  fail<UsageError>("tape: no example ", name, near.empty() ? "" : "; did you mean " + near + "?", "  (there are ",
                   fmt::format("{}", fmt::join(names, ", ")), ")");
}

std::string TapeWalk::title(int node) const {
  const Node& shown = nodes[std::size_t(node)];
  return shown.label.empty() ? std::string(shown.info.name) : shown.label;
}

TapeWalk walk_tape(const TapeExample& example) {
  TapeWalk walk{example.name, example.purpose, {}, 0};
  const Tape tape = Tape::record();
  tape.watch([&](const TapeEvent& event) {
    const auto at = std::size_t(event.node);
    switch (event.kind) {
      case TapeEvent::Kind::leaf:
      case TapeEvent::Kind::value:
        walk.nodes.resize(at + 1);
        walk.nodes[at].value = event.tensor;
        walk.nodes[at].kept_after_forward = tape.kept_bytes();
        break;
      case TapeEvent::Kind::incoming:
        walk.nodes[at].incoming = event.tensor;
        walk.nodes[at].kept_before_backward = tape.kept_bytes();
        if (event.node < walk.root) walk.nodes[at + 1].kept_after_backward = tape.kept_bytes();
        break;
      case TapeEvent::Kind::flow:
        if (const int to = walk.nodes[at].info.inputs[std::size_t(event.input)]; to >= 0)
          walk.nodes[at].flows.push_back({event.input, to, event.tensor});
        break;
    }
  });
  const TapeExample::Built built = example.build(tape);
  walk.root = built.loss.node;
  const std::vector<NodeInfo> infos = tape.nodes();
  for (std::size_t i = 0; i < infos.size(); ++i) walk.nodes[i].info = infos[i];
  for (TapeWalk::Node& node : walk.nodes) {
    for (const KeptTensor& kept : node.info.kept) node.kept.push_back({kept, value_at(walk.nodes, node, kept)});
    for (const auto& [name, value] : built.names)
      if (node.is_leaf() && node.value.raw() == value.raw()) node.label = name;
  }
  tape.backward(built.loss);
  walk.nodes.front().kept_after_backward = tape.kept_bytes();
  return walk;
}

}  // namespace sinkhorn
