// The tape: ops in the order in which they ran. Backward walks it once, from the end.
#pragma once
#include <concepts>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "autograd/all_ops.h"
#include "autograd/dispatch.h"
#include "autograd/rng.h"

namespace sinkhorn {

struct Var;
class Gradients;

/// A tensor that training changes. `gradient`, if there, is its slice of a flat gradient buffer.
struct Parameter {
  Tensor value;
  Tensor gradient = {};
  bool decays = false;     // takes weight decay: matrices do; norms, biases and embeddings do not
  bool is_memory = false;  // a memory's values: few are read in a step, so they learn at a rate of their own
  Tensor rounded = {};     // the value in bf16, for mixed precision; whoever changes the value keeps it up to date
};

/// What one node keeps between forward and backward, and which inputs backward must serve.
struct Saved {
  Tensors tensors;
  std::vector<bool> wants;         // wants[k]: input k is differentiated; the flows of the others may be empty
  std::vector<Shape> shapes = {};  // of inputs whose elements backward does not need
  /// In backward: into[k], if it is there, is where the gradient of input k gathers. An op that can add its flow to it
  /// does, and returns into[k] itself; any other op returns a flow of its own.
  Tensors into = {};

  /// Whether the flow of input k is to be added to into[k].
  bool adds(std::size_t k) const { return k < into.size() && into[k]; }
  /// Where that flow goes, for an op that can add: into[k], or a new tensor. Empty if nobody wants it.
  Tensor place_of(std::size_t k, const Tensor& like, Shape shape) const {
    return !wants[k] ? Tensor() : adds(k) ? into[k] : like.like(shape);
  }
};

namespace kernels {

/// Where a kernel writes a flow, if anywhere, and whether it adds to what is there.
template <class T>
struct Flow {
  T* to;
  bool adds;
  Real<T> beta() const { return adds ? 1 : 0; }
};

/// The place of the flow of input k.
template <class T>
Flow<T> flow_to(const Saved& saved, std::size_t k, const Tensor& place) {
  return {place.data_or_null<T>(), saved.adds(k)};
}

}  // namespace kernels

/// What an op computes: one differentiable tensor and any number of others (indices, a log-sum-exp).
struct Output {
  Output(Tensor y, Tensors others = {}) : y(std::move(y)), others(std::move(others)) {}
  Tensor y;
  Tensors others;
};
using Inputs = std::span<const Tensor>;

/// Draws the inputs of a gradient case. Every call takes the next stream, so that equal shapes get unequal values.
class Draw {
 public:
  explicit Draw(Rng rng) : rng_(rng) {}
  Tensor uniform(Shape shape, double low = -2, double high = 2) {
    return sinkhorn::uniform(rng_.split(next_++), shape, low, high, DType::f64);
  }
  Tensor integers(Shape shape, std::int32_t end) { return sinkhorn::integers(rng_.split(next_++), shape, end); }
  /// true with the given probability.
  Tensor mask(Shape shape, double probability = 0.7);

 private:
  Rng rng_;
  std::uint32_t next_ = 0;
};

/// One point at which an op's gradient is checked. Every f64 input is differentiated, except those named in
/// `constants`. `inputs` is drawn anew when a point turns out to lie on a kink or a tie.
template <class O>
struct Case {
  Case(std::string label, O op, std::function<Tensors(Draw&)> inputs, std::vector<int> constants = {})
      : label(std::move(label)), op(std::move(op)), inputs(std::move(inputs)), constants(std::move(constants)) {}
  std::string label;
  O op;
  std::function<Tensors(Draw&)> inputs;
  std::vector<int> constants;
};

/// An op is a value: its attributes are its members. No gradient cases, no op.
template <class O>
concept Op = requires(const O op, Saved& save, const Saved& saved, Inputs in, const Tensor& dy) {
  { O::name } -> std::convertible_to<std::string_view>;
  { op.forward(save, in) } -> std::convertible_to<Output>;
  { op.backward(saved, dy) } -> std::same_as<Tensors>;
  { O::cases() } -> std::same_as<std::vector<Case<O>>>;
};

/// A tensor that a node keeps for backward. Two of equal `memory` share it.
struct KeptTensor {
  Shape shape;
  DType dtype;
  std::size_t bytes;
  const std::byte* memory;
};

/// What the tape shows of a node.
struct NodeInfo {
  std::string_view name;         // "leaf" or the op's
  Shape shape;                   // of its value
  std::vector<int> inputs;       // nodes; -1 for a constant
  std::size_t kept_bytes;        // of the tensors kept for backward
  std::vector<KeptTensor> kept;  // those tensors, each counted in full
};

/// A moment in the life of a node.
struct TapeEvent {
  enum class Kind {
    leaf,      // a leaf was made; the tensor is its value
    value,     // an op ran; the tensor is its value
    incoming,  // backward reached the node; the tensor is the gradient that has arrived there, empty if none has
    flow       // backward gave this tensor to input `input`, which is a constant if the node's inputs[input] is -1
  };
  Kind kind;
  std::string_view op;  // the op's name; "leaf" for a leaf
  int node;
  int input;  // of a flow, else -1
  const Tensor& tensor;
};

/// A handle: copies are the same tape. A default-constructed handle is no tape, which is how inference is said.
class Tape {
 public:
  Tape() = default;
  /// A fresh tape. `into_parameters`: gradients of parameters are added to their `gradient` slices, not returned.
  static Tape record(bool into_parameters = false);

