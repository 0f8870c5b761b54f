// The language model's loss: softmax and negative log likelihood in one.
#pragma once
#include <algorithm>
#include <optional>

#include "autograd/ops/matmul.h"
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
  /// How many rows count.
  static void count(Cpu, std::int64_t rows, const Targets& targets, std::int32_t* count);
  static void count(Cuda, std::int64_t rows, const Targets& targets, std::int32_t* count);
  /// log_sum_exp (rows), of counted rows only; losses (rows), 0 of the others. An Error names a counted target outside
  /// the columns.
  static void forward(Cpu, Rows rows, const Targets& targets, const T* logits, Real<T>* log_sum_exp, Real<T>* losses);
  static void forward(Cuda, Rows rows, const Targets& targets, const T* logits, Real<T>* log_sum_exp, Real<T>* losses);
  /// loss = the sum of the rows' losses / count, or 0 if none counts
  static void mean(Cpu, Rows rows, const Real<T>* losses, const std::int32_t* count, Real<T>* loss);
  static void mean(Cuda, Rows rows, const Real<T>* losses, const std::int32_t* count, Real<T>* loss);
  /// dlogits may be the logits; without dloss it is 1.
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

/// The loss of z = x W^T + b, a slice of rows at a time, so that no more than a slice of the logits z is ever there;
/// inputs x, W, b, targets, counted. Where a gradient is wanted it is made in forward, beside the slice's logits:
///     dz = (softmax(z) - onehot) / count,  dx = dz W,  dW = dz^T x,  db = sum of dz over rows
/// and backward multiplies it by dloss. Mixed precision as in Linear.
struct LinearCrossEntropy {
  static constexpr std::string_view name = "linear_cross_entropy";
  RoundedLinear rounded = {};
  std::optional<std::int32_t> ignore_index = {};
  std::int64_t logits_at_once = kLogitsAtOnce;

  static constexpr std::int64_t kLogitsAtOnce = std::int64_t(1) << 24;  // elements: 32 MiB of bf16, so that caches help
  /// Rows of a slice: at least one, and whole tiles of a matrix product where there are as many.
  static constexpr std::int64_t rows_at_once(std::int64_t classes, std::int64_t logits_at_once = kLogitsAtOnce) {
    constexpr std::int64_t tile = 128;
    const std::int64_t rows = std::max<std::int64_t>(logits_at_once / std::max<std::int64_t>(classes, 1), 1);
    return rows > tile ? rows - rows % tile : rows;
  }

  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<LinearCrossEntropy>> cases();
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

/// cross_entropy(linear(x, weight, bias, rounded), targets, counted, ignore_index), whose logits are never there as a
/// whole: x (..., D), weight (V, D), bias (V) or nothing, targets i32 (...).
CrossEntropy linear_cross_entropy(const Var& x, const Var& weight, const Var& bias, const RoundedLinear& rounded,
                                  const Tensor& targets, const Tensor& counted = {},
                                  std::optional<std::int32_t> ignore_index = {});

}  // namespace sinkhorn
