#include "autograd/tape.h"

#include <algorithm>
#include <map>
#include <utility>

#include "autograd/memory.h"

namespace sinkhorn {

Tensor Draw::mask(Shape shape, double probability) {
  const RandomBits bits = rng_.split(next_++).bits();
  Tensor mask(shape, DType::boolean);
  for (std::int64_t i = 0; i < mask.count(); ++i) mask.data<bool>()[i] = bits.uniform<double>(i) < probability;
  return mask;
}

void require_one_device(std::string_view op, std::span<const Var> inputs) {
  const Tensor* first = nullptr;
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    const Tensor& input = inputs[k].value;
    if (!input) continue;
    if (first && input.device() != first->device())
      fail(op, ": input ", k, " ", input.shape(), " lies on device ", input.device(), ", the inputs before it on ",
           first->device(), "; use to(device)");
    first = &input;
  }
}

struct Tape::Node {
  std::unique_ptr<AnyOp> op;  // null: a leaf
  std::vector<int> inputs;
  Saved saved;
  Shape shape;
  DType dtype;
  const Parameter* parameter = nullptr;
};

struct Tape::State {
  std::vector<Node> nodes;
  std::map<const Parameter*, int> leaves;
  bool into_parameters = false;
  bool walked = false;
  Watch watch;
};

Tape Tape::record(bool into_parameters) {
  Tape tape;
  tape.state_ = std::make_shared<State>();
  tape.state_->into_parameters = into_parameters;
  return tape;
}

Var Tape::leaf(Tensor value) const {
  auto& nodes = state_->nodes;
  nodes.push_back({nullptr, {}, {}, value.shape(), value.dtype()});
  const int node = int(nodes.size()) - 1;
  if (state_->watch) state_->watch({TapeEvent::Kind::leaf, "leaf", node, -1, value});
  return {std::move(value), *this, node};
}

Var Tape::leaf(const Parameter& parameter) const {
  auto [place, is_new] = state_->leaves.try_emplace(&parameter, int(state_->nodes.size()));
  if (!is_new) return {parameter.value, *this, place->second};
  Var leaf = this->leaf(parameter.value);
  state_->nodes.back().parameter = &parameter;
  return leaf;
}

Var Tape::push(std::unique_ptr<AnyOp> op, std::span<const Var> inputs, Saved saved, Tensor value) {
  Tape tape;
  std::vector<int> nodes;
  for (const Var& input : inputs) {
    nodes.push_back(input.node);
    if (input.node < 0) continue;
    if (tape && tape != input.tape) fail(op->name(), ": inputs lie on two different tapes; use one Tape::record()");
    tape = input.tape;
  }
  if (tape.state_->walked) fail(op->name(), ": the tape was already walked by backward; record a new one");
  const std::string_view name = op->name();
  tape.state_->nodes.push_back({std::move(op), std::move(nodes), std::move(saved), value.shape(), value.dtype()});
  const int node = int(tape.state_->nodes.size()) - 1;
  if (tape.state_->watch) tape.state_->watch({TapeEvent::Kind::value, name, node, -1, value});
  return {std::move(value), std::move(tape), node};
}

namespace {

// into += flow
void add_in_place(const Tensor& into, const Tensor& flow) {
  dispatch(into, [&]<class T>(auto space) {
    kernels::Accumulate<T>::forward(space, into.count(), flow.data<T>(), into.data<T>());
  });
}

void accumulate(Tensor& gradient, Tensor flow, bool in_place = false) {
  if (!gradient) {
    gradient = std::move(flow);
  } else if (in_place || gradient.is_sole_owner()) {
    add_in_place(gradient, flow);
  } else {
    gradient = gradient.clone();
    add_in_place(gradient, flow);
  }
}

}  // namespace

Gradients Tape::backward(const Var& root, Tensor seed) const { return backward(root, std::move(seed), {}, {}); }