  explicit operator bool() const { return bool(state_); }
  bool operator==(const Tape&) const = default;

  Var leaf(Tensor value) const;
  /// The one leaf of this parameter on this tape.
  Var leaf(const Parameter& parameter) const;

  /// d<seed, root> / d(leaf) for every leaf; the seed defaults to 1 for a root of one element. A tape can be walked
  /// once.
  Gradients backward(const Var& root, Tensor seed = {}) const;
  /// The same, for a leaf whose gradient has begun elsewhere: `begun` moves in, and comes out as part of the leaf's.
  /// `in_place`: flows are added where `begun` lies, even if others hold its buffer.
  Gradients backward(const Var& root, Tensor seed, const Var& leaf, Tensor begun, bool in_place = false) const;

  /// Calls `see` at every moment from here on. Keeping an event's tensor is allowed: it will not be written to.
  using Watch = std::function<void(const TapeEvent& event)>;
  void watch(Watch see) const;

  std::vector<NodeInfo> nodes() const;
  std::size_t kept_bytes() const;

 private:
  struct Node;
  struct State;
  struct AnyOp;
  template <Op O>
  struct OpOf;
  static Var push(std::unique_ptr<AnyOp> op, std::span<const Var> inputs, Saved saved, Tensor value);
  template <Op O>
  friend std::pair<Var, Tensors> apply_all(O op, std::initializer_list<Var> inputs);
  template <Op O>
  friend std::pair<Var, Tensors> apply_all(O op, std::span<const Var> inputs);

  std::shared_ptr<State> state_;
};

/// A tensor and its place on a tape. Without one it is a constant, and nothing flows back.
struct Var {
  Var() = default;
  Var(Tensor value) : value(std::move(value)) {}
  Var(Tensor value, Tape tape, int node) : value(std::move(value)), tape(std::move(tape)), node(node) {}

  const Shape& shape() const { return value.shape(); }
  /// The same value as a constant.
  Var detach() const { return value; }

  Tensor value;
  Tape tape;
  int node = -1;
};

/// The result of backward: a gradient per leaf.
class Gradients {
 public:
  /// Empty where the root does not depend on the leaf, or where it was added to `parameter.gradient`.
  Tensor of(const Var& leaf) const;
  Tensor of(const Parameter& parameter) const;

 private:
  friend class Tape;
  Tensors by_node_;
  std::vector<std::pair<const Parameter*, int>> parameters_;
};

struct Tape::AnyOp {
  virtual ~AnyOp() = default;
  virtual std::string_view name() const = 0;
  /// The tape lets go of dy, so an op that takes it by value may end it, too, before it returns.
  virtual Tensors backward(const Saved& saved, Tensor dy) const = 0;
};

template <Op O>
struct Tape::OpOf final : Tape::AnyOp {
  explicit OpOf(O op) : op(std::move(op)) {}
  std::string_view name() const override { return O::name; }
  Tensors backward(const Saved& saved, Tensor dy) const override { return op.backward(saved, std::move(dy)); }
  O op;
};

/// An Error naming the first input that lies on another device than those before it.
void require_one_device(std::string_view op, std::span<const Var> inputs);

/// The only door onto the tape. Returns the differentiable output and the others.
template <Op O>
std::pair<Var, Tensors> apply_all(O op, std::span<const Var> inputs) {
  static_assert(contains<O, AllOps>, "add the op to AllOps: that is what puts it under the gradient check");
  require_one_device(O::name, inputs);
  Saved saved;
  Tensors values;
  bool tracked = false;
  for (const Var& input : inputs) {
    values.push_back(input.value);
    saved.wants.push_back(input.node >= 0);
    tracked |= input.node >= 0;
  }
  Output out = op.forward(saved, values);
  if (!tracked) return {std::move(out.y), std::move(out.others)};
  Var y = Tape::push(std::make_unique<Tape::OpOf<O>>(std::move(op)), inputs, std::move(saved), std::move(out.y));
  return {std::move(y), std::move(out.others)};
}
template <Op O>
std::pair<Var, Tensors> apply_all(O op, std::initializer_list<Var> inputs) {
  return apply_all(std::move(op), std::span<const Var>(inputs.begin(), inputs.size()));
}
template <Op O>
Var apply(O op, std::initializer_list<Var> inputs) {
  return apply_all(std::move(op), inputs).first;
}
template <Op O>
Var apply(O op, std::span<const Var> inputs) {
  return apply_all(std::move(op), inputs).first;
}

}  // namespace sinkhorn
