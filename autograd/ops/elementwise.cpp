#include "autograd/ops/elementwise.h"

#include <cmath>

#include "autograd/memory.h"
#include "autograd/ops/reduce.h"

namespace sinkhorn {
namespace ops {

template <class F>
Output Map<F>::forward(Saved& save, Inputs in) const {
  const Tensor& x = in[0];
  Tensor y = x.like();
  dispatch(x, [&]<class T>(auto space) { kernels::Map<F, T>::forward(space, x.count(), x.data<T>(), y.data<T>()); });
  save.tensors = {F::keep == maps::Keep::x ? x : y};
  return y;
}

template <class F>
Tensors Map<F>::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor& kept = saved.tensors[0];
  Tensor dx = dy.like();
  dispatch(dy, [&]<class T>(auto space) {
    kernels::Map<F, T>::backward(space, dy.count(), kept.data<T>(), dy.data<T>(), dx.data<T>());
  });
  return {dx};
}

template <class F>
std::vector<Case<Map<F>>> Map<F>::cases() {
  const auto sampled = [](Shape shape) {
    return [=](Draw& draw) { return Tensors{draw.uniform(shape, F::domain.low, F::domain.high)}; };
  };
  return {{"matrix", {}, sampled({3, 4})}, {"one number", {}, sampled({})}, {"nothing", {}, sampled({0, 3})}};
}

// Keeps every map's op in this file, where the kernels are known, so that maps::All stays the only list.
template <class... F>
constexpr auto compiled(TypeList<F...>) {
  return std::tuple(std::tuple(&Map<F>::forward, &Map<F>::backward, &Map<F>::cases)...);
}
extern const auto kCompiledMaps = compiled(maps::All{});

Output Scale::forward(Saved&, Inputs in) const {
  const Tensor& x = in[0];
  Tensor y = x.like();
  dispatch(x,
           [&]<class T>(auto space) { kernels::Scale<T>::forward(space, x.count(), x.data<T>(), a, b, y.data<T>()); });
  return y;
}

Tensors Scale::backward(const Saved&, const Tensor& dy) const {
  Saved unused;
  return {Scale{a, 0}.forward(unused, {{dy}}).y};
}

std::vector<Case<Scale>> Scale::cases() {
  const auto matrix = [](Draw& draw) { return Tensors{draw.uniform({3, 4})}; };
  return {{"affine", {-1.7, 0.3}, matrix}, {"by zero", {0, 2}, matrix}};
}

namespace {

void require_one_dtype(std::string_view name, const Tensor& a, const Tensor& b) {
  if (a.dtype() != b.dtype())
    fail(name, ": dtypes differ: ", a.dtype(), " ", a.shape(), " and ", b.dtype(), " ", b.shape(), "; use cast");
}

template <template <class> class Kernel>
Tensor combine(std::string_view name, const Tensor& a, const Tensor& b) {
  require_one_dtype(name, a, b);
  Tensor y = a.like(broadcast_shape(name, a.shape(), b.shape()));
  const auto loop = broadcast_loop<2>(y.shape(), {a.shape(), b.shape()});
  dispatch(y, [&]<class T>(auto space) { Kernel<T>::forward(space, loop, a.data<T>(), b.data<T>(), y.data<T>()); });
  return y;
}

// One case per way in which two shapes can meet.
template <class O>
std::vector<Case<O>> broadcasting_cases() {
  const auto pair = [](Shape a, Shape b) {
    return [=](Draw& draw) { return Tensors{draw.uniform(a), draw.uniform(b)}; };
  };
  return {{"equal shapes", {}, pair({3, 4}, {3, 4})},
          {"row vector", {}, pair({2, 3, 4}, {4})},
          {"column", {}, pair({3, 4}, {3, 1})},
          {"left operand stretched", {}, pair({1, 4}, {2, 3, 4})},
          {"middle axis", {}, pair({2, 3, 4}, {2, 1, 4})},
          {"both stretched", {}, pair({3, 1, 2}, {4, 1})},
          {"number", {}, pair({}, {2, 3})},
          {"nothing", {}, pair({0, 3}, {3})}};
}

}  // namespace

Output Add::forward(Saved& save, Inputs in) const {
  save.shapes = {in[0].shape(), in[1].shape()};
  return combine<kernels::Add>(name, in[0], in[1]);
}

Tensors Add::backward(const Saved& saved, const Tensor& dy) const {
  Tensors flows(2);
  for (int k = 0; k < 2; ++k)
    if (saved.wants[k]) flows[k] = sum_to(dy, saved.shapes[k]);
  return flows;
}

std::vector<Case<Add>> Add::cases() { return broadcasting_cases<Add>(); }

Output Mul::forward(Saved& save, Inputs in) const {
  save.shapes = {in[0].shape(), in[1].shape()};
  save.tensors = {save.wants[1] ? in[0] : Tensor(), save.wants[0] ? in[1] : Tensor()};
  return combine<kernels::Mul>(name, in[0], in[1]);
}

Tensors Mul::backward(const Saved& saved, const Tensor& dy) const {
  Tensors flows(2);
  for (int k = 0; k < 2; ++k)
    if (saved.wants[k]) flows[k] = sum_to(combine<kernels::Mul>(name, dy, saved.tensors[1 - k]), saved.shapes[k]);
  return flows;
}

std::vector<Case<Mul>> Mul::cases() { return broadcasting_cases<Mul>(); }

Output MaskFill::forward(Saved& save, Inputs in) const {
  const Tensor &x = in[0], &allowed = in[1];
  if (allowed.dtype() != DType::boolean) fail(name, ": the mask must be bool, got ", allowed.dtype());
  if (broadcast_shape(name, x.shape(), allowed.shape()) != x.shape())
    fail(name, ": a mask ", allowed.shape(), " does not stretch to x ", x.shape());
  Tensor y = x.like();
  const auto loop = broadcast_loop<2>(x.shape(), {x.shape(), allowed.shape()});
  dispatch(x, [&]<class T>(auto space) {
    kernels::MaskFill<T>::forward(space, loop, x.data<T>(), allowed.data<bool>(), value, y.data<T>());
  });
  save.tensors = {allowed};
  return y;
}

Tensors MaskFill::backward(const Saved& saved, const Tensor& dy) const {
  Saved unused;
  const Tensors inputs = {dy, saved.tensors[0]};
  return {MaskFill{0}.forward(unused, inputs).y, {}};
}

std::vector<Case<MaskFill>> MaskFill::cases() {
  const auto masked = [](Shape x, Shape allowed, double probability) {
    return [=](Draw& draw) { return Tensors{draw.uniform(x), draw.mask(allowed, probability)}; };
  };
  return {{"same shape", {-1}, masked({3, 4}, {3, 4}, 0.5)},
          {"mask of rows", {0}, masked({2, 3, 4}, {3, 1}, 0.5)},
          {"nothing allowed", {3}, masked({2, 3}, {2, 3}, 0)}};
}

namespace {

// uniform(i) = (w + 1/2) / 2^23 for the upper 23 bits w of word i, so uniform(i) >= p means w >= p 2^23 - 1/2.
std::uint32_t dropout_threshold(double p) {
  if (!(p >= 0 && p < 1)) fail("dropout: p must lie in [0, 1), got ", p);
  return p == 0 ? 0 : std::uint32_t(std::ceil(p * 8388608 - 0.5));
}

}  // namespace

Output Dropout::forward(Saved&, Inputs in) const {
  const Tensor& x = in[0];
  Tensor y = x.like();
  dispatch(x, [&]<class T>(auto space) {
    kernels::Dropout<T>::forward(space, x.count(), rng.bits(), dropout_threshold(p), 1 / (1 - p), x.data<T>(),
                                 y.data<T>());
  });
  return y;
}

Tensors Dropout::backward(const Saved&, const Tensor& dy) const {
  Saved unused;
  return {forward(unused, {{dy}}).y};
}

std::vector<Case<Dropout>> Dropout::cases() {
  return {{"half",
           {0.5, Rng(7)},
           [](Draw& draw) {
             return Tensors{draw.uniform({5, 3})};
           }},
          {"longer than one tile", {0.1, Rng(8)}, [](Draw& draw) { return Tensors{draw.uniform({300})}; }}};
}

Output GatedGelu::forward(Saved& save, Inputs in) const {
  const Tensor& x = in[0];
  if (x.shape().rank() == 0 || x.shape()[-1] % 2 != 0) fail(name, ": the last extent must be even, got ", x.shape());
  const std::int64_t width = x.shape()[-1] / 2, rows = x.shape().product(0, x.shape().rank() - 1);
  Tensor y = x.like(x.shape().with(-1, width));
  dispatch(x,
           [&]<class T>(auto space) { kernels::GatedGelu<T>::forward(space, rows, width, x.data<T>(), y.data<T>()); });
  save.tensors = {x};
  return y;
}

Tensors GatedGelu::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor& x = saved.tensors[0];
  Tensor dx = x.like();
  const std::int64_t width = x.shape()[-1] / 2, rows = x.shape().product(0, x.shape().rank() - 1);
  dispatch(x, [&]<class T>(auto space) {
    kernels::GatedGelu<T>::backward(space, rows, width, x.data<T>(), dy.data<T>(), dx.data<T>());
  });
  return {dx};
}

