#include "autograd/ops/matmul.h"

#include <algorithm>

#include "autograd/ops/movement.h"

namespace sinkhorn {
namespace ops {
namespace {

// y = op(a) op(b) as products. Where b is shared and the rows of a follow one another, they are one tall product.
kernels::Products products_of(const Shape& a, const Shape& b, bool transpose_a, bool transpose_b) {
  kernels::Products p{.batch = a.product(0, a.rank() - 2),
                      .m = a[transpose_a ? -1 : -2],
                      .n = b[transpose_b ? -2 : -1],
                      .k = a[transpose_a ? -2 : -1],
                      .transpose_a = transpose_a,
                      .transpose_b = transpose_b,
                      .a_step = 0,
                      .b_step = 0,
                      .c_step = 0};
  if (b.rank() == 2 && !transpose_a) {
    p.m *= p.batch;
    p.batch = 1;
  }
  p.a_step = p.m * p.k;
  p.b_step = b.rank() == 2 ? 0 : p.k * p.n;
  p.c_step = p.m * p.n;
  return p;
}

void check(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b) {
  if (a.dtype() != b.dtype()) fail("matmul: dtypes differ: lhs ", a.dtype(), ", rhs ", b.dtype());
  const Shape &s = a.shape(), &t = b.shape();
  if (s.rank() < 2 || t.rank() < 2) fail("matmul: needs two axes or more, got lhs ", s, " and rhs ", t);
  if (s[transpose_a ? -2 : -1] != t[transpose_b ? -1 : -2])
    fail("matmul: inner extents differ: lhs ", s, " has ", s[transpose_a ? -2 : -1],
         transpose_a ? " rows (transposed)" : " columns", ", rhs ", t, " has ", t[transpose_b ? -1 : -2],
         transpose_b ? " columns (transposed)" : " rows");
  if (t.rank() != 2 && s.with(-2, 0).with(-1, 0) != t.with(-2, 0).with(-1, 0))
    fail("matmul: leading axes differ: lhs ", s, ", rhs ", t, "; make them equal or give one matrix as rhs");
}

void multiply(const kernels::Products& products, const Tensor& a, const Tensor& b, const Tensor& c) {
  dispatch(c, [&]<class T>(auto space) {
    kernels::Matmul<T>::forward(space, products, a.data<T>(), b.data<T>(), c.data<T>());
  });
}

}  // namespace

Output Matmul::forward(Saved& save, Inputs in) const {
  const Tensor &a = in[0], &b = in[1];
  check(a, b, transpose_a, transpose_b);
  const Shape rows = a.shape().with(-2, a.shape()[transpose_a ? -1 : -2]);
  const Tensor y = a.like(rows.with(-1, b.shape()[transpose_b ? -2 : -1]));
  multiply(products_of(a.shape(), b.shape(), transpose_a, transpose_b), a, b, y);
  save.tensors = {save.wants[1] ? a : Tensor(), b};
  return y;
}

// With A' = op(A), B' = op(B): dA' = dy B'^T and dB' = A'^T dy, each transposed once more where op transposes.
Tensors Matmul::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &a = saved.tensors[0], &b = saved.tensors[1];
  const std::int64_t m = dy.shape()[-2], k = b.shape()[transpose_b ? -1 : -2];
  const Shape a_shape = dy.shape().with(-2, transpose_a ? k : m).with(-1, transpose_a ? m : k);
  const kernels::Products p = products_of(a_shape, b.shape(), transpose_a, transpose_b);
  Tensor da, db;
  if (saved.wants[0]) {
    da = b.like(a_shape);
    if (transpose_a) {
      multiply({p.batch, p.k, p.m, p.n, transpose_b, true, p.b_step, p.c_step, p.a_step}, b, dy, da);
    } else {
      multiply({p.batch, p.m, p.k, p.n, false, !transpose_b, p.c_step, p.b_step, p.a_step}, dy, b, da);
    }
  }
  if (saved.wants[1]) {
    db = b.like();
    if (transpose_b) {
      multiply({p.batch, p.n, p.k, p.m, true, transpose_a, p.c_step, p.a_step, p.b_step}, dy, a, db);
    } else {
      multiply({p.batch, p.k, p.n, p.m, !transpose_a, false, p.a_step, p.c_step, p.b_step}, a, dy, db);
    }
  }
  return {da, db};
}

std::vector<Case<Matmul>> Matmul::cases() {
  auto inputs = [](Shape a, Shape b) { return [=](Draw& draw) { return Tensors{draw.uniform(a), draw.uniform(b)}; }; };
  return {{"matrices", {}, inputs({3, 4}, {4, 5})},
          {"batched", {}, inputs({2, 3, 2, 4}, {2, 3, 4, 3})},
          {"lhs transposed", {true, false}, inputs({2, 4, 3}, {2, 4, 5})},
          {"rhs transposed", {false, true}, inputs({2, 3, 4}, {2, 5, 4})},
          {"both transposed", {true, true}, inputs({2, 4, 3}, {2, 5, 4})},
          {"shared rhs", {}, inputs({2, 3, 4}, {4, 5})},
          {"shared rhs, both transposed", {true, true}, inputs({2, 4, 3}, {5, 4})},
          {"shared rhs, lhs transposed", {true, false}, inputs({2, 4, 3}, {4, 5})},
          {"one row, one column", {}, inputs({1, 1}, {1, 1})},
          {"rhs constant", {false, true}, inputs({2, 3, 4}, {2, 5, 4}), {1}},
          {"lhs constant", {false, true}, inputs({2, 3, 4}, {2, 5, 4}), {0}}};
}

namespace {

// Which inputs of Linear are weights.
std::vector<std::size_t> weights_of(std::size_t inputs) {
  std::vector<std::size_t> places{1};
  for (std::size_t k = 4; k < inputs; ++k) places.push_back(k);
  return places;
}

bool learns(const Saved& saved) {
  const std::vector<std::size_t> weights = weights_of(saved.wants.size());
  return std::any_of(weights.begin(), weights.end(), [&](std::size_t k) { return saved.wants[k]; });
}

// All weights as one: where they are, if they lie behind each other there.
Tensor all_weights(Inputs in) {
  Tensors weights;
  for (const std::size_t k : weights_of(in.size())) {
    if (in[k].shape().rank() != 2 || in[k].shape()[1] != in[1].shape()[-1] || in[k].dtype() != in[1].dtype())
      fail("linear: weight ", in[k].dtype(), " ", in[k].shape(), " does not fit below ", in[1].dtype(), " ",
           in[1].shape());
    weights.push_back(in[k]);
  }
  if (Tensor all = Tensor::adjoining(weights)) return all;
  return concat(std::vector<Var>(weights.begin(), weights.end()), 0).value;
}

}  // namespace

LinearOperands::LinearOperands(std::string_view op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                               const RoundedLinear& rounded, bool takes_bias) {
  if (x.shape().rank() < 1 || weight.shape().rank() != 2)
    fail(op, ": needs x (..., in) and weight (out, in), got ", x.shape(), " and ", weight.shape());
  const std::int64_t out = weight.shape()[0], width = weight.shape()[1];
  if (x.shape()[-1] != width)
    fail(op, ": x ", x.shape(), " has ", x.shape()[-1], " columns, weight ", weight.shape(), " takes ", width);
  if (bias && bias.shape() != Shape{out})
    fail(op, ": bias ", bias.shape(), " does not fit weight ", weight.shape(), "; expected ", Shape{out});
  const bool mixed = x.dtype() == DType::bf16 && weight.dtype() == DType::f32;
  if ((x.dtype() != weight.dtype() && !mixed) || (bias && bias.dtype() != weight.dtype()))
    fail(op, ": dtypes differ: x ", x.dtype(), ", weight ", weight.dtype(), ", bias ", bias ? bias.dtype() : x.dtype());
  const auto operand = [&](const Tensor& parameter, const Tensor& copy, const char* what) {
    if (!mixed || !parameter) return parameter;
    if (!copy) return parameter.to(x.dtype());
    if (copy.shape() != parameter.shape() || copy.dtype() != x.dtype())
      fail(op, ": the rounded ", what, " is ", copy.dtype(), " ", copy.shape(), ", expected ", x.dtype(), " ",
           parameter.shape());
    return copy;
  };
  this->weight = operand(weight, rounded.weight, "weight");
  if (takes_bias) this->bias = operand(bias, rounded.bias, "bias");
  sizes = {x.shape().product(0, x.shape().rank() - 1), width, out};
}

Output Linear::forward(Saved& save, Inputs in) const {
  const Tensor &x = in[0], &bias = in[2], &onto = in[3], weight = in.size() > 4 ? all_weights(in) : in[1];
  // Added to a residual, the bias stays in full.
  const LinearOperands used(name, x, weight, bias, rounded, !onto);
  const Shape shape = x.shape().with(-1, used.sizes.out);
  if (onto && (onto.shape() != shape || onto.dtype() != weight.dtype()))
    fail("linear: the residual is ", onto.dtype(), " ", onto.shape(), ", expected ", weight.dtype(), " ", shape);
  const Tensor y = !onto ? x.like(shape) : in_place ? onto : onto.like();
  dispatch_mixed(x, weight.dtype(), [&]<class T, class P>(auto space) {
    if (onto)
      kernels::Linear<T, P>::add(space, used.sizes, undo ? -1 : 1, x.data<T>(), used.weight.data<T>(),
                                 bias.data_or_null<P>(), onto.data<P>(), y.data<P>());
    else
      kernels::Linear<T, P>::forward(space, used.sizes, x.data<T>(), used.weight.data<T>(), used.bias.data_or_null<T>(),
                                     y.data<T>());
  });
  save.tensors = {learns(save) && !x_again ? x : Tensor(), used.weight,
                  x.dtype() != weight.dtype() ? weight : Tensor()};
  for (const std::size_t k : weights_of(in.size())) save.shapes.push_back(in[k].shape());
  return y;
}

// The gradient of all weights gathers in one product where their places lie behind each other, too; elsewhere it is one
// new tensor, of which each weight's flow is a part.
Tensors Linear::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor& used = saved.tensors[1];
  const Tensor x = learns(saved) && x_again ? x_again() : saved.tensors[0];
  const Tensor& weight = saved.tensors[2] ? saved.tensors[2] : used;
  const std::int64_t out = weight.shape()[0], width = weight.shape()[1];
  const Tensor flow = dy.dtype() == used.dtype() ? dy : dy.to(used.dtype());
  const Tensor dx = saved.place_of(0, used, dy.shape().with(-1, width)), dbias = saved.place_of(2, weight, {out});
  const std::vector<std::size_t> weights = weights_of(saved.wants.size());
  Tensors places;
  for (const std::size_t k : weights)
    if (saved.adds(k)) places.push_back(saved.into[k]);
  const Tensor gathered = places.size() == weights.size() ? Tensor::adjoining(places) : Tensor();
  const Tensor dweight = gathered ? gathered : learns(saved) ? weight.like() : Tensor();
  const kernels::LinearShape sizes{dy.shape().product(0, dy.shape().rank() - 1), width, out};
  dispatch_mixed(flow, weight.dtype(), [&]<class T, class P>(auto space) {
    using kernels::flow_to;
    kernels::Linear<T, P>::backward(space, sizes, x.data_or_null<T>(), used.data<T>(), flow.data<T>(),
                                    flow_to<T>(saved, 0, dx), {dweight.data_or_null<P>(), bool(gathered)},
                                    flow_to<P>(saved, 2, dbias));
  });
  Tensors flows{dx, {}, dbias, saved.wants[3] ? dy : Tensor()};
  flows.resize(saved.wants.size());
  std::int64_t row = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const std::int64_t rows = saved.shapes[i][0];
    if (saved.wants[weights[i]]) flows[weights[i]] = dweight.slice(row, row + rows);
    row += rows;
  }
  return flows;
}

