#include "autograd/ops/softmax.h"

namespace sinkhorn {
namespace ops {

Output Softmax::forward(Saved& save, Inputs in) const {
  const Tensor &x = in[0], &allowed = in[1];
  if (x.shape().rank() == 0) fail("softmax: needs a last axis, got shape ", x.shape());
  if (allowed && allowed.shape() != x.shape())
    fail("softmax: the mask ", allowed.shape(), " does not have the shape of x ", x.shape());
  Tensor y = x.like();
  dispatch(x, [&]<class T>(auto space) {
    kernels::Softmax<T>::forward(space, kernels::Rows(x.shape()), x.data<T>(), allowed ? allowed.data<bool>() : nullptr,
                                 y.data<T>());
  });
  save.tensors = {y};
  return y;
}

Tensors Softmax::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor& y = saved.tensors[0];
  Tensor dx = y.like();
  dispatch(y, [&]<class T>(auto space) {
    kernels::Softmax<T>::backward(space, kernels::Rows(y.shape()), y.data<T>(), dy.data<T>(), dx.data<T>());
  });
  return {dx, {}};
}

std::vector<Case<Softmax>> Softmax::cases() {
  return {{"rows",
           {},
           [](Draw& draw) {
             return Tensors{draw.uniform({3, 5}), {}};
           }},
          {"one column",
           {},
           [](Draw& draw) {
             return Tensors{draw.uniform({4, 1}), {}};
           }},
          {"masked", {}, [](Draw& draw) {
             return Tensors{draw.uniform({6, 5}), draw.mask({6, 5}, 0.4)};
           }}};
}

}  // namespace ops

Var softmax(const Var& x, const Tensor& allowed) { return apply(ops::Softmax{}, {x, allowed}); }

}  // namespace sinkhorn
