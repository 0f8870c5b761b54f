#include "autograd/ops/cross_entropy.h"

namespace sinkhorn {
namespace ops {
namespace {

kernels::Targets view(const Tensor& ids, const Tensor& counted, std::optional<std::int32_t> ignore) {
  return {ids.data<std::int32_t>(), counted ? counted.data<bool>() : nullptr, ignore.has_value(), ignore.value_or(0)};
}

}  // namespace

Output CrossEntropy::forward(Saved& save, Inputs in) const {
  const Tensor &logits = in[0], &targets = in[1], &counted = in[2];
  const Shape& x = logits.shape();
  const Shape positions(x.extents().first(std::size_t(std::max(x.rank() - 1, 0))));
  if (x.rank() == 0 || targets.shape() != positions || targets.dtype() != DType::i32)
    fail("cross_entropy: needs logits (..., V) and i32 targets (...), got ", x, " and ", targets.dtype(), " ",
         targets.shape());
  if (counted && (counted.shape() != positions || counted.dtype() != DType::boolean))
    fail("cross_entropy: counted must be bool ", positions, ", got ", counted.dtype(), " ", counted.shape());
  Tensor loss, log_sum_exp;
  const Tensor count({}, DType::i32, logits.device());
  dispatch(logits, [&]<class T>(auto space) {
    using R = Real<T>;
    loss = Tensor({}, dtype_of<R>, logits.device());
    log_sum_exp = loss.like(positions);
    kernels::CrossEntropy<T>::forward(space, kernels::Rows(x), view(targets, counted, ignore_index), logits.data<T>(),
                                      log_sum_exp.data<R>(), loss.data<R>(), count.data<std::int32_t>());
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

}  // namespace ops

CrossEntropy cross_entropy(const Var& logits, const Tensor& targets, const Tensor& counted,
                           std::optional<std::int32_t> ignore_index) {
  auto [loss, others] = apply_all(ops::CrossEntropy{ignore_index}, {logits, targets, counted});
  return {loss, others[0]};
}

}  // namespace sinkhorn
