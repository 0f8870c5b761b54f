// Functions of one number: y = f(x), with df = f'(x) given x and y. Written once, for CPU and GPU.
#pragma once
#include <cmath>

#include "autograd/dispatch.h"

namespace sinkhorn::maps {

/// Where the gradient check samples x.
struct Interval {
  double low = -2, high = 2;
};

struct Exp {
  static constexpr std::string_view name = "exp";
  static constexpr Interval domain{};
  template <class R>
  SINKHORN_HD static R f(R x) {
    return std::exp(x);
  }
  template <class R>
  SINKHORN_HD static R df(R, R y) {
    return y;
  }
};

using All = TypeList<Exp>;

}  // namespace sinkhorn::maps
