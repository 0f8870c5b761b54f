// Functions of one number: y = f(x), and its derivative df from x or from y. Written once, for CPU and GPU.
#pragma once
#include <cmath>

#include "autograd/cpu/vector_math.h"
#include "autograd/dispatch.h"

namespace sinkhorn::maps {

/// What `df` reads, and hence what the tape keeps.
enum class Keep { x, y };

/// Where the gradient check samples x.
struct Interval {
  double low, high;
};
template <Keep what>
struct Everywhere {
  static constexpr Keep keep = what;
  static constexpr Interval domain{-3, 3};
};
template <Keep what>
struct Positive {
  static constexpr Keep keep = what;
  static constexpr Interval domain{0.2, 3};
};

struct Exp : Everywhere<Keep::y> {
  static constexpr std::string_view name = "exp";
  template <class R>
  SINKHORN_HD static R f(R x) {
    return math::exp(x);
  }
  template <class R>
  SINKHORN_HD static R df(R y) {
    return y;
  }
};

struct Log : Positive<Keep::x> {
  static constexpr std::string_view name = "log";
  template <class R>
  SINKHORN_HD static R f(R x) {
    return std::log(x);
  }
  template <class R>
  SINKHORN_HD static R df(R x) {
    return 1 / x;
  }
};

struct Sqrt : Positive<Keep::y> {
  static constexpr std::string_view name = "sqrt";
  template <class R>
  SINKHORN_HD static R f(R x) {
    return std::sqrt(x);
  }
  template <class R>
  SINKHORN_HD static R df(R y) {
    return R(0.5) / y;
  }
};

struct Square : Everywhere<Keep::x> {
  static constexpr std::string_view name = "square";
  template <class R>
  SINKHORN_HD static R f(R x) {
    return x * x;
  }
  template <class R>
  SINKHORN_HD static R df(R x) {
    return 2 * x;
  }
};

struct Reciprocal : Positive<Keep::y> {
  static constexpr std::string_view name = "reciprocal";
  template <class R>
  SINKHORN_HD static R f(R x) {
    return 1 / x;
  }
  template <class R>
  SINKHORN_HD static R df(R y) {
    return -y * y;
  }
};

struct Abs : Everywhere<Keep::x> {
  static constexpr std::string_view name = "abs";
  template <class R>
  SINKHORN_HD static R f(R x) {
    return std::abs(x);
  }
  template <class R>
  SINKHORN_HD static R df(R x) {
    return R(x > 0) - R(x < 0);
  }
};

struct Tanh : Everywhere<Keep::y> {
  static constexpr std::string_view name = "tanh";
  template <class R>
  SINKHORN_HD static R f(R x) {
    return math::tanh(x);
  }
  template <class R>
  SINKHORN_HD static R df(R y) {
    return 1 - y * y;
  }
};

struct Sigmoid : Everywhere<Keep::y> {
  static constexpr std::string_view name = "sigmoid";
  template <class R>
  SINKHORN_HD static R f(R x) {
    return math::sigmoid(x);
  }
  template <class R>
  SINKHORN_HD static R df(R y) {
    return y * (1 - y);
  }
};

struct Relu : Everywhere<Keep::y> {
  static constexpr std::string_view name = "relu";
  template <class R>
  SINKHORN_HD static R f(R x) {
    return x < 0 ? R(0) : x;  // a NaN stays a NaN
  }
  template <class R>
  SINKHORN_HD static R df(R y) {
    return R(y > 0);
  }
};

struct LeakyRelu : Everywhere<Keep::y> {
  static constexpr std::string_view name = "leaky_relu";
  template <class R>
  SINKHORN_HD static R f(R x) {
    return x > 0 ? x : R(0.01) * x;
  }
  template <class R>
  SINKHORN_HD static R df(R y) {
    return y > 0 ? R(1) : R(0.01);
  }
};

struct Gelu : Everywhere<Keep::x> {
  static constexpr std::string_view name = "gelu";
  template <class R>
  SINKHORN_HD static R f(R x) {
    return math::gelu(x);
  }
  template <class R>
  SINKHORN_HD static R df(R x) {
    return math::gelu_slope(x);
  }
};

using All = TypeList<Exp, Log, Sqrt, Square, Reciprocal, Abs, Tanh, Sigmoid, Relu, LeakyRelu, Gelu>;

}  // namespace sinkhorn::maps
