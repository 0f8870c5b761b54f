// The optimizer step and the gradient norm: each one pass over flat buffers.
#pragma once
#include "autograd/dispatch.h"

namespace sinkhorn {

/// Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019). The learning rate is given per step.
struct AdamW {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
};

/// Elements begin .. end-1 of a flat buffer.
struct Range {
  std::int64_t begin, end;
};

/// Step number `step` = 1, 2, ... in place, for g = gradient_scale * gradient:
///   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
///   value -= lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay value)
/// All four have one shape and dtype. Weight decay acts in `decayed` alone: ranges in ascending order, none
/// overlapping.
void adamw_step(const AdamW& adam, std::int64_t step, double lr, const Tensor& value, const Tensor& gradient,
                const Tensor& m, const Tensor& v, std::span<const Range> decayed, double gradient_scale = 1);

/// sqrt(sum of the squares of all elements of all tensors), in f64; tensors may be empty handles. Not finite if any
/// element is not.
double global_norm(const Tensors& tensors);

namespace kernels {

/// The step's numbers as the kernel needs them: value = keep value - rate m / (sqrt(v) root + eps).
struct AdamWStep {
  double beta1, beta2, eps, gradient_scale;
  double keep;  // 1 - lr weight_decay
  double rate;  // lr / (1 - beta1^step)
  double root;  // 1 / sqrt(1 - beta2^step)
};

template <class T>
struct Optimizer {
  static void adamw(Cpu, AdamWStep step, std::int64_t count, T* value, const T* gradient, T* m, T* v);
  static void adamw(Cuda, AdamWStep step, std::int64_t count, T* value, const T* gradient, T* m, T* v);
  /// Sum of squares, in f64, in an order that follows from `count` alone.
  static double square_sum(Cpu, std::int64_t count, const T* x);
  static double square_sum(Cuda, std::int64_t count, const T* x);
};

}  // namespace kernels

}  // namespace sinkhorn
