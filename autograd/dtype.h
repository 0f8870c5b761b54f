// Element types and devices, and the one bf16 type that every compiler we support understands.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <type_traits>

#include "autograd/error.h"

#ifdef __CUDACC__
#define SINKHORN_HD __host__ __device__
#else
#define SINKHORN_HD
#endif

namespace sinkhorn {

enum class DType : std::uint8_t { f32, f64, bf16, i32, boolean };
enum class Device : std::uint8_t { cpu, cuda };

/// The upper half of an f32. A storage type: kernels load it to `Real<bf16>` = float and sum there.
struct bf16 {
  std::uint16_t bits;

  bf16() = default;
  /// Rounds to nearest, ties to even; a NaN stays a NaN.
  SINKHORN_HD constexpr bf16(float value) : bits(round(std::bit_cast<std::uint32_t>(value))) {}
  SINKHORN_HD constexpr operator float() const { return std::bit_cast<float>(std::uint32_t(bits) << 16); }

 private:
  SINKHORN_HD static constexpr std::uint16_t round(std::uint32_t word) {
    if ((word & 0x7fffffffu) > 0x7f800000u) return std::uint16_t(word >> 16 | 0x40u);
    return std::uint16_t((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
  }
};

/// The type in which a kernel computes: f64 for f64, else f32.
template <class T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// The element type of Real<T>: what statistics, sums and routing are stored in.
constexpr DType wide(DType type) { return type == DType::f64 ? DType::f64 : DType::f32; }

template <class T>
inline constexpr DType dtype_of = std::is_same_v<T, float>          ? DType::f32
                                  : std::is_same_v<T, double>       ? DType::f64
                                  : std::is_same_v<T, bf16>         ? DType::bf16
                                  : std::is_same_v<T, std::int32_t> ? DType::i32
                                                                    : DType::boolean;

constexpr std::size_t size_of(DType type) {
  constexpr std::size_t sizes[] = {4, 8, 2, 4, 1};
  return sizes[static_cast<int>(type)];
}
constexpr bool is_floating(DType type) { return type <= DType::bf16; }

inline std::ostream& operator<<(std::ostream& out, DType type) {
  constexpr const char* names[] = {"f32", "f64", "bf16", "i32", "bool"};
  return out << names[static_cast<int>(type)];
}
inline std::ostream& operator<<(std::ostream& out, Device device) {
  return out << (device == Device::cpu ? "cpu" : "cuda");
}

}  // namespace sinkhorn