std::vector<Case<GatedGelu>> GatedGelu::cases() {
  return {{"rows",
           {},
           [](Draw& draw) {
             return Tensors{draw.uniform({3, 6})};
           }},
          {"one column", {}, [](Draw& draw) {
             return Tensors{draw.uniform({2, 2, 2})};
           }}};
}

Output Cast::forward(Saved&, Inputs in) const {
  const Tensor &x = in[0], onto = in.size() > 1 ? in[1] : Tensor();
  if (copy) {
    if (copy.shape() != x.shape() || copy.dtype() != to)
      fail("cast: the copy is ", copy.dtype(), " ", copy.shape(), ", expected ", to, " ", x.shape());
    if (!onto) return copy;
  }
  if (onto && (onto.shape() != x.shape() || onto.dtype() != to))
    fail(name, ": a residual must be ", to, " ", x.shape(), ", got ", onto.dtype(), " ", onto.shape());
  const Tensor y = in_place ? onto : Tensor(x.shape(), to, x.device());
  dispatch(x, [&]<class From>(auto space) {
    dispatch(y, [&]<class To>(auto) {
      if (onto)
        kernels::AddConverted<From, To>::forward(space, x.count(), Real<To>(undo ? -1 : 1), onto.data<To>(),
                                                 x.data<From>(), y.data<To>());
      else
        kernels::Convert<From, To>::forward(space, x.count(), x.data<From>(), y.data<To>());
    });
  });
  return y;
}

