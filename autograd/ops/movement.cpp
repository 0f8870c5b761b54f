#include "autograd/ops/movement.h"

#include "autograd/memory.h"
#include "autograd/ops/reduce.h"

namespace sinkhorn {
namespace {

Tensor gather(const Tensor& x, Shape shape, const StridedLoop<1>& loop) {
  Tensor y = x.like(shape);
  dispatch_any(x, [&]<class T>(auto space) { kernels::Gather<T>::forward(space, loop, x.data<T>(), y.data<T>()); });
  return y;
}

// Elements from .. from+count-1 of x along an axis become elements to .. of y, whose shape differs in that axis alone.
void copy_part(const Tensor& x, std::int64_t from, const Tensor& y, std::int64_t to, std::int64_t count, int axis) {
  const Around source(x.shape(), axis), target(y.shape(), axis);
  const std::int64_t row = source.after * std::int64_t(size_of(x.dtype()));
  dispatch_device(x, [&](auto space) {
    kernels::CopyBlocks::forward(space, source.before, count * row, x.raw() + from * row, source.extent * row,
                                 y.raw() + to * row, target.extent * row);
  });
}

// Along axis 0 a slice shares its rows.
Tensor slice_of(const Tensor& x, int axis, std::int64_t begin, std::int64_t count) {
  if (x.shape().normal(axis) == 0) return x.slice(begin, begin + count);
  Tensor y = x.like(x.shape().with(axis, count));
  copy_part(x, begin, y, 0, count, axis);
  return y;
}

Tensor padded(const Tensor& x, int axis, std::int64_t before, std::int64_t after) {
  const std::int64_t count = x.shape()[axis];
  Tensor y = Tensor::zeros(x.shape().with(axis, before + count + after), x.dtype(), x.device());
  copy_part(x, 0, y, before, count, axis);
  return y;
}

Tensor rotated(const Tensor& x, int axis, std::int64_t shift) {
  const std::int64_t count = x.shape()[axis];
  if (count == 0) return x;
  shift = (shift % count + count) % count;
  if (shift == 0) return x;
  Tensor y = x.like();
  copy_part(x, shift, y, 0, count - shift, axis);
  copy_part(x, 0, y, count - shift, shift, axis);
  return y;
}

std::function<Tensors(Draw&)> drawn(Shape shape) {
  return [=](Draw& draw) { return Tensors{draw.uniform(shape)}; };
}

}  // namespace

Tensor stretch(const Tensor& x, const Shape& shape) {
  if (broadcast_shape("broadcast_to", x.shape(), shape) != shape)
    fail("broadcast_to: ", x.shape(), " does not stretch to ", shape);
  return gather(x, shape, broadcast_loop<1>(shape, {x.shape()}));
}

namespace ops {

Output Reshape::forward(Saved& save, Inputs in) const {
  save.shapes = {in[0].shape()};
  return in[0].reshape(shape);
}

Tensors Reshape::backward(const Saved& saved, const Tensor& dy) const { return {dy.reshape(saved.shapes[0])}; }

std::vector<Case<Reshape>> Reshape::cases() {
  return {{"flatten", {Shape{-1}}, drawn({3, 4})}, {"split", {Shape{2, 3, 2}}, drawn({6, 2})}};
}

Output Permute::forward(Saved&, Inputs in) const {
  const Tensor& x = in[0];
  Shape shape = x.shape();
  StridedLoop<1> loop;
  std::vector<bool> named(axes.size(), false);
  bool each_once = int(axes.size()) == shape.rank();
  for (std::size_t k = 0; k < axes.size() && each_once; ++k) {
    const int axis = shape.normal(axes[k]);
    each_once = !named[axis];
    named[axis] = true;
    shape[int(k)] = x.shape()[axis];
    loop.push(x.shape()[axis], {x.shape().product(axis + 1, shape.rank())});
  }
  if (!each_once) fail(name, ": expected each axis of ", x.shape(), " once, got ", axes.size(), " axes");
  return gather(x, shape, loop);
}

Tensors Permute::backward(const Saved&, const Tensor& dy) const {
  Permute back{axes};
  for (std::size_t k = 0; k < axes.size(); ++k) back.axes[dy.shape().normal(axes[k])] = int(k);
  Saved unused;
  return {back.forward(unused, {{dy}}).y};
}

std::vector<Case<Permute>> Permute::cases() {
  return {{"transpose", {{1, 0}}, drawn({3, 4})},
          {"cycle of three", {{2, 0, 1}}, drawn({2, 3, 4})},
          {"heads", {{0, 2, 1, -1}}, drawn({2, 3, 2, 2})},
          {"nothing moves", {{0, 1}}, drawn({2, 3})}};
}

Output BroadcastTo::forward(Saved& save, Inputs in) const {
  save.shapes = {in[0].shape()};
  return stretch(in[0], shape);
}

Tensors BroadcastTo::backward(const Saved& saved, const Tensor& dy) const { return {sum_to(dy, saved.shapes[0])}; }

std::vector<Case<BroadcastTo>> BroadcastTo::cases() {
  return {{"rows", {{3, 4}}, drawn({4})},
          {"columns", {{3, 4}}, drawn({3, 1})},
          {"two groups of axes", {{2, 3, 2, 2}}, drawn({3, 1, 2})},
          {"number", {{2, 2}}, drawn({})}};
}

Output Slice::forward(Saved& save, Inputs in) const {
  const Shape& shape = in[0].shape();
  if (begin < 0 || begin > end || end > shape[axis])
    fail(name, ": ", begin, " .. ", end, " is outside axis ", axis, " of ", shape);
  save.shapes = {shape};
  return slice_of(in[0], axis, begin, end - begin);
}

Tensors Slice::backward(const Saved& saved, const Tensor& dy) const {
  if (saved.adds(0) && dy.shape().normal(axis) == 0) {
    const Tensor part = saved.into[0].slice(begin, end);
    dispatch(part, [&]<class T>(auto space) {
      kernels::Accumulate<T>::forward(space, part.count(), dy.data<T>(), part.data<T>());
    });
    return {saved.into[0]};
  }
  return {padded(dy, axis, begin, saved.shapes[0][axis] - end)};
}

std::vector<Case<Slice>> Slice::cases() {
  return {{"rows", {0, 1, 3}, drawn({4, 2})},
          {"columns", {-1, 0, 2}, drawn({3, 5})},
          {"middle axis", {1, 1, 2}, drawn({2, 3, 2})},
          {"empty", {0, 2, 2}, drawn({3, 2})}};
}

Output Pad::forward(Saved&, Inputs in) const {
  if (before < 0 || after < 0) fail(name, ": expected no negative counts, got ", before, " and ", after);
  return padded(in[0], axis, before, after);
}

Tensors Pad::backward(const Saved&, const Tensor& dy) const {
  return {slice_of(dy, axis, before, dy.shape()[axis] - before - after)};
}

std::vector<Case<Pad>> Pad::cases() {
  return {
      {"rows", {0, 1, 2}, drawn({3, 2})}, {"last axis", {-1, 2, 0}, drawn({2, 3})}, {"none", {0, 0, 0}, drawn({2})}};
}

Output Concat::forward(Saved& save, Inputs in) const {
  if (in.empty()) fail(name, ": nothing to concatenate");
  std::int64_t total = 0;
  for (const Tensor& x : in) {
    const Shape& first = in[0].shape();
    if (x.shape().rank() != first.rank() || x.shape().with(axis, 0) != first.with(axis, 0))
      fail(name, ": shapes ", first, " and ", x.shape(), " differ in more than axis ", axis);
    if (x.dtype() != in[0].dtype()) fail(name, ": dtypes differ: ", in[0].dtype(), " and ", x.dtype());
    save.shapes.push_back(x.shape());
    total += x.shape()[axis];
  }
  Tensor y = in[0].like(in[0].shape().with(axis, total));
  std::int64_t at = 0;
  for (const Tensor& x : in) {
    copy_part(x, 0, y, at, x.shape()[axis], axis);
    at += x.shape()[axis];
  }
  return y;
}

Tensors Concat::backward(const Saved& saved, const Tensor& dy) const {
  Tensors flows;
  std::int64_t at = 0;
  for (std::size_t k = 0; k < saved.shapes.size(); ++k) {
    const std::int64_t count = saved.shapes[k][axis];
    flows.push_back(saved.wants[k] ? slice_of(dy, axis, at, count) : Tensor());
    at += count;
  }
  return flows;
}

std::vector<Case<Concat>> Concat::cases() {
  const auto parts = [](const std::vector<Shape>& shapes) {
    return [=](Draw& draw) {
      Tensors tensors;
      for (const Shape& shape : shapes) tensors.push_back(draw.uniform(shape));
      return tensors;
    };
  };
  return {{"rows", {0}, parts({{2, 3}, {1, 3}, {3, 3}})},
          {"last axis", {-1}, parts({{2, 3}, {2, 1}})},
          {"one empty", {1}, parts({{2, 0}, {2, 2}})},
          {"alone", {0}, parts({{2}})}};
}

Output Rotate::forward(Saved&, Inputs in) const { return rotated(in[0], axis, shift); }

Tensors Rotate::backward(const Saved&, const Tensor& dy) const { return {rotated(dy, axis, -shift)}; }

std::vector<Case<Rotate>> Rotate::cases() {
  return {{"left", {0, 2}, drawn({5, 2})},
          {"right, more than once round", {1, -7}, drawn({2, 3, 2})},
          {"whole turn", {0, 4}, drawn({4})}};
}

Output EveryNth::forward(Saved& save, Inputs in) const {
  const Tensor& x = in[0];
  const Shape& shape = x.shape();
  if (width < 1 || first < 0 || first >= n || shape[axis] % (n * width) != 0)
    fail(name, ": cannot take piece ", first, " of every ", n, ", ", width, " wide, along axis ", axis, " of ", shape);
  save.shapes = {shape};
  Tensor y = x.like(shape.with(axis, shape[axis] / n));
  if (y.count() == 0) return y;
  const std::int64_t bytes = width * Around(shape, axis).after * std::int64_t(size_of(x.dtype()));
  dispatch_device(x, [&](auto space) {
    kernels::CopyBlocks::forward(space, std::int64_t(y.bytes()) / bytes, bytes, x.raw() + first * bytes, n * bytes,
                                 y.raw(), bytes);
  });
  return y;
}

Tensors EveryNth::backward(const Saved& saved, const Tensor& dy) const {
  const Shape& shape = saved.shapes[0];
  const Tensor dx = saved.adds(0) ? saved.into[0] : Tensor::zeros(shape, dy.dtype(), dy.device());
  if (dy.count() == 0) return {dx};
  const std::int64_t size = width * Around(shape, axis).after;
  dispatch(dy, [&]<class T>(auto space) {
    kernels::AddBlocks<T>::forward(space, dy.count() / size, size, dy.data<T>(), dx.data<T>() + first * size, n * size);
  });
  return {dx};
}

std::vector<Case<EveryNth>> EveryNth::cases() {
  return {{"odd rows", {0, 1, 1, 2}, drawn({4, 3})},
          {"pairs of columns", {-1, 2, 2, 3}, drawn({2, 12})},
          {"middle axis", {1, 2, 0, 2}, drawn({2, 4, 3})},
          {"all", {0, 2, 0, 1}, drawn({4})},
          {"no rows", {0, 1, 1, 2}, drawn({0, 3})}};
}

}  // namespace ops

Var reshape(const Var& x, Shape shape) { return apply(ops::Reshape{shape}, {x}); }
Var permute(const Var& x, std::vector<int> axes) { return apply(ops::Permute{std::move(axes)}, {x}); }
Var broadcast_to(const Var& x, Shape shape) { return apply(ops::BroadcastTo{shape}, {x}); }
Var slice(const Var& x, int axis, std::int64_t begin, std::int64_t end) {
  return apply(ops::Slice{axis, begin, end}, {x});
}
Var pad(const Var& x, int axis, std::int64_t before, std::int64_t after) {
  return apply(ops::Pad{axis, before, after}, {x});
}
Var concat(std::span<const Var> parts, int axis) { return apply(ops::Concat{axis}, parts); }
Var concat(std::initializer_list<Var> parts, int axis) { return apply(ops::Concat{axis}, parts); }
Var rotate(const Var& x, int axis, std::int64_t shift) { return apply(ops::Rotate{axis, shift}, {x}); }
Var every_nth(const Var& x, int axis, std::int64_t width, std::int64_t first, std::int64_t n) {
  return apply(ops::EveryNth{axis, width, first, n}, {x});
}

}  // namespace sinkhorn
