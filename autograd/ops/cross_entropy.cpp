#include "autograd/ops/cross_entropy.h"

#include "autograd/ops/elementwise.h"

namespace sinkhorn {
namespace ops {
namespace {

kernels::Targets view(const Tensor& ids, const Tensor& counted, std::optional<std::int32_t> ignore) {
  return {ids.data<std::int32_t>(), counted.data_or_null<bool>(), ignore.has_value(), ignore.value_or(0)};
}

// The shape of the targets, which is that of x but for its last axis.
Shape checked_positions(std::string_view op, const char* what, const Shape& x, const Tensor& targets,
                        const Tensor& counted) {
  const Shape positions(x.extents().first(std::size_t(std::max(x.rank() - 1, 0))));
  if (x.rank() == 0 || targets.shape() != positions || targets.dtype() != DType::i32)
    fail(op, ": needs ", what, " and i32 targets (...), got ", x, " and ", targets.dtype(), " ", targets.shape());
  if (counted && (counted.shape() != positions || counted.dtype() != DType::boolean))
    fail(op, ": counted must be bool ", positions, ", got ", counted.dtype(), " ", counted.shape());
  return positions;
}

}  // namespace

Output CrossEntropy::forward(Saved& save, Inputs in) const {
  const Tensor &logits = in[0], &targets = in[1], &counted = in[2];
  const Shape& x = logits.shape();
  const Shape positions = checked_positions(name, "logits (..., V)", x, targets, counted);
  Tensor loss, log_sum_exp;
  const Tensor count({}, DType::i32, logits.device());
  dispatch(logits, [&]<class T>(auto space) {
    using R = Real<T>;
    using Kernels = kernels::CrossEntropy<T>;
    loss = Tensor({}, dtype_of<R>, logits.device());
    log_sum_exp = loss.like(positions);
    const Tensor losses = loss.like(positions);
    const kernels::Rows rows(x);
    const kernels::Targets goals = view(targets, counted, ignore_index);
    Kernels::count(space, rows.count, goals, count.data<std::int32_t>());
    Kernels::forward(space, rows, goals, logits.data<T>(), log_sum_exp.data<R>(), losses.data<R>());
    Kernels::mean(space, rows, losses.data<R>(), count.data<std::int32_t>(), loss.data<R>());
  });
  save.tensors = {logits, targets, counted, log_sum_exp, count};
  return {loss, {count}};
}

Tensors CrossEntropy::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &logits = saved.tensors[0], &targets = saved.tensors[1], &counted = saved.tensors[2];
  const Tensor dlogits = logits.like();
  dispatch(logits, [&]<class T>(auto space) {
    using R = Real<T>;
    kernels::CrossEntropy<T>::backward(space, kernels::Rows(logits.shape()), view(targets, counted, ignore_index),
                                       logits.data<T>(), saved.tensors[3].data<R>(),
                                       saved.tensors[4].data<std::int32_t>(), dy.data<R>(), dlogits.data<T>());
  });
  return {dlogits, {}, {}};
}

std::vector<Case<CrossEntropy>> CrossEntropy::cases() {
  auto inputs = [](Shape logits, Shape targets) {
    return [=](Draw& draw) {
      return Tensors{draw.uniform(logits), draw.integers(targets, std::int32_t(logits[-1])), {}};
    };
  };
  return {{"sequence", {}, inputs({2, 3, 5}, {2, 3})},
          {"one class", {}, inputs({4, 1}, {4})},
          {"one position", {}, inputs({1, 4}, {1})},
          {"no positions", {}, inputs({0, 4}, {0})},
          {"ignored", {1}, inputs({9, 3}, {9})},
          {"masked", {}, [](Draw& draw) {
             return Tensors{draw.uniform({8, 4}), draw.integers({8}, 4), draw.mask({8}, 0.6)};
           }}};
}

Output LinearCrossEntropy::forward(Saved& save, Inputs in) const {
  const Tensor &x = in[0], &weight = in[1], &bias = in[2], &targets = in[3], &counted = in[4];
  const LinearOperands used(name, x, weight, bias, rounded);
  const Shape positions = checked_positions(name, "x (..., D)", x.shape(), targets, counted);
  const std::int64_t rows = used.sizes.rows, width = used.sizes.in, classes = used.sizes.out;
  const Tensor dx = save.wants[0] ? x.like() : Tensor(), dweight = save.wants[1] ? weight.like() : Tensor(),
               dbias = save.wants[2] ? bias.like() : Tensor();
  const Tensor count({}, DType::i32, x.device());
  const std::int64_t step = std::clamp<std::int64_t>(rows, 1, rows_at_once(classes, logits_at_once));
  Tensor loss;
  dispatch_mixed(x, weight.dtype(), [&]<class T, class P>(auto space) {
    using R = Real<T>;
    using Loss = kernels::CrossEntropy<T>;
    loss = Tensor({}, dtype_of<R>, x.device());
    const Tensor losses = loss.like(positions), log_sum_exp = loss.like({step}), logits = x.like({step, classes});
    std::int32_t* const counts = count.data<std::int32_t>();
    const kernels::Targets all = view(targets, counted, ignore_index);
    Loss::count(space, rows, all, counts);
    for (std::int64_t begin = 0; begin == 0 || begin < rows; begin += step) {
      const std::int64_t n = std::min(step, rows - begin);
      const kernels::LinearShape slice{n, width, classes};
      const kernels::Targets goals{all.ids + begin, all.counted ? all.counted + begin : nullptr, all.has_ignore,
                                   all.ignore};
      const T* const from = x.data<T>() + begin * width;
      T* const z = logits.data<T>();
      kernels::Linear<T, P>::forward(space, slice, from, used.weight.data<T>(), used.bias.data_or_null<T>(), z);
      Loss::forward(space, {n, classes}, goals, z, log_sum_exp.data<R>(), losses.data<R>() + begin);
      if (!dx && !dweight && !dbias) continue;
      Loss::backward(space, {n, classes}, goals, z, log_sum_exp.data<R>(), counts, nullptr, z);
      kernels::Linear<T, P>::backward(space, slice, from, used.weight.data<T>(), z,
                                      {dx ? dx.data<T>() + begin * width : nullptr, false},
                                      {dweight.data_or_null<P>(), begin > 0}, {dbias.data_or_null<P>(), begin > 0});
    }
    Loss::mean(space, {rows, classes}, losses.data<R>(), counts, loss.data<R>());
  });
  save.tensors = {dx, dweight, dbias};
  return {loss, {count}};
}

// In place: a tape is walked once.
Tensors LinearCrossEntropy::backward(const Saved& saved, const Tensor& dy) const {
  for (const Tensor& flow : saved.tensors) {
    if (!flow) continue;
    dispatch(flow, [&]<class T>(auto space) {
      kernels::Scale<T>::by(space, flow.count(), flow.data<T>(), dy.data<Real<T>>(), flow.data<T>());
    });
  }
  return {saved.tensors[0], saved.tensors[1], saved.tensors[2], {}, {}};
}

std::vector<Case<LinearCrossEntropy>> LinearCrossEntropy::cases() {
  auto inputs = [](Shape x, std::int64_t classes, bool has_bias, double counted = 1) {
    return [=](Draw& draw) {
      const Shape positions(x.extents().first(std::size_t(x.rank() - 1)));
      return Tensors{draw.uniform(x), draw.uniform({classes, x[-1]}), has_bias ? draw.uniform({classes}) : Tensor(),
                     draw.integers(positions, std::int32_t(classes)),
                     counted < 1 ? draw.mask(positions, counted) : Tensor()};
    };
  };
  return {{"one slice", {}, inputs({2, 3, 4}, 5, true)},
          {"three slices, no bias", {.logits_at_once = 10}, inputs({2, 3, 4}, 5, false)},
          {"a row at a time, masked", {.logits_at_once = 1}, inputs({7, 3}, 4, true, 0.6)},
          {"ignored", {.ignore_index = 1, .logits_at_once = 6}, inputs({9, 2}, 3, true)},
          {"no positions", {}, inputs({0, 4}, 3, true)},
          {"x constant", {.logits_at_once = 8}, inputs({5, 3}, 4, true), {0}},
          {"weight constant", {.logits_at_once = 8}, inputs({5, 3}, 4, true), {1, 2}}};
}

}  // namespace ops

CrossEntropy cross_entropy(const Var& logits, const Tensor& targets, const Tensor& counted,
                           std::optional<std::int32_t> ignore_index) {
  auto [loss, others] = apply_all(ops::CrossEntropy{ignore_index}, {logits, targets, counted});
  return {loss, others[0]};
}

CrossEntropy linear_cross_entropy(const Var& x, const Var& weight, const Var& bias, const RoundedLinear& rounded,
                                  const Tensor& targets, const Tensor& counted,
                                  std::optional<std::int32_t> ignore_index) {
  auto [loss, others] = apply_all(ops::LinearCrossEntropy{rounded, ignore_index}, {x, weight, bias, targets, counted});
  return {loss, others[0]};
}

}  // namespace sinkhorn
