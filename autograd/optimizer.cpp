#include "autograd/optimizer.h"

#include <cmath>

namespace sinkhorn {

void adamw_step(const AdamW& adam, std::int64_t step, double lr, const Tensor& value, const Tensor& gradient,
                const Tensor& m, const Tensor& v, std::span<const Range> decayed, double gradient_scale) {
  if (step < 1) fail("adamw: steps are counted from 1, got ", step);
  for (const Tensor& other : {gradient, m, v})
    if (other.shape() != value.shape() || other.dtype() != value.dtype())
      fail("adamw: the value is ", value.dtype(), " ", value.shape(), ", but a gradient or moment is ", other.dtype(),
           " ", other.shape());
  kernels::AdamWStep numbers{adam.beta1, adam.beta2, adam.eps, gradient_scale, 1, 0, 0};
  numbers.rate = lr / (1 - std::pow(adam.beta1, double(step)));
  numbers.root = 1 / std::sqrt(1 - std::pow(adam.beta2, double(step)));
  const auto update = [&](std::int64_t begin, std::int64_t end, double keep) {
    if (begin == end) return;
    numbers.keep = keep;
    dispatch(value, [&]<class T>(auto space) {
      kernels::Optimizer<T>::adamw(space, numbers, end - begin, value.data<T>() + begin, gradient.data<T>() + begin,
                                   m.data<T>() + begin, v.data<T>() + begin);
    });
  };
  std::int64_t at = 0;
  for (std::size_t k = 0; k < decayed.size();) {
    const std::int64_t begin = decayed[k].begin;
    std::int64_t end = begin;
    for (; k < decayed.size() && decayed[k].begin == end; ++k) {  // ranges that touch are one pass
      if (begin < at || decayed[k].end < end || decayed[k].end > value.count())
        fail("adamw: range ", decayed[k].begin, " .. ", decayed[k].end, " overlaps another or leaves the ",
             value.count(), " elements");
      end = decayed[k].end;
    }
    update(at, begin, 1);
    update(begin, end, 1 - lr * adam.weight_decay);
    at = end;
  }
  update(at, value.count(), 1);
}

double global_norm(const Tensors& tensors) {
  double sum = 0;
  for (const Tensor& x : tensors)
    if (x)
      dispatch(x,
               [&]<class T>(auto space) { sum += kernels::Optimizer<T>::square_sum(space, x.count(), x.data<T>()); });
  return std::sqrt(sum);
}

}  // namespace sinkhorn
