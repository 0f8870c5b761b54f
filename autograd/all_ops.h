// Every op there is. `apply` accepts no other, and the gradient checker visits each one.
#pragma once
#include "autograd/maps.h"

namespace sinkhorn {
namespace ops {

template <class F>
struct Map;
struct Softmax;
struct LogSoftmax;
struct LogSumExp;
struct Matmul;
struct Linear;
struct LayerNorm;
struct Embedding;
struct TopK;
struct GatherBuckets;
struct SortingMatrix;
struct CrossEntropy;

template <class... F>
TypeList<Map<F>...> lift(TypeList<F...>);
template <class... A, class... B>
TypeList<A..., B...> join(TypeList<A...>, TypeList<B...>);

}  // namespace ops

using AllOps = decltype(ops::join(
    ops::lift(maps::All{}),
    TypeList<ops::Softmax, ops::LogSoftmax, ops::LogSumExp, ops::Matmul, ops::Linear, ops::LayerNorm, ops::Embedding,
             ops::TopK, ops::GatherBuckets, ops::SortingMatrix, ops::CrossEntropy>{}));

}  // namespace sinkhorn
