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

/// Step number `step` = 1, 2, ... in place, for g = gradient_scale * clip * gradient:
///   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
///   value -= lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay value)
/// All four have one shape and dtype. Weight decay acts in `decayed` alone: ranges in ascending order, none
/// overlapping. `clip` is empty (1), or a clip_factor on the values' device: the host need not know it.
void adamw_step(const AdamW& adam, std::int64_t step, double lr, const Tensor& value, const Tensor& gradient,
                const Tensor& m, const Tensor& v, std::span<const Range> decayed, double gradient_scale = 1,
                const Tensor& clip = {});

/// sqrt(sum of the squares of all elements of all tensors), in f64; tensors may be empty handles. Not finite if any
/// element is not. Waits for the device.
double global_norm(const Tensors& tensors);

/// The square of the global norm, f64 (), left on the device where the tensors are (all on one; an Error if not): waits
/// for nothing.
Tensor square_sum(const Tensors& tensors);

/// min(1, clip_norm / (norm + 1e-6)) of the norm whose square that is, f64 () on its device; 1 for a NaN.
Tensor clip_factor(const Tensor& square_sum, double clip_norm);

namespace kernels {

/// The step's numbers as the kernel needs them: value = keep value - rate m / (sqrt(v) root + eps).
struct AdamWStep {
  double beta1, beta2, eps, gradient_scale;
  double keep;  // 1 - lr weight_decay, where it decays
  double rate;  // lr / (1 - beta1^step)
  double root;  // 1 / sqrt(1 - beta2^step)
};

template <class T>
struct Optimizer {
  /// `borders`: ascending; elements decay from the first on, do not from the second on, do again from the third on, ...
  /// clip: one number to scale gradients with, or null.
  static void adamw(Cpu, const AdamWStep& step, std::span<const std::int64_t> borders, const double* clip,
                    std::int64_t count, T* value, const T* gradient, T* m, T* v);
  static void adamw(Cuda, const AdamWStep& step, std::span<const std::int64_t> borders, const double* clip,
                    std::int64_t count, T* value, const T* gradient, T* m, T* v);
  /// sum += the sum of squares, in f64, in an order that follows from `count` alone.
  static void add_square_sum(Cpu, std::int64_t count, const T* x, double* sum);
  static void add_square_sum(Cuda, std::int64_t count, const T* x, double* sum);
};

struct ClipFactor {
  static void forward(Cpu, const double* square_sum, double clip_norm, double* factor);
  static void forward(Cuda, const double* square_sum, double clip_norm, double* factor);
};

}  // namespace kernels

}  // namespace sinkhorn