Tensors Cast::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor donto = saved.wants.size() > 1 && saved.wants[1] ? dy : Tensor();
  const auto flows = [&](const Tensor& dx) { return saved.wants.size() > 1 ? Tensors{dx, donto} : Tensors{dx}; };
  if (saved.adds(0) && (from == to || (from == DType::f32 && to == DType::bf16))) {
    const Tensor& into = saved.into[0];
    dispatch_mixed(dy, from, [&]<class Term, class T>(auto space) {
      kernels::Accumulate<T, Term>::forward(space, dy.count(), dy.data<Term>(), into.data<T>());
    });
    return flows(into);
  }
  Saved unused;
  return flows(from == to ? dy : Cast{to, from}.forward(unused, {{dy}}).y);
}

std::vector<Case<Cast>> Cast::cases() {
  const auto drawn = [](std::size_t count) {
    return [count](Draw& draw) {
      Tensors inputs;
      for (std::size_t i = 0; i < count; ++i) inputs.push_back(draw.uniform({3, 4}));
      return inputs;
    };
  };
  return {{"f64 to f64", {DType::f64, DType::f64}, drawn(1)}, {"onto a residual", {DType::f64, DType::f64}, drawn(2)}};
}

}  // namespace ops

Var exp(const Var& x) { return apply(ops::Map<maps::Exp>{}, {x}); }
Var log(const Var& x) { return apply(ops::Map<maps::Log>{}, {x}); }
Var sqrt(const Var& x) { return apply(ops::Map<maps::Sqrt>{}, {x}); }
Var square(const Var& x) { return apply(ops::Map<maps::Square>{}, {x}); }
Var reciprocal(const Var& x) { return apply(ops::Map<maps::Reciprocal>{}, {x}); }
Var abs(const Var& x) { return apply(ops::Map<maps::Abs>{}, {x}); }
Var tanh(const Var& x) { return apply(ops::Map<maps::Tanh>{}, {x}); }
Var sigmoid(const Var& x) { return apply(ops::Map<maps::Sigmoid>{}, {x}); }
Var relu(const Var& x) { return apply(ops::Map<maps::Relu>{}, {x}); }
Var leaky_relu(const Var& x) { return apply(ops::Map<maps::LeakyRelu>{}, {x}); }
Var gelu(const Var& x) { return apply(ops::Map<maps::Gelu>{}, {x}); }

Var scale(const Var& x, double a, double b) { return apply(ops::Scale{a, b}, {x}); }
Var neg(const Var& x) { return scale(x, -1); }

Var add(const Var& a, const Var& b) { return apply(ops::Add{}, {a, b}); }
Var sub(const Var& a, const Var& b) { return add(a, neg(b)); }
Var mul(const Var& a, const Var& b) { return apply(ops::Mul{}, {a, b}); }
Var div(const Var& a, const Var& b) { return mul(a, reciprocal(b)); }

Var mask_fill(const Var& x, const Tensor& allowed, double value) { return apply(ops::MaskFill{value}, {x, allowed}); }

Var dropout(const Var& x, double p, const Rng& rng) {
  return ops::dropout_threshold(p) == 0 ? x : apply(ops::Dropout{p, rng}, {x});
}

Tensor dropout_mask(const Rng& rng, Shape shape, double p) {
  Tensor mask(shape, DType::boolean);
  const RandomBits bits = rng.bits();
  for (std::int64_t i = 0; i < mask.count(); ++i) mask.data<bool>()[i] = bits.uniform<double>(i) >= p;
  return mask;
}

Var gated_gelu(const Var& x) { return apply(ops::GatedGelu{}, {x}); }

Var cast(const Var& x, DType dtype, const Tensor& copy) {
  return x.value.dtype() == dtype ? x : apply(ops::Cast{x.value.dtype(), dtype, copy}, {x});
}

}  // namespace sinkhorn
