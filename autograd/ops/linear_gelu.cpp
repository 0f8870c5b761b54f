#include "autograd/ops/linear_gelu.h"

#include <algorithm>

#include "autograd/ops/elementwise.h"

namespace sinkhorn {
namespace ops {

// What the linear map keeps, and h behind it.
Output LinearGelu::forward(Saved& save, Inputs in) const {
  const Tensors inputs{in[0], in[1], in[2], {}};
  Saved of_linear{.tensors = {}, .wants = save.wants};
  of_linear.wants.push_back(false);
  const Tensor h = Linear{rounded}.forward(of_linear, inputs).y;
  const bool is_tracked = std::find(save.wants.begin(), save.wants.end(), true) != save.wants.end();
  const Tensor y = is_tracked ? h.like() : h;  // in place where nobody asks for h again
  dispatch(h, [&]<class T>(auto space) {
    kernels::Map<maps::Gelu, T>::forward(space, h.count(), h.data<T>(), y.data<T>());
  });
  save.tensors = std::move(of_linear.tensors);
  save.shapes = std::move(of_linear.shapes);
  save.tensors.push_back(h);
  return {y, {is_tracked ? h : Tensor()}};
}

Tensors LinearGelu::backward(const Saved& saved, Tensor dy) const {
  Saved of_linear = saved;
  const Tensor h = of_linear.tensors.back();
  of_linear.tensors.pop_back();
  of_linear.wants[2] = false;
  of_linear.wants.push_back(false);
  const Tensor &used = saved.tensors[1], &weight = saved.tensors[2] ? saved.tensors[2] : used;
  const std::int64_t out = weight.shape()[0], width = weight.shape()[1];
  const Tensor dbias = saved.place_of(2, weight, {out}), dh = dy.is_sole_owner() ? dy : dy.like();
  const kernels::LinearShape sizes{dy.shape().product(0, dy.shape().rank() - 1), width, out};
  dispatch_mixed(used, weight.dtype(), [&]<class T, class P>(auto space) {
    kernels::LinearGelu<T, P>::backward(space, sizes, h.data<T>(), dy.data<T>(), dh.data<T>(),
                                        kernels::flow_to<P>(saved, 2, dbias));
  });
  Tensors flows = Linear{}.backward(of_linear, dh);
  return {flows[0], flows[1], dbias};
}

std::vector<Case<LinearGelu>> LinearGelu::cases() {
  auto inputs = [](Shape x, std::int64_t out, bool bias) {
    return [=](Draw& draw) {
      return Tensors{draw.uniform(x), draw.uniform({out, x[-1]}), bias ? draw.uniform({out}) : Tensor()};
    };
  };
  return {
      {"matrix", {}, inputs({5, 3}, 4, true)},          {"no bias", {}, inputs({2, 3, 4}, 2, false)},
      {"no rows", {}, inputs({0, 3}, 2, true)},         {"a vector", {}, inputs({3}, 2, true)},
      {"x constant", {}, inputs({5, 3}, 4, true), {0}}, {"parameters constant", {}, inputs({5, 3}, 4, true), {1, 2}}};
}

}  // namespace ops

Var linear_gelu(const Var& x, const Var& weight, const Var& bias, const RoundedLinear& rounded) {
  return apply(ops::LinearGelu{rounded}, {x, weight, bias});
}

}  // namespace sinkhorn
