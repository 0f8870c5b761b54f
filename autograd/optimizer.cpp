#include "autograd/optimizer.h"

#include <cmath>
#include <vector>

namespace sinkhorn {

std::array<double, 3> adamw_numbers(const AdamW& adam, std::int64_t step, double lr) {
  if (step < 1) fail("adamw: steps are counted from 1, got ", step);
  return {1 - lr * adam.weight_decay, lr / (1 - std::pow(adam.beta1, double(step))),
          1 / std::sqrt(1 - std::pow(adam.beta2, double(step)))};
}

void adamw_step(const AdamW& adam, std::int64_t step, double lr, const Tensor& value, const Tensor& gradient,
                const Tensor& m, const Tensor& v, std::span<const Range> decayed, double gradient_scale,
                const Tensor& clip) {
  const std::array<double, 3> numbers = adamw_numbers(adam, step, lr);
  adamw_step(adam, Tensor::from(std::span<const double>(numbers), {3}).to(value.device()), value, gradient, m, v,
             decayed, gradient_scale, clip);
}

void adamw_step(const AdamW& adam, const Tensor& numbers, const Tensor& value, const Tensor& gradient, const Tensor& m,
                const Tensor& v, std::span<const Range> decayed, double gradient_scale, const Tensor& clip) {
  if (numbers.count() != 3 || numbers.dtype() != DType::f64 || numbers.device() != value.device())
    fail("adamw: the step's numbers must be f64 (3) on device ", value.device(), ", got ", numbers.dtype(), " ",
         numbers.shape(), " on device ", numbers.device());
  for (const Tensor& other : {gradient, m, v})
    if (other.shape() != value.shape() || other.dtype() != value.dtype())
      fail("adamw: the value is ", value.dtype(), " ", value.shape(), ", but a gradient or moment is ", other.dtype(),
           " ", other.shape());
  if (clip && (clip.count() != 1 || clip.dtype() != DType::f64 || clip.device() != value.device()))
    fail("adamw: the clip factor must be one f64 number on device ", value.device(), ", got ", clip.dtype(), " ",
         clip.shape(), " on device ", clip.device());
  std::vector<std::int64_t> borders;
  std::int64_t at = 0;
  for (const Range& range : decayed) {
    if (range.begin < at || range.end < range.begin || range.end > value.count())
      fail("adamw: range ", range.begin, " .. ", range.end, " overlaps another or leaves the ", value.count(),
           " elements");
    at = range.end;
    if (!borders.empty() && borders.back() == range.begin) {
      borders.back() = range.end;  // ranges that touch are one
    } else {
      borders.insert(borders.end(), {range.begin, range.end});
    }
  }
  const kernels::AdamWStep step{
      adam.beta1, adam.beta2, adam.eps, gradient_scale, numbers.data<double>(), clip.data_or_null<double>()};
  dispatch(value, [&]<class T>(auto space) {
    kernels::Optimizer<T>::adamw(space, step, borders, value.count(), value.data<T>(), gradient.data<T>(), m.data<T>(),
                                 v.data<T>());
  });
}

Tensor square_sum(const Tensors& tensors) {
  Tensor sum;
  for (const Tensor& x : tensors) {
    if (!x) continue;
    if (!sum) sum = Tensor::zeros({}, DType::f64, x.device());
    if (x.device() != sum.device())
      fail("global_norm: tensors on devices ", sum.device(), " and ", x.device(), "; use to(device)");
    dispatch(x, [&]<class T>(auto space) {
      kernels::Optimizer<T>::add_square_sum(space, x.count(), x.data<T>(), sum.data<double>());
    });
  }
  return sum ? sum : Tensor::zeros({}, DType::f64);
}

double global_norm(const Tensors& tensors) { return std::sqrt(square_sum(tensors).item()); }

Tensor clip_factor(const Tensor& known, double clip_norm) {
  if (known.count() < 1) fail("clip_factor: expected f64 (n), the last of it the square of the norm, got none");
  Tensor factor = known.like({});
  dispatch_device(known, [&](auto space) {
    kernels::ClipFactor::forward(space, known.count(), known.data<double>(), clip_norm, factor.data<double>());
  });
  return factor;
}

}  // namespace sinkhorn