std::vector<Case<Linear>> Linear::cases() {
  auto inputs = [](Shape x, std::int64_t out, bool bias, bool residual = false) {
    return [=](Draw& draw) {
      return Tensors{draw.uniform(x), draw.uniform({out, x[-1]}), bias ? draw.uniform({out}) : Tensor(),
                     residual ? draw.uniform(x.with(-1, out)) : Tensor()};
    };
  };
  auto stacked = [](bool all) {
    return [=](Draw& draw) {
      return Tensors{draw.uniform({5, 3}),        all ? draw.uniform({4, 3}) : draw.uniform({1, 3}),
                     draw.uniform({all ? 9 : 6}), {},
                     draw.uniform({2, 3}),        draw.uniform({3, 3})};
    };
  };
  return {{"matrix", {}, inputs({5, 3}, 4, true)},
          {"no bias", {}, inputs({2, 3, 4}, 2, false)},
          {"one row", {}, inputs({1, 3}, 2, true)},
          {"no rows", {}, inputs({0, 3}, 2, true)},
          {"a vector", {}, inputs({3}, 2, true)},
          {"x constant", {}, inputs({5, 3}, 4, true), {0}},
          {"residual", {}, inputs({2, 3, 4}, 3, true, true)},
          {"residual, no bias", {}, inputs({5, 3}, 4, false, true)},
          {"residual constant", {}, inputs({5, 3}, 4, true, true), {3}},
          {"three weights", {}, stacked(true)},
          {"three weights, one constant", {}, stacked(false), {4}}};
}

}  // namespace ops

Var matmul(const Var& a, const Var& b, bool transpose_a, bool transpose_b) {
  return apply(ops::Matmul{transpose_a, transpose_b}, {a, b});
}

Var linear(const Var& x, const Var& weight, const Var& bias, const RoundedLinear& rounded, const Residual& residual,
           const Remake& x_again) {
  check("linear", residual);
  return apply(ops::Linear{rounded, residual.undo, residual.in_place, x_again}, {x, weight, bias, residual.onto});
}

Var linear(const Var& x, std::span<const Var> weights, const Tensor& rounded) {
  if (weights.empty()) fail("linear: needs a weight (out, in), got none");
  std::vector<Var> inputs{x, weights[0], {}, {}};
  inputs.insert(inputs.end(), weights.begin() + 1, weights.end());
  return apply(ops::Linear{{rounded, {}}}, std::span<const Var>(inputs));
}

}  // namespace sinkhorn
