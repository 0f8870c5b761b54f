// The one place where a runtime device and element type become compile-time ones.
#pragma once
#include "autograd/tensor.h"

namespace sinkhorn {

/// Tags on which kernels are overloaded, one per device. The bodies for Cuda lie in cuda/: nvcc compiles them for the
/// GPU, and in a build without it the host's compiler does, for an emulated one (cuda/launch.h).
struct Cpu {};
struct Cuda {};

/// Calls `kernel(space)` by the device of `like`, for kernels that move bytes whatever they mean.
template <class Kernel>
void dispatch_device(const Tensor& like, Kernel kernel) {
  if (like.device() == Device::cpu) return kernel(Cpu{});
  kernel(Cuda{});
}

namespace detail {
template <class T, class Kernel>
void on_device(const Tensor& like, Kernel& kernel) {
  dispatch_device(like, [&](auto space) { kernel.template operator()<T>(space); });
}
}  // namespace detail

/// Calls `kernel.operator()<T>(space)` with T in {float, double, bf16}, by the dtype and device of `like`.
template <class Kernel>
void dispatch(const Tensor& like, Kernel kernel) {
  switch (like.dtype()) {
    case DType::f32:
      return detail::on_device<float>(like, kernel);
    case DType::f64:
      return detail::on_device<double>(like, kernel);
    case DType::bf16:
      return detail::on_device<bf16>(like, kernel);
    default:
      fail("dispatch: expected a floating type (f32, f64 or bf16), got ", like.dtype());
  }
}

/// For kernels under mixed precision, some of whose arrays are in a wider type: calls `kernel.operator()<T, W>(space)`,
/// T by the dtype of `like`, W by `wider`: T itself, or float where T is bf16.
template <class Kernel>
void dispatch_mixed(const Tensor& like, DType wider, Kernel kernel) {
  dispatch(like, [&]<class T>(auto space) {
    if (wider == dtype_of<T>) return kernel.template operator()<T, T>(space);
    if constexpr (std::is_same_v<T, bf16>) {
      if (wider == DType::f32) return kernel.template operator()<T, float>(space);
    }
    fail("dispatch: ", dtype_of<T>, " beside ", wider, "; the wider type can be the same, or f32 beside bf16");
  });
}

/// The same for kernels that only move elements: T is also std::int32_t or bool.
template <class Kernel>
void dispatch_any(const Tensor& like, Kernel kernel) {
  switch (like.dtype()) {
    case DType::i32:
      return detail::on_device<std::int32_t>(like, kernel);
    case DType::boolean:
      return detail::on_device<bool>(like, kernel);
    default:
      return dispatch(like, kernel);
  }
}

template <class... Ts>
struct TypeList {};
template <class T, class List>
inline constexpr bool contains = false;
template <class T, class... Ts>
inline constexpr bool contains<T, TypeList<Ts...>> = (std::is_same_v<T, Ts> || ...);
/// Calls `visit.operator()<T>()` for each T of the list.
template <class Visit, class... Ts>
void for_each(TypeList<Ts...>, Visit visit) {
  (visit.template operator()<Ts>(), ...);
}

}  // namespace sinkhorn
