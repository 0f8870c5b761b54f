#include "autograd/ops/elementwise.h"

namespace sinkhorn {
namespace ops {

template <class F>
Output Map<F>::forward(Saved& save, Inputs in) const {
  const Tensor& x = in[0];
  Tensor y = x.like();
  dispatch(x, [&]<class T>(auto space) { kernels::Map<F, T>::forward(space, x.count(), x.data<T>(), y.data<T>()); });
  save.tensors = {x, y};
  return y;
}

template <class F>
Tensors Map<F>::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &x = saved.tensors[0], &y = saved.tensors[1];
  Tensor dx = x.like();
  dispatch(x, [&]<class T>(auto space) {
    kernels::Map<F, T>::backward(space, x.count(), x.data<T>(), y.data<T>(), dy.data<T>(), dx.data<T>());
  });
  return {dx};
}

template <class F>
std::vector<Case<Map<F>>> Map<F>::cases() {
  return {{"matrix", {}, [](Draw& draw) { return Tensors{draw.uniform({3, 4}, F::domain.low, F::domain.high)}; }}};
}

}  // namespace ops

template struct ops::Map<maps::Exp>;
Var exp(const Var& x) { return apply(ops::Map<maps::Exp>{}, {x}); }

}  // namespace sinkhorn
