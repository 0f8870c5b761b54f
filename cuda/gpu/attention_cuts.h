// How the kernels of attention are cut.
#pragma once
#include "cuda/blas.h"
#include "cuda/gpu/attention_forward.h"
#include "cuda/gpu/attention_key_gradient.h"
#include "cuda/gpu/attention_query_gradient.h"

namespace sinkhorn::cuda {

/// How the kernels are cut for a number of planes and a width of tiles, so that registers and shared memory suffice:
/// warps of a block, blocks on a multiprocessor, rows of a step, and rows of a part, whose scores are in registers at
/// once. What is fastest was measured (cuda/NOTES.md).
template <int kPlanes, int d>
struct Cut;
template <int d>
requires(d <= 64) struct Cut<1, d> {
  template <bool kDrops>
  using Forward = AttendOnTensorCores<1, d, 4, 4, 64, kDrops>;
  template <bool kDrops>
  using ForwardOfFew = Forward<kDrops>;  // of up to 64 queries
  template <bool kDrops>
  using Queries = QueryGradientOnTensorCores<1, d, 4, 3, 64, kDrops ? 32 : 64, kDrops>;
  template <bool kDrops>
  using Keys = KeyGradientOnTensorCores<1, d, 4, kDrops ? 2 : 3, 64, 64, kDrops>;
};
template <>
struct Cut<1, 128> {
  template <bool kDrops>
  using Forward = AttendOnTensorCores<1, 128, 4, 3, 32, kDrops>;
  template <bool kDrops>
  using ForwardOfFew = Forward<kDrops>;
  template <bool kDrops>
  using Queries = QueryGradientOnTensorCores<1, 128, 4, 2, 32, 32, kDrops>;
  template <bool kDrops>
  using Keys = KeyGradientOnTensorCores<1, 128, 4, 2, 32, 32, kDrops>;
};
template <int d>
requires(d <= 64) struct Cut<2, d> {
  template <bool kDrops>
  using Forward = AttendOnTensorCores<2, d, 8, 2, 64, kDrops>;
  template <bool kDrops>
  using ForwardOfFew = AttendOnTensorCores<2, d, 4, 4, 32, kDrops>;
  template <bool kDrops>
  using Queries = QueryGradientOnTensorCores<2, d, 4, 3, 32, 32, kDrops>;
  template <bool kDrops>
  using Keys = KeyGradientOnTensorCores<2, d, 4, 2, 64, 64, kDrops>;
};
template <int d>
requires(d <= 64) struct Cut<3, d> {
  template <bool kDrops>
  using Forward = AttendOnTensorCores<3, d, 4, 3, 32, kDrops>;
  template <bool kDrops>
  using ForwardOfFew = Forward<kDrops>;
  template <bool kDrops>
  using Queries = QueryGradientOnTensorCores<3, d, 4, 2, 32, 32, kDrops>;
  template <bool kDrops>
  using Keys = KeyGradientOnTensorCores<3, d, 4, 2, 32, 32, kDrops>;
};
template <int kPlanes>
requires(kPlanes > 1) struct Cut<kPlanes, 128> {
  template <bool kDrops>
  using Forward = AttendOnTensorCores<kPlanes, 128, 8, 1, 32, kDrops>;
  template <bool kDrops>
  using ForwardOfFew = AttendOnTensorCores<kPlanes, 128, 4, 1, 32, kDrops>;
  template <bool kDrops>
  using Queries = QueryGradientOnTensorCores<kPlanes, 128, 4, 1, 32, 32, kDrops>;
  template <bool kDrops>
  using Keys = KeyGradientOnTensorCores<kPlanes, 128, 4, 1, 32, 32, kDrops>;
};

/// Calls f with the cut for a number of planes and a width, in tiles that may be wider, and with whether dropout is on.
/// (Without it kernels are half as long: they waited for instructions in up to a tenth of their time.)
template <int kPlanes, class F>
auto with_width(std::int64_t width, F f) {
  return width <= 32 ? f(Cut<kPlanes, 32>{}) : width <= 64 ? f(Cut<kPlanes, 64>{}) : f(Cut<kPlanes, 128>{});
}
template <class T, class F>
auto with_cut(std::int64_t width, bool drops, F f) {
  const auto with_dropout = [&]<class Cut>(Cut cut) {
    return drops ? f(cut, std::true_type{}) : f(cut, std::false_type{});
  };
  if constexpr (std::is_same_v<T, bf16>)
    return with_width<1>(width, with_dropout);
  else
    return allows_tf32() ? with_width<2>(width, with_dropout) : with_width<3>(width, with_dropout);
}

}  // namespace sinkhorn::cuda
