// Rows of a table by id.
#pragma once
#include "autograd/tape.h"

namespace sinkhorn {
namespace kernels {

template <class T>
struct Embedding {
  /// y (count, width): row ids[i] of the table (rows, width). An Error if an id is outside it.
  static void forward(Cpu, std::int64_t rows, std::int64_t width, std::int64_t count, const T* table,
                      const std::int32_t* ids, T* y);
  static void forward(Cuda, std::int64_t rows, std::int64_t width, std::int64_t count, const T* table,
                      const std::int32_t* ids, T* y);
  static void backward(Cpu, std::int64_t rows, std::int64_t width, std::int64_t count, const std::int32_t* ids,
                       const T* dy, T* dtable);
  static void backward(Cuda, std::int64_t rows, std::int64_t width, std::int64_t count, const std::int32_t* ids,
                       const T* dy, T* dtable);
};

}  // namespace kernels

namespace ops {

/// y_i = table[ids_i].      dtable[v] = sum of dy_i where ids_i = v
struct Embedding {
  static constexpr std::string_view name = "embedding";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Embedding>> cases();
};

}  // namespace ops

/// table (V, E), ids i32 (...) -> (..., E). An Error names an id outside 0 .. V-1.
Var embedding(const Var& table, const Tensor& ids);

}  // namespace sinkhorn
