// Every op there is. `apply` accepts no other, and the gradient checker visits each one.
#pragma once
#include "autograd/maps.h"

namespace sinkhorn {
namespace ops {

template <class F>
struct Map;
struct Scale;
struct Add;
struct Mul;
struct MaskFill;
struct Dropout;
struct GatedGelu;
struct Cast;
struct Reshape;
struct Permute;
struct BroadcastTo;
struct Slice;
struct Pad;
struct Concat;
struct Rotate;
struct EveryNth;
struct Sum;
struct Max;
struct CumulativeMean;
struct Softmax;
struct LogSoftmax;
struct LogSumExp;
struct Matmul;
struct Linear;
struct LayerNorm;
struct Embedding;
struct EmbeddingBag;
struct LinearGelu;
struct TopK;
struct GatherBuckets;
struct SortingMatrix;
struct RouteBuckets;
struct Sinkhorn;
struct ProductKeyTopK;
struct CrossEntropy;
struct LinearCrossEntropy;
struct BucketSummary;
struct BucketedAttention;
struct ReversibleChain;

template <class... F>
TypeList<Map<F>...> lift(TypeList<F...>);
template <class... A, class... B>
TypeList<A..., B...> join(TypeList<A...>, TypeList<B...>);

}  // namespace ops

// One line per header. (The empty comments keep the lines apart.)
using AllOps = decltype(ops::join(
    ops::lift(maps::All{}),
    TypeList<ops::Scale, ops::Add, ops::Mul, ops::MaskFill, ops::Dropout, ops::GatedGelu, ops::Cast,        //
             ops::Reshape, ops::Permute, ops::BroadcastTo, ops::Slice, ops::Pad, ops::Concat, ops::Rotate,  //
             ops::EveryNth,                                                                                 //
             ops::Sum, ops::Max, ops::CumulativeMean,                                                       //
             ops::Softmax, ops::LogSoftmax, ops::LogSumExp,                                                 //
             ops::Matmul, ops::Linear, ops::LayerNorm, ops::Embedding, ops::EmbeddingBag,                   //
             ops::LinearGelu,                                                                               //
             ops::TopK, ops::GatherBuckets, ops::SortingMatrix, ops::RouteBuckets, ops::Sinkhorn,           //
             ops::ProductKeyTopK,                                                                           //
             ops::CrossEntropy, ops::LinearCrossEntropy,                                                    //
             ops::BucketSummary, ops::BucketedAttention, ops::ReversibleChain>{}));

}  // namespace sinkhorn
