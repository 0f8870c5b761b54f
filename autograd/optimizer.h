// The optimizer step and the gradient norm: each one pass over flat buffers.
#pragma once
#include <array>

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
/// overlapping. `clip` is empty (1), or a clip_factor on the values' device: the host need not know it. If it is NaN
/// nothing changes.
void adamw_step(const AdamW& adam, std::int64_t step, double lr, const Tensor& value, const Tensor& gradient,
                const Tensor& m, const Tensor& v, std::span<const Range> decayed, double gradient_scale = 1,
                const Tensor& clip = {});

/// What of that changes from step to step: 1 - lr weight_decay, lr / (1 - beta1^step) and 1 / sqrt(1 - beta2^step).
std::array<double, 3> adamw_numbers(const AdamW& adam, std::int64_t step, double lr);

/// The same step, its adamw_numbers read from memory, f64 (3) on the values' device, when it is done: a graph that
/// holds it need not be recorded anew.
void adamw_step(const AdamW& adam, const Tensor& numbers, const Tensor& value, const Tensor& gradient, const Tensor& m,
                const Tensor& v, std::span<const Range> decayed, double gradient_scale = 1, const Tensor& clip = {});

/// sqrt(sum of the squares of all elements of all tensors), in f64; tensors may be empty handles. Not finite if any
/// element is not. Waits for the device.
double global_norm(const Tensors& tensors);

/// The square of the global norm, f64 (), left on the device where the tensors are (all on one; an Error if not): waits
/// for nothing.
Tensor square_sum(const Tensors& tensors);

/// min(1, clip_norm / (norm + 1e-6)), or 1 for a clip_norm of 0, as f64 () on the device of `known`, f64 (n): its last
/// element is the square of that norm, those before it (the losses of a step) need only be finite. NaN, by which
/// adamw_step changes nothing, if one of them is not.
Tensor clip_factor(const Tensor& known, double clip_norm);

namespace kernels {

/// A step as the kernel does it: value = keep value - rate m / (sqrt(v) root + eps).
struct AdamWStep {
  double beta1, beta2, eps, gradient_scale;
  const double* numbers;  // keep (where it decays), rate, root
  const double* clip;     // one more number to scale gradients with, or null
};

template <class T>
struct Optimizer {
  /// `borders`: ascending; elements decay from the first on, do not from the second on, do again from the third on, ...
  static void adamw(Cpu, const AdamWStep& step, std::span<const std::int64_t> borders, std::int64_t count, T* value,
                    const T* gradient, T* m, T* v);
  static void adamw(Cuda, const AdamWStep& step, std::span<const std::int64_t> borders, std::int64_t count, T* value,
                    const T* gradient, T* m, T* v);
  /// sum += the sum of squares, in f64, in an order that follows from `count` alone.
  static void add_square_sum(Cpu, std::int64_t count, const T* x, double* sum);
  static void add_square_sum(Cuda, std::int64_t count, const T* x, double* sum);
};

struct ClipFactor {
  static void forward(Cpu, std::int64_t count, const double* known, double clip_norm, double* factor);
  static void forward(Cuda, std::int64_t count, const double* known, double clip_norm, double* factor);
};

}  // namespace kernels

}  // namespace sinkhorn
