#include "autograd/ops/reduce.h"

#include "autograd/ops/elementwise.h"
#include "autograd/ops/movement.h"

namespace sinkhorn {

namespace {

Tensor sum_around(const Tensor& x, Around around, Shape shape) {
  Tensor y = x.like(shape);
  dispatch(x, [&]<class T>(auto space) { kernels::Sum<T>::forward(space, around, x.data<T>(), y.data<T>()); });
  return y;
}

}  // namespace

Tensor sum_to(const Tensor& x, const Shape& shape) {
  const int added = x.shape().rank() - shape.rank();
  const auto kept = [&](int axis) { return axis >= added && shape[axis - added] == x.shape()[axis]; };
  // Neighbouring axes are summed together: (before, the axes that go, after), from the last such group on.
  Tensor y = x;
  for (int end = x.shape().rank(); end > 0;) {
    int begin = end - 1;
    if (kept(begin)) {
      end = begin;
      continue;
    }
    while (begin > 0 && !kept(begin - 1)) --begin;
    Shape summed = y.shape();
    for (int axis = begin; axis < end; ++axis) summed[axis] = 1;
    const Shape flat{x.shape().product(0, begin), x.shape().product(begin, end), summed.product(end, summed.rank())};
    y = sum_around(y, Around(flat, 1), summed);
    end = begin;
  }
  return y.reshape(shape);
}

namespace ops {

Output Sum::forward(Saved& save, Inputs in) const {
  save.shapes = {in[0].shape()};
  return sum_around(in[0], Around(in[0].shape(), axis), in[0].shape().with(axis, 1));
}

Tensors Sum::backward(const Saved& saved, const Tensor& dy) const { return {stretch(dy, saved.shapes[0])}; }

std::vector<Case<Sum>> Sum::cases() {
  const auto drawn = [](Shape shape) { return [=](Draw& draw) { return Tensors{draw.uniform(shape)}; }; };
  return {{"last axis", {-1}, drawn({2, 3, 4})},
          {"middle axis", {1}, drawn({2, 3, 4})},
          {"several blocks of rows", {0}, drawn({70, 3})},
          {"extent 1", {0}, drawn({1, 3})},
          {"empty axis", {0}, drawn({0, 3})}};
}

Output Max::forward(Saved& save, Inputs in) const {
  const Tensor& x = in[0];
  const Shape shape = x.shape().with(axis, 1);
  if (x.shape()[axis] == 0) fail(name, ": axis ", axis, " of ", x.shape(), " is empty and has no largest element");
  Tensor y = x.like(shape), index(shape, DType::i32, x.device());
  dispatch(x, [&]<class T>(auto space) {
    kernels::Max<T>::forward(space, Around(x.shape(), axis), x.data<T>(), y.data<T>(), index.data<std::int32_t>());
  });
  save.tensors = {index};
  save.shapes = {x.shape()};
  return y;
}

Tensors Max::backward(const Saved& saved, const Tensor& dy) const {
  Tensor dx = dy.like(saved.shapes[0]);
  dispatch(dy, [&]<class T>(auto space) {
    kernels::Max<T>::backward(space, Around(dx.shape(), axis), saved.tensors[0].data<std::int32_t>(), dy.data<T>(),
                              dx.data<T>());
  });
  return {dx};
}

std::vector<Case<Max>> Max::cases() {
  const auto drawn = [](Shape shape) { return [=](Draw& draw) { return Tensors{draw.uniform(shape)}; }; };
  return {{"last axis", {-1}, drawn({3, 5})}, {"middle axis", {1}, drawn({2, 4, 3})}, {"extent 1", {0}, drawn({1, 3})}};
}

Output CumulativeMean::forward(Saved& save, Inputs in) const {
  const Tensor &x = in[0], &allowed = in[1];
  if (x.shape().rank() < 2) fail(name, ": needs x (..., T, d), got ", x.shape());
  if (allowed && allowed.shape() != Shape(x.shape().extents().first(std::size_t(x.shape().rank() - 1))))
    fail(name, ": the mask ", allowed.shape(), " does not have the shape of x ", x.shape(), " less its last axis");
  Tensor y = x.like();
  dispatch(x, [&]<class T>(auto space) {
    kernels::CumulativeMean<T>::forward(space, Around(x.shape(), -2), x.data<T>(), allowed.data_or_null<bool>(),
                                        y.data<T>());
  });
  save.tensors = {allowed};
  return y;
}

Tensors CumulativeMean::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor& allowed = saved.tensors[0];
  Tensor dx = dy.like();
  dispatch(dy, [&]<class T>(auto space) {
    kernels::CumulativeMean<T>::backward(space, Around(dy.shape(), -2), allowed.data_or_null<bool>(), dy.data<T>(),
                                         dx.data<T>());
  });
  return {dx, {}};
}

std::vector<Case<CumulativeMean>> CumulativeMean::cases() {
  const auto drawn = [](Shape x, double probability) {
    return [=](Draw& draw) {
      const Shape times(x.extents().first(std::size_t(x.rank() - 1)));
      return Tensors{draw.uniform(x), probability < 1 ? draw.mask(times, probability) : Tensor()};
    };
  };
  return {{"plain", {}, drawn({2, 5, 3}, 1)},
          {"masked", {}, drawn({3, 6, 2}, 0.6)},
          {"nothing allowed", {}, drawn({1, 4, 2}, 0)},
          {"one moment, two leading axes", {}, drawn({2, 2, 1, 3}, 1)}};
}

}  // namespace ops

namespace {

Shape without(const Shape& shape, int axis) {
  std::vector<std::int64_t> extents(shape.extents().begin(), shape.extents().end());
  extents.erase(extents.begin() + shape.normal(axis));
  return Shape(std::span<const std::int64_t>(extents));
}

Var drop_axis(const Var& y, int axis, bool keep) { return keep ? y : reshape(y, without(y.shape(), axis)); }

double reciprocal_of_extent(const Var& x, std::int64_t extent) {
  if (extent == 0) fail("mean: nothing to average in shape ", x.shape());
  return 1.0 / double(extent);
}

}  // namespace

Var sum(const Var& x, int axis, bool keep) { return drop_axis(apply(ops::Sum{axis}, {x}), axis, keep); }
Var mean(const Var& x, int axis, bool keep) {
  return scale(sum(x, axis, keep), reciprocal_of_extent(x, x.shape()[axis]));
}
Var max(const Var& x, int axis, bool keep) { return drop_axis(apply(ops::Max{axis}, {x}), axis, keep); }

Var sum(const Var& x) { return sum(reshape(x, {x.value.count()}), 0); }
Var mean(const Var& x) { return scale(sum(x), reciprocal_of_extent(x, x.value.count())); }

Var masked_mean(const Var& x, const Tensor& allowed) {
  if (x.shape().rank() < 2 || allowed.shape() != without(x.shape(), -1))
    fail("masked_mean: expected x (..., T, d) and a mask (..., T), got ", x.shape(), " and ", allowed.shape());
  const Var counts = sum(Var(allowed.to(DType::f64)), -1, true), at_least_1 = scale(relu(scale(counts, 1, -1)), 1, 1);
  const Tensor rows = allowed.reshape(x.shape().with(-1, 1));
  return sum(mask_fill(x, rows, 0), -2) * cast(reciprocal(at_least_1), x.value.dtype());
}

Var cumulative_mean(const Var& x, const Tensor& allowed) { return apply(ops::CumulativeMean{}, {x, allowed}); }

}  // namespace sinkhorn
