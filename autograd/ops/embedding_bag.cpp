#include "autograd/ops/embedding_bag.h"

namespace sinkhorn {
namespace ops {
namespace {

kernels::Bags bags_of(const Tensor& table, const Tensor& ids) {
  const Shape& s = ids.shape();
  return {table.shape()[0], table.shape()[1], s.product(0, s.rank() - 1), s[-1]};
}

}  // namespace

Output EmbeddingBag::forward(Saved& save, Inputs in) const {
  const Tensor &table = in[0], &weights = in[1], &ids = in[2];
  if (table.shape().rank() != 2) fail(name, ": needs a table (V, D), got shape ", table.shape());
  if (weights.shape().rank() == 0) fail(name, ": needs weights (..., m), got shape ", weights.shape());
  if (table.dtype() != weights.dtype())
    fail(name, ": dtypes differ: table ", table.dtype(), ", weights ", weights.dtype());
  if (ids.dtype() != DType::i32 || ids.shape() != weights.shape())
    fail(name, ": ids must be i32 ", weights.shape(), ", got ", ids.dtype(), " ", ids.shape());
  const Tensor y = table.like(ids.shape().with(-1, table.shape()[1]));
  dispatch(table, [&]<class T>(auto space) {
    kernels::EmbeddingBag<T>::forward(space, bags_of(table, ids), table.data<T>(), weights.data<T>(),
                                      ids.data<std::int32_t>(), y.data<T>());
  });
  save.tensors = {table, weights, ids};
  return y;
}

Tensors EmbeddingBag::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &table = saved.tensors[0], &weights = saved.tensors[1], &ids = saved.tensors[2];
  const Tensor dtable = saved.place_of(0, table, table.shape());
  Tensor dweights;
  if (saved.wants[1]) dweights = weights.like();
  dispatch(table, [&]<class T>(auto space) {
    kernels::EmbeddingBag<T>::backward(space, bags_of(table, ids), table.data<T>(), weights.data<T>(),
                                       ids.data<std::int32_t>(), dy.data<T>(), kernels::flow_to<T>(saved, 0, dtable),
                                       dweights.data_or_null<T>());
  });
  return {dtable, dweights, {}};
}

std::vector<Case<EmbeddingBag>> EmbeddingBag::cases() {
  auto inputs = [](Shape table, Shape bags) {
    return [=](Draw& draw) {
      return Tensors{draw.uniform(table), draw.uniform(bags), draw.integers(bags, std::int32_t(table[0]))};
    };
  };
  return {{"bags", {}, inputs({5, 3}, {2, 3, 4})},
          {"one row", {}, inputs({1, 3}, {4, 2})},
          {"one id a bag", {}, inputs({4, 5}, {6, 1})},
          {"one bag", {}, inputs({4, 2}, {3})},
          {"no bags", {}, inputs({3, 2}, {0, 2})},
          {"empty bags", {}, inputs({3, 2}, {2, 0})},
          {"table constant", {}, inputs({5, 3}, {4, 2}), {0}},
          {"weights constant", {}, inputs({5, 3}, {4, 2}), {1}}};
}

}  // namespace ops

Var embedding_bag(const Var& table, const Var& weights, const Tensor& ids) {
  return apply(ops::EmbeddingBag{}, {table, weights, ids});
}

}  // namespace sinkhorn