Gradients Tape::backward(const Var& root, Tensor seed, const Var& leaf, Tensor begun, bool in_place) const {
  if (!state_ || root.node < 0 || root.tape != *this) fail("backward: the root is a constant; nothing flows from it");
  if (state_->walked) fail("backward: this tape was already walked; first derivatives only, record a new tape");
  auto& nodes = state_->nodes;
  if (!seed) {
    if (root.value.count() != 1) fail("backward: a root of shape ", root.shape(), " needs a seed of that shape");
    seed = Tensor::full(root.shape(), 1, root.value.dtype(), root.value.device());
  }
  if (seed.shape() != root.shape() || seed.dtype() != root.value.dtype())
    fail("backward: seed ", seed.shape(), " ", seed.dtype(), " does not match root ", root.shape(), " ",
         root.value.dtype());
  state_->walked = true;

  Gradients result;
  Tensors grads(nodes.size());
  grads[root.node] = std::move(seed);
  const bool begun_here = bool(begun);
  if (begun_here) {
    if (leaf.tape != *this || leaf.node < 0 || leaf.node == root.node || begun.shape() != leaf.shape() ||
        begun.dtype() != leaf.value.dtype())
      fail("backward: the gradient that has begun, ", begun.dtype(), " ", begun.shape(), ", belongs to no leaf here");
    accumulate(grads[leaf.node], std::move(begun));
  }
  const int writable = begun_here && in_place ? leaf.node : -1;
  const auto gathers_in_parameter = [&](const Node& node) {
    return state_->into_parameters && node.parameter && node.parameter->gradient;
  };
  // Where flows to node `to` may be added by the op itself. Whoever watches sees each flow apart.
  const auto place_of = [&](int to) {
    if (to < 0 || state_->watch) return Tensor();
    if (gathers_in_parameter(nodes[to])) return nodes[to].parameter->gradient;
    return grads[to] && (to == writable || grads[to].is_sole_owner()) ? grads[to] : Tensor();
  };
  for (int i = root.node; i >= 0; --i) {
    Node& node = nodes[i];
    const std::string_view name = node.op ? node.op->name() : "leaf";
    if (state_->watch) state_->watch({TapeEvent::Kind::incoming, name, i, -1, grads[i]});
    if (grads[i] && node.op) {
      node.saved.into.clear();
      for (const int to : node.inputs) node.saved.into.push_back(place_of(to));
      Tensors flows = node.op->backward(node.saved, std::exchange(grads[i], {}));
      Tensors into = std::exchange(node.saved.into, {});
      for (std::size_t k = 0; k < flows.size(); ++k) {
        if (state_->watch && flows[k]) state_->watch({TapeEvent::Kind::flow, name, i, int(k), flows[k]});
        const int to = node.inputs[k];
        if (to < 0 || !flows[k]) continue;
        if (flows[k].shape() != nodes[to].shape || flows[k].dtype() != nodes[to].dtype)
          fail(name, ": the gradient of input ", k, " is ", flows[k].shape(), " ", flows[k].dtype(), ", expected ",
               nodes[to].shape, " ", nodes[to].dtype);
        const bool has_been_added = into[k] && flows[k].raw() == into[k].raw();
        into[k] = {};
        if (has_been_added) continue;
        if (gathers_in_parameter(nodes[to])) {
          add_in_place(nodes[to].parameter->gradient, flows[k]);
        } else {
          accumulate(grads[to], std::move(flows[k]), to == writable);
        }
      }
    }
    node.op.reset();
    node.saved = {};  // memory falls as backward rises
  }
  result.by_node_ = std::move(grads);
  result.parameters_.assign(state_->leaves.begin(), state_->leaves.end());
  return result;
}

void Tape::watch(Watch see) const { state_->watch = std::move(see); }

std::vector<NodeInfo> Tape::nodes() const {
  std::vector<NodeInfo> infos;
  for (const Node& node : state_->nodes) {
    NodeInfo info{node.op ? node.op->name() : "leaf", node.shape, node.inputs, 0, {}};
    for (const Tensor& kept : node.saved.tensors) {
      if (!kept) continue;
      info.kept.push_back({kept.shape(), kept.dtype(), kept.bytes(), kept.raw()});
      info.kept_bytes += kept.bytes();
    }
    infos.push_back(std::move(info));
  }
  return infos;
}

std::size_t Tape::kept_bytes() const {
  std::size_t bytes = 0;
  for (const NodeInfo& node : nodes()) bytes += node.kept_bytes;
  return bytes;
}

Tensor Gradients::of(const Var& leaf) const {
  return leaf.node >= 0 && leaf.node < int(by_node_.size()) ? by_node_[leaf.node] : Tensor();
}

Tensor Gradients::of(const Parameter& parameter) const {
  for (const auto& [known, node] : parameters_)
    if (known == &parameter) return by_node_[node];
  return {};
}

}  // namespace sinkhorn
