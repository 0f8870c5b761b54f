#include "autograd/ops/softmax.h"

namespace sinkhorn {
namespace ops {
namespace {

void check(std::string_view name, const Tensor& x, const Tensor& allowed) {
  if (x.shape().rank() == 0) fail(name, ": needs a last axis, got shape ", x.shape());
  if (allowed && (allowed.shape() != x.shape() || allowed.dtype() != DType::boolean))
    fail(name, ": the mask must be bool ", x.shape(), ", got ", allowed.dtype(), " ", allowed.shape());
}

const bool* mask(const Tensor& allowed) { return allowed.data_or_null<bool>(); }

}  // namespace

Output Softmax::forward(Saved& save, Inputs in) const {
  const Tensor &x = in[0], &allowed = in[1];
  check(name, x, allowed);
  Tensor y = x.like();
  dispatch(x, [&]<class T>(auto space) {
    kernels::Softmax<T>::forward(space, kernels::Rows(x.shape()), x.data<T>(), mask(allowed), y.data<T>());
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

Output LogSoftmax::forward(Saved& save, Inputs in) const {
  const Tensor& x = in[0];
  check(name, x, {});
  const Tensor y = x.like();
  dispatch(x, [&]<class T>(auto space) {
    kernels::LogSoftmax<T>::forward(space, kernels::Rows(x.shape()), x.data<T>(), y.data<T>());
  });
  save.tensors = {y};
  return y;
}

Tensors LogSoftmax::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor& y = saved.tensors[0];
  const Tensor dx = y.like();
  dispatch(y, [&]<class T>(auto space) {
    kernels::LogSoftmax<T>::backward(space, kernels::Rows(y.shape()), y.data<T>(), dy.data<T>(), dx.data<T>());
  });
  return {dx};
}

std::vector<Case<LogSoftmax>> LogSoftmax::cases() {
  auto inputs = [](Shape x) { return [=](Draw& draw) { return Tensors{draw.uniform(x)}; }; };
  return {{"rows", {}, inputs({2, 3, 5})}, {"one column", {}, inputs({4, 1})}, {"no rows", {}, inputs({0, 3})}};
}

Output LogSumExp::forward(Saved& save, Inputs in) const {
  const Tensor &x = in[0], &allowed = in[1];
  check(name, x, allowed);
  const Tensor y = x.like(Shape(x.shape().extents().first(std::size_t(x.shape().rank() - 1))));
  dispatch(x, [&]<class T>(auto space) {
    kernels::LogSumExp<T>::forward(space, kernels::Rows(x.shape()), x.data<T>(), mask(allowed), y.data<T>());
  });
  save.tensors = {x, allowed};
  return y;
}

Tensors LogSumExp::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &x = saved.tensors[0], &allowed = saved.tensors[1];
  const Tensor dx = x.like();
  dispatch(x, [&]<class T>(auto space) {
    kernels::LogSumExp<T>::backward(space, kernels::Rows(x.shape()), x.data<T>(), mask(allowed), dy.data<T>(),
                                    dx.data<T>());
  });
  return {dx, {}};
}

std::vector<Case<LogSumExp>> LogSumExp::cases() {
  auto inputs = [](Shape x, bool masked) {
    return [=](Draw& draw) {
      Tensors tensors{draw.uniform(x), masked ? draw.mask(x, 0.4) : Tensor()};
      if (masked)  // -inf has no differences: each row keeps an entry
        for (std::int64_t r = 0; r < x.count(); r += x[-1]) tensors[1].data<bool>()[r] = true;
      return tensors;
    };
  };
  return {{"rows", {}, inputs({2, 3, 5}, false)},
          {"masked", {}, inputs({6, 5}, true)},
          {"one column", {}, inputs({4, 1}, false)},
          {"a vector", {}, inputs({6}, false)},
          {"no rows", {}, inputs({0, 3}, false)}};
}

}  // namespace ops

Var softmax(const Var& x, const Tensor& allowed) { return apply(ops::Softmax{}, {x, allowed}); }
Var log_softmax(const Var& x) { return apply(ops::LogSoftmax{}, {x}); }
Var log_sum_exp(const Var& x, const Tensor& allowed) { return apply(ops::LogSumExp{}, {x, allowed}); }

}  // namespace sinkhorn
