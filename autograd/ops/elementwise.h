// Ops that treat every element alike.
#pragma once
#include "autograd/tape.h"

namespace sinkhorn {
namespace kernels {

template <class F, class T>
struct Map {
  static void forward(Cpu, std::int64_t count, const T* x, T* y);
  static void backward(Cpu, std::int64_t count, const T* x, const T* y, const T* dy, T* dx);
};

}  // namespace kernels

namespace ops {

/// y = F::f(x) for one of `maps::All`.      dx = F::df(x, y) * dy
template <class F>
struct Map {
  static constexpr std::string_view name = F::name;
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Map>> cases();
};

}  // namespace ops

Var exp(const Var& x);

}  // namespace sinkhorn
