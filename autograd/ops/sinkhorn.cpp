#include "autograd/ops/sinkhorn.h"

#include <numeric>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/movement.h"
#include "autograd/ops/softmax.h"

namespace sinkhorn {
namespace ops {
namespace {

void check(const Shape& scores, std::int64_t iterations) {
  if (scores.rank() < 2) fail("sinkhorn: needs scores of shape (..., rows, columns), got ", scores);
  if (iterations < 1) fail("sinkhorn: needs at least 1 iteration, got ", iterations);
}

// The shape of x without its rows.
Shape columns_of(const Shape& x) {
  Shape columns(x.extents().first(std::size_t(x.rank() - 1)));
  columns[-1] = x[-1];
  return columns;
}

bool stretches(const Shape& from, const Shape& to) {
  if (from.rank() > to.rank()) return false;
  for (int axis = -1; axis >= -from.rank(); --axis)
    if (from[axis] != to[axis] && from[axis] != 1) return false;
  return true;
}

const bool* flags(const Tensor& open) { return open.data_or_null<bool>(); }

}  // namespace

Output Sinkhorn::forward(Saved& save, Inputs in) const {
  const Tensor& x = in[0];
  check(x.shape(), iterations);
  const Shape columns = columns_of(x.shape());
  if (in[1] && (in[1].dtype() != DType::boolean || !stretches(in[1].shape(), columns)))
    fail(name, ": which columns exist must be bool ", columns, " or stretch to that, got ", in[1].dtype(), " ",
         in[1].shape());
  const Tensor open = in[1] ? stretch(in[1], columns) : Tensor();
  const kernels::Matrices matrices(x.shape());
  const Tensor y = x.like();
  const Tensor potentials({matrices.count, iterations, matrices.rows + matrices.columns},
                          x.dtype() == DType::f64 ? DType::f64 : DType::f32, x.device());
  dispatch(x, [&]<class T>(auto space) {
    kernels::Sinkhorn<T>::forward(space, matrices, iterations, x.data<T>(), flags(open), y.data<T>(),
                                  potentials.data<Real<T>>());
  });
  save.tensors = {x, open, potentials};
  return y;
}

Tensors Sinkhorn::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &x = saved.tensors[0], &open = saved.tensors[1], &potentials = saved.tensors[2];
  const Tensor dx = x.like();
  dispatch(x, [&]<class T>(auto space) {
    kernels::Sinkhorn<T>::backward(space, kernels::Matrices(x.shape()), iterations, x.data<T>(), flags(open),
                                   potentials.data<Real<T>>(), dy.data<T>(), dx.data<T>());
  });
  return {dx, {}};
}

std::vector<Case<Sinkhorn>> Sinkhorn::cases() {
  auto inputs = [](Shape x) { return [=](Draw& draw) { return Tensors{draw.uniform(x), {}}; }; };
  return {{"square", {5}, inputs({2, 4, 4})},
          {"more rows than columns", {3}, inputs({5, 3})},
          {"more columns than rows", {3}, inputs({3, 5})},
          {"one iteration", {1}, inputs({3, 3})},
          {"one row", {2}, inputs({1, 4})},
          {"many iterations of far scores",
           {20},
           [](Draw& draw) {
             return Tensors{draw.uniform({4, 4}, -8, 8), {}};
           }},
          {"closed columns",
           {4},
           [](Draw& draw) {
             return Tensors{draw.uniform({4, 3, 5}), draw.mask({4, 5}, 0.6)};
           }},
          {"one mask for all",
           {4},
           [](Draw& draw) {
             const std::vector<char> open{1, 0, 1, 1};
             Tensor mask({4}, DType::boolean);
             std::copy(open.begin(), open.end(), mask.data<bool>());
             return Tensors{draw.uniform({2, 3, 4}), mask};
           }},
          {"no column open",
           {2},
           [](Draw& draw) {
             return Tensors{draw.uniform({2, 3, 3}), Tensor::zeros({2, 3}, DType::boolean)};
           }},
          {"no rows", {2}, inputs({2, 0, 3})}};
}

}  // namespace ops

Var sinkhorn(const Var& log_scores, const Tensor& columns, std::int64_t iterations) {
  return apply(ops::Sinkhorn{iterations}, {log_scores, columns});
}

Var composed_sinkhorn(const Var& log_scores, std::int64_t iterations) {
  ops::check(log_scores.shape(), iterations);
  auto normalised = [](const Var& z) { return z - reshape(log_sum_exp(z), z.shape().with(-1, 1)); };
  std::vector<int> swapped(std::size_t(log_scores.shape().rank()));
  std::iota(swapped.begin(), swapped.end(), 0);
  std::swap(swapped.end()[-1], swapped.end()[-2]);
  Var z = log_scores;
  for (std::int64_t i = 0; i < iterations; ++i) z = permute(normalised(permute(normalised(z), swapped)), swapped);
  return exp(z);
}

}  // namespace sinkhorn
