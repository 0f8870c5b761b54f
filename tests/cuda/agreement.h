// How results on the device are compared with those on the CPU: both against f64, by squared error.
#pragma once
#include <gtest/gtest.h>

#include <cmath>

#include "autograd/graph.h"
#include "autograd/pool.h"
#include "autograd/tensor.h"
#include "build_info.h"
#include "cuda/blas.h"
#include "cuda/device.h"

namespace sinkhorn::testing {

/// Tests on the device run on the emulated one where the build has no CUDA, and are skipped where it has but finds no
/// GPU.
#define SINKHORN_NEEDS_DEVICE() \
  if (!cuda::is_usable()) GTEST_SKIP() << cuda::probe().reason

/// True in a build without CUDA: kernels run one block after the other, so what is slow there is left to a GPU.
inline bool is_emulated() { return build_info::cuda.empty(); }

/// Guards on the device's pool for as long as it lives; every buffer must come back whole.
class Guarded {
 public:
  Guarded() : before_(pool().stats().damaged) { pool().guard(true); }
  ~Guarded() {
    pool().guard(false);
    EXPECT_EQ(pool().stats().damaged, before_) << "a kernel wrote beside a buffer";
  }

 private:
  static Pool& pool() { return Pool::of(Device::cuda); }
  std::size_t before_;
};

/// Plain launches where programs would use graphs, for as long as it lives.
class WithoutGraphs {
 public:
  WithoutGraphs() : before_(Graph::are_enabled()) { Graph::enable(false); }
  ~WithoutGraphs() { Graph::enable(before_); }

 private:
  bool before_;
};

/// Products of f32 in TF32, or not, for as long as it lives.
class Tf32 {
 public:
  explicit Tf32(bool allowed) : before_(cuda::allows_tf32()) { cuda::allow_tf32(allowed); }
  ~Tf32() { cuda::allow_tf32(before_); }

 private:
  bool before_;
};

/// sum (got - want)^2 / sum want^2; infinite if shapes differ, or where one is NaN or infinite and the other not so.
inline double squared_error(const Tensor& got, const Tensor& want) {
  if (!got || !want) return !got && !want ? 0 : INFINITY;
  if (got.shape() != want.shape()) return INFINITY;
  const std::vector<double> a = got.to_vector(), b = want.to_vector();
  double error = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) {
      size += std::isinf(b[i]) ? 0 : b[i] * b[i];
      continue;
    }
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) return INFINITY;
    error += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return error == 0 ? 0 : size > 0 ? error / size : INFINITY;
}

/// What an op does to rounding: matrix products sum more terms than others; attention chains two of them through an
/// exponential, and its gradients are differences of nearly equal sums.
enum class Arithmetic { elementwise, matrix_product, attention };

/// The largest squared error that passes. In bf16 cuBLAS rounds a product and its residual before it adds the bias, and
/// once more.
inline double limit_of(DType dtype, Arithmetic arithmetic = Arithmetic::elementwise) {
  if (dtype == DType::f64) return arithmetic == Arithmetic::attention ? 1e-25 : 1e-26;
  if (dtype == DType::bf16) return arithmetic == Arithmetic::matrix_product ? 2e-5 : 1e-5;
  constexpr double limits[] = {1e-12, 1e-11, 1e-10};
  return limits[static_cast<int>(arithmetic)];
}

}  // namespace sinkhorn::testing
