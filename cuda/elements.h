// Maps: y_i = f(x_i, ...) over arrays of equal length, in packs of 16 bytes where the arrays are aligned to them.
#pragma once
#include <tuple>

#include "cuda/launch.h"

namespace sinkhorn::cuda {

/// Numbers as elements of Y, rounded to nearest.
template <class Y, class R, int N>
SINKHORN_DEVICE Pack<Y, N> rounded(const Pack<R, N>& x) {
  Pack<Y, N> y;
  for (int k = 0; k < N; ++k) y[k] = Y(x[k]);
  return y;
}
#ifdef __CUDACC__
/// Two at once, in one instruction.
template <class Y, int N>
requires(std::is_same_v<Y, bf16>&& N % 2 == 0) __device__ Pack<Y, N> rounded(const Pack<float, N>& x) {
  Pack<Y, N> y;
#pragma unroll
  for (int k = 0; k < N; k += 2) {
    std::uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(x[k + 1]), "f"(x[k]));
    y[k].bits = std::uint16_t(both);
    y[k + 1].bits = std::uint16_t(both >> 16);
  }
  return y;
}
#endif

/// N elements from x + i on, as Real<T>.
template <int N, class T>
SINKHORN_DEVICE auto load_real(const Global<T>& x, std::int64_t i) {
  using Element = std::remove_const_t<T>;
  const Pack<Element, N> pack = x.template load<N>(i);
  Pack<Real<Element>, N> numbers;
  for (int k = 0; k < N; ++k) numbers[k] = pack[k];
  return numbers;
}

template <class F, class Y, class... X>
struct MappedElements {
  F f;
  Global<Y> y;
  std::tuple<Global<const X>...> x;
  template <int N>
  SINKHORN_DEVICE std::tuple<Pack<X, N>...> read(std::int64_t i, Width<N>) const {
    return std::apply([i](const auto&... of) { return std::tuple(of.template load<N>(i)...); }, x);
  }
  template <int N>
  SINKHORN_DEVICE void write(std::int64_t i, const std::tuple<Pack<X, N>...>& in, Width<N>) const {
    const auto value = [&](int k) { return std::apply([&](const auto&... of) { return f(of[k]...); }, in); };
    Pack<decltype(value(0)), N> out;
    for (int k = 0; k < N; ++k) out[k] = value(k);
    y.store(i, rounded<Y>(out));
  }
  template <int N>
  SINKHORN_DEVICE void operator()(std::int64_t i, Width<N> n) const {
    write(i, read(i, n), n);
  }
};

/// y_i = f(x_i, ...) for i < count; y may be one of the x. f takes and gives elements or their Real numbers. Packs are
/// those of y: a warp's writes then fill whole sectors.
template <class F, class Y, class... X>
void map_elements(std::string_view op, std::int64_t count, const F& f, Y* y, const X*... x) {
  constexpr int N = pack_width<Y>();
  for_each_pack<N>(op, count, is_aligned<N>(y) && (is_aligned<N>(x) && ...),
                   MappedElements<F, Y, X...>{f, y, {Global<const X>(x)...}});
}

}  // namespace sinkhorn::cuda
