// Weighted sums of rows of a table.
#pragma once
#include "autograd/tape.h"

namespace sinkhorn {
namespace kernels {

/// A table (rows, width); weights and ids (bags, size).
struct Bags {
  std::int64_t rows, width, bags, size;
};

template <class T>
struct EmbeddingBag {
  /// y (bags, width). An Error if an id is outside the table.
  static void forward(Cpu, const Bags& bags, const T* table, const T* weights, const std::int32_t* ids, T* y);
  static void forward(Cuda, const Bags& bags, const T* table, const T* weights, const std::int32_t* ids, T* y);
  /// Each of dtable, dweights only if there.
  static void backward(Cpu, const Bags& bags, const T* table, const T* weights, const std::int32_t* ids, const T* dy,
                       Flow<T> dtable, T* dweights);
  static void backward(Cuda, const Bags& bags, const T* table, const T* weights, const std::int32_t* ids, const T* dy,
                       Flow<T> dtable, T* dweights);
};

}  // namespace kernels

namespace ops {

/// y[r] = sum over k of weights[r, k] table[ids[r, k]].      dtable[v] = sum of weights[r, k] dy[r] where ids[r, k] =
/// v, dweights[r, k] = <dy[r], table[ids[r, k]]>
struct EmbeddingBag {
  static constexpr std::string_view name = "embedding_bag";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<EmbeddingBag>> cases();
};

}  // namespace ops

/// table (V, D), weights (..., m), ids i32 (..., m) -> (..., D). An Error names an id outside 0 .. V-1.
Var embedding_bag(const Var& table, const Var& weights, const Tensor& ids);

}  // namespace sinkhorn
