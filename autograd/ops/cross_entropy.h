// The language model's loss: softmax and negative log likelihood in one.
#pragma once
#include <optional>

#include "autograd/ops/softmax.h"

namespace sinkhorn {
namespace kernels {

/// Which rows count, and for which column: targets (rows), counted (rows) or null, ignore or none (a negative id is
/// legal there).
struct Targets {
  const std::int32_t* ids;
  const bool* counted;
  bool has_ignore;
  std::int32_t ignore;

  SINKHORN_HD bool counts(std::int64_t row) const {
    return (!counted || counted[row]) && !(has_ignore && ids[row] == ignore);
  }
};

template <class T>
struct CrossEntropy {
  /// loss and count: one number each; log_sum_exp (rows), of counted rows only. An Error names a counted target outside
  /// the columns.
  static void forward(Cpu, Rows rows, const Targets& targets, const T* logits, Real<T>* log_sum_exp, Real<T>* loss,
                      std::int32_t* count);
  static void forward(Cuda, Rows rows, const Targets& targets, const T* logits, Real<T>* log_sum_exp, Real<T>* loss,
                      std::int32_t* count);
  static void backward(Cpu, Rows rows, const Targets& targets, const T* logits, const Real<T>* log_sum_exp,
                       const std::int32_t* count, const Real<T>* dloss, T* dlogits);
  static void backward(Cuda, Rows rows, const Targets& targets, const T* logits, const Real<T>* log_sum_exp,
                       const std::int32_t* count, const Real<T>* dloss, T* dlogits);
};

}  // namespace kernels

namespace ops {

/// loss = mean over counted rows of log sum_j exp(x_j) - x_target.      dx = (softmax(x) - onehot) dloss / count
struct CrossEntropy {
  static constexpr std::string_view name = "cross_entropy";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<CrossEntropy>> cases();

  std::optional<std::int32_t> ignore_index = {};
};

}  // namespace ops

/// A loss, and over how many positions it is the mean.
struct CrossEntropy {
  Var loss;      // (), f64 for f64 logits, else f32
  Tensor count;  // (), i32
};

/// Mean cross-entropy in nats of logits (..., V) and targets i32 (...) over the positions that count: `counted`, bool
/// of the targets' shape, is true or empty, and the target is not `ignore_index`. If none counts, the loss and its
/// gradient are 0. An Error names a target outside 0 .. V-1 at a position that counts.
CrossEntropy cross_entropy(const Var& logits, const Tensor& targets, const Tensor& counted = {},
                           std::optional<std::int32_t> ignore_index = {});

}  // namespace sinkhorn
