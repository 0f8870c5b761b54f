// Modules: plain structs with operator() and one reflection hook, visit(see), that names every parameter.
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "autograd/ops.h"

namespace sinkhorn {

/// Called with what a forward pass draws or decides ("dropout", "picks"), and with what comes out of its parts ("heads"
/// (B, T, H, d) of an attention, "sublayer" (B, T, D)); for tests, checks and pictures. A sort net shows what it
/// chooses from: "scores" (B, h, N, columns), -inf where closed, with the "weights" of the picks; for Gumbel-Sinkhorn
/// the "log_scores" (B, h, N, M) before noise and temperature, "open" (B, M), and the "sorting_matrix".
using Observer = std::function<void(std::string_view what, const Tensor& value)>;

/// Gumbel noise given from outside instead of drawn, for comparisons with other implementations: each stream that asks
/// for the first time takes the next array, and the same one whenever it asks again (recomputation).
class InjectedNoise {
 public:
  explicit InjectedNoise(Tensors arrays) : arrays_(std::move(arrays)) {}
  Tensor of(const Rng& stream, Shape shape, DType dtype);

 private:
  Tensors arrays_;
  std::vector<std::uint64_t> streams_;  // stream i has array i
};

/// Where a forward pass runs: its tape (none means inference), its stream of random numbers, and whether it trains.
struct Scope {
  Tape tape = {};
  Rng rng = {};
  bool training = false;
  Choices* choices = nullptr;  // the reversible chain's memory of discrete choices
  const Observer* observer = nullptr;
  InjectedNoise* injected = nullptr;
  /// Mixed precision: the type that sublayers compute in (bf16), beside f32 parameters and an f32 residual stream.
  /// Empty: all is in the parameters' type.
  std::optional<DType> compute = {};

  Var leaf(const Parameter& parameter) const { return tape ? tape.leaf(parameter) : Var(parameter.value); }
  /// The parameter in another type.
  Var leaf(const Parameter& parameter, DType dtype) const {
    const bool is_there = parameter.rounded && parameter.rounded.dtype() == dtype;
    return cast(leaf(parameter), dtype, is_there ? parameter.rounded : Tensor());
  }
  Scope split(std::uint32_t tag) const {
    Scope other = *this;
    other.rng = rng.split(tag);
    return other;
  }
  /// The same without mixed precision, for what must not be rounded.
  Scope in_full() const {
    Scope other = *this;
    other.compute.reset();
    return other;
  }
  /// x as sublayers compute with it.
  Var rounded(const Var& x) const { return compute ? cast(x, *compute) : x; }
  void observe(std::string_view what, const Tensor& value) const {
    if (observer) (*observer)(what, value);
  }
  /// The rate to use: `rate` in training, else 0.
  double active(double rate) const { return training ? rate : 0; }
  /// Gumbel noise in training (or injected), else an empty tensor.
  Tensor gumbel(Shape shape, DType dtype, Device device) const {
    Tensor noise;
    if (injected) {
      noise = injected->of(rng, shape, dtype).to(device);
    } else if (training) {
      noise = sinkhorn::gumbel(rng, shape, dtype, device);
    }
    if (noise) observe("gumbel", noise);
    return noise;
  }
  /// Dropout in training, else x.
  Var dropout(const Var& x, double rate) const {
    if (active(rate) == 0) return x;
    if (observer) observe("dropout", dropout_mask(rng, x.shape(), rate));
    return sinkhorn::dropout(x, rate, rng);
  }
};

/// A group of heads, computed apart from the layer's others: of all heads, and so of those of each kind if `groups`
/// divides them, every groups-th from `index` on. A group has as many of the first half of the sorting heads as of the
/// second, so that by itself it is a layer of fewer heads, whose halves are parts of the whole layer's.
struct HeadGroup {
  std::int64_t index = 0, groups = 1;

  bool is_all() const { return groups == 1; }
  std::int64_t share(std::int64_t heads) const { return heads / groups; }
  /// The group's part of a parameter, of which a head has `width` entries along an axis.
  Var part(const Var& parameter, int axis, std::int64_t width) const {
    return is_all() ? parameter : every_nth(parameter, axis, width, index, groups);
  }
};

/// Draws initial parameters (behaviour 2.15); each call takes the next stream.
class Initializer {
 public:
  Initializer(Rng rng, DType dtype) : rng_(std::move(rng)), dtype_(dtype) {}

  /// U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as every Linear's weight and bias has it. Weights take weight decay, biases do
  /// not.
  Parameter linear(Shape shape, std::int64_t fan_in, bool decays = true) {
    const double bound = 1 / std::sqrt(double(fan_in));
    return {uniform(rng_.split(next_++), shape, -bound, bound, dtype_), {}, decays};
  }
  Parameter normal(Shape shape, double stddev = 1, bool decays = false) {
    return {sinkhorn::normal(rng_.split(next_++), shape, 0, stddev, dtype_), {}, decays};
  }
  Parameter constant(Shape shape, double value) const { return {Tensor::full(shape, value, dtype_), {}, false}; }

 private:
  Rng rng_;
  DType dtype_;
  std::uint32_t next_ = 0;
};

/// Calls use(name, parameter) for every parameter of a module and of the modules in it, names joined by dots.
template <class Module, class Use>
void for_each_parameter(Module& module, Use&& use, const std::string& prefix = "") {
  module.visit([&](const std::string& name, auto& member) {
    if constexpr (std::is_same_v<std::decay_t<decltype(member)>, Parameter>) {
      if (member.value) use(prefix + name, member);
    } else {
      for_each_parameter(member, use, prefix + name + ".");
    }
  });
}

/// Lays values of one type behind each other into one buffer on a device, in their order.
void lay_together(std::span<Parameter* const> parameters, Device device);

/// Moves the parameters of a module to a device: their values into one buffer there.
template <class Module>
void move_to(Device device, Module& module) {
  std::vector<Parameter*> elsewhere;
  for_each_parameter(module, [&](const std::string&, Parameter& parameter) {
    if (parameter.value.device() != device) elsewhere.push_back(&parameter);
    if (parameter.gradient) parameter.gradient = parameter.gradient.to(device);
    if (parameter.rounded) parameter.rounded = parameter.rounded.to(device);
  });
  lay_together(elsewhere, device);
}

template <class Module>
std::vector<const Parameter*> parameters_of(Module& module) {
  std::vector<const Parameter*> all;
  for_each_parameter(module, [&](const std::string&, const Parameter& parameter) { all.push_back(&parameter); });
  return all;
}

}  // namespace sinkhorn
