#include "autograd/ops/layer_norm.h"

namespace sinkhorn {
namespace ops {

Output LayerNorm::forward(Saved& save, Inputs in) const {
  const Tensor &x = in[0], &gamma = in[1], &beta = in[2];
  if (x.shape().rank() == 0) fail("layer_norm: needs a last axis, got shape ", x.shape());
  const std::int64_t width = x.shape()[-1], rows = x.shape().product(0, x.shape().rank() - 1);
  for (const Tensor* affine : {&gamma, &beta})
    if (affine->shape() != Shape{width} || affine->dtype() != x.dtype())
      fail("layer_norm: gamma and beta of x ", x.shape(), " ", x.dtype(), " must be ", Shape{width}, " ", x.dtype(),
           ", got ", affine->shape(), " ", affine->dtype());
  const DType as = stored.value_or(x.dtype());
  if (as != x.dtype() && !(x.dtype() == DType::f32 && as == DType::bf16))
    fail("layer_norm: a result in ", as, " of x in ", x.dtype(), "; it can be x's type, or bf16 of f32");
  const Tensor y(x.shape(), as, x.device());
  Tensor mean, rstd;
  dispatch_mixed(y, x.dtype(), [&]<class Y, class T>(auto space) {
    using R = Real<T>;
    mean = Tensor({rows}, dtype_of<R>, x.device());
    rstd = mean.like();
    kernels::LayerNorm<T, Y>::forward(space, rows, width, R(eps), x.data<T>(), gamma.data<T>(), beta.data<T>(),
                                      y.data<Y>(), mean.data<R>(), rstd.data<R>());
  });
  save.tensors = {x, gamma, mean, rstd};
  return y;
}

Tensors LayerNorm::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &x = saved.tensors[0], &gamma = saved.tensors[1], &mean = saved.tensors[2], &rstd = saved.tensors[3];
  // The kernels write all three, whoever wants them.
  const auto place = [&](std::size_t k, const Tensor& like) { return saved.adds(k) ? saved.into[k] : like.like(); };
  const Tensor dx = place(0, x), dgamma = place(1, gamma), dbeta = place(2, gamma);
  dispatch_mixed(dy, x.dtype(), [&]<class Y, class T>(auto space) {
    using R = Real<T>;
    kernels::LayerNorm<T, Y>::backward(space, mean.count(), gamma.count(), x.data<T>(), gamma.data<T>(), mean.data<R>(),
                                       rstd.data<R>(), dy.data<Y>(), kernels::flow_to<T>(saved, 0, dx),
                                       kernels::flow_to<T>(saved, 1, dgamma), kernels::flow_to<T>(saved, 2, dbeta));
  });
  return {dx, dgamma, dbeta};
}

std::vector<Case<LayerNorm>> LayerNorm::cases() {
  auto inputs = [](Shape x) {
    return [=](Draw& draw) { return Tensors{draw.uniform(x), draw.uniform({x[-1]}), draw.uniform({x[-1]})}; };
  };
  return {{"rows", {}, inputs({4, 5})},       {"deep", {}, inputs({2, 3, 4})},
          {"one row", {}, inputs({1, 6})},    {"no rows", {}, inputs({0, 3})},
          {"many rows", {}, inputs({70, 3})}, {"large eps", {0.5, {}}, inputs({3, 4})}};
}

}  // namespace ops

Var layer_norm(const Var& x, const Var& gamma, const Var& beta, double eps, std::optional<DType> stored) {
  return apply(ops::LayerNorm{eps, stored}, {x, gamma, beta});
}

}  // namespace sinkhorn
