#include "autograd/ops/embedding.h"

namespace sinkhorn {
namespace ops {

Output Embedding::forward(Saved& save, Inputs in) const {
  const Tensor &table = in[0], &ids = in[1];
  if (table.shape().rank() != 2) fail("embedding: needs a table (V, E), got shape ", table.shape());
  if (ids.dtype() != DType::i32) fail("embedding: ids must be i32, got ", ids.dtype());
  if (ids.shape().rank() == Shape::kMaxRank) fail("embedding: ids ", ids.shape(), " leave no axis for E");
  std::vector<std::int64_t> extents(ids.shape().extents().begin(), ids.shape().extents().end());
  extents.push_back(table.shape()[1]);
  const Tensor y = table.like(Shape(extents));
  dispatch(table, [&]<class T>(auto space) {
    kernels::Embedding<T>::forward(space, table.shape()[0], table.shape()[1], ids.count(), table.data<T>(),
                                   ids.data<std::int32_t>(), y.data<T>());
  });
  save.tensors = {table, ids};
  return y;
}

Tensors Embedding::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &table = saved.tensors[0], &ids = saved.tensors[1];
  const Tensor dtable = table.like();
  dispatch(table, [&]<class T>(auto space) {
    kernels::Embedding<T>::backward(space, table.shape()[0], table.shape()[1], ids.count(), ids.data<std::int32_t>(),
                                    dy.data<T>(), dtable.data<T>());
  });
  return {dtable, {}};
}

std::vector<Case<Embedding>> Embedding::cases() {
  auto inputs = [](Shape table, Shape ids) {
    return [=](Draw& draw) { return Tensors{draw.uniform(table), draw.integers(ids, std::int32_t(table[0]))}; };
  };
  return {{"sequence", {}, inputs({5, 3}, {2, 7})},
          {"hub", {}, inputs({1, 3}, {9})},
          {"wide", {}, inputs({3, 40}, {4})},
          {"scalar id", {}, inputs({4, 2}, {})},
          {"no ids", {}, inputs({4, 2}, {0})}};
}

}  // namespace ops

Var embedding(const Var& table, const Tensor& ids) { return apply(ops::Embedding{}, {table, ids}); }

}  // namespace sinkhorn
