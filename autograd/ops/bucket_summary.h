// What a sort net knows of a bucket: means over its tokens or over all tokens up to it, in one pass over the packed
// projection.
#pragma once
#include "autograd/tape.h"

namespace sinkhorn {

enum class Summary {
  mean_at_first,   // the running mean at the bucket's first token
  value_at_first,  // the bucket's first token itself, 0 if padded
  sum_of_means,    // the sum over the bucket's real tokens of the running mean
  mean,            // the mean of the bucket's real tokens, 0 if it has none
  sum,             // the sum of the bucket's real tokens
};

namespace kernels {

/// x is (B, T, P, H, d); part `part` of P and the heads from `local` on are summarised, h = H - local of them. If
/// `rotates`, the heads from h / 2 on are rotated left by bucket - 1 first.
struct SummaryShape {
  std::int64_t batch, length, parts, heads, width, part, local, bucket;
  bool rotates;
  std::int64_t sorting() const { return heads - local; }
  std::int64_t buckets() const { return length / bucket; }
};

template <class T>
struct BucketSummary {
  static void forward(Cpu, Summary kind, const SummaryShape& shape, const T* x, const bool* mask, Real<T>* y);
  static void forward(Cuda, Summary kind, const SummaryShape& shape, const T* x, const bool* mask, Real<T>* y);
  /// Adds to what dx has.
  static void backward(Cpu, Summary kind, const SummaryShape& shape, const Real<T>* dy, const bool* mask, T* dx);
  static void backward(Cuda, Summary kind, const SummaryShape& shape, const Real<T>* dy, const bool* mask, T* dx);
};

}  // namespace kernels

namespace ops {

/// Inputs x (B, T, H, d) or (B, T, P, H, d) and optional mask (B, T) bool; output (B, h, N, d), f32 for a bf16 x. With
/// the masked running mean m_t = sum_{s<=t} x_s / max(1, c_t) over real s, c_t of them:
///   dx_s = sum_{t>=s} dm_t / max(1, c_t) for real s;  for the mean over a bucket with c real tokens:  dx_s = dm /
///   max(1, c)
struct BucketSummary {
  static constexpr std::string_view name = "bucket_summary";
  Summary kind = Summary::mean_at_first;
  std::int64_t bucket = 1, local = 0, part = 0;
  bool rotates = true;
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<BucketSummary>> cases();

 private:
  kernels::SummaryShape summary_shape(const Shape& x) const;
};

}  // namespace ops

/// Summaries (B, h, N, d) of the sorting heads (those from `local` on) of x: (B, T, H, d), or part `part` of
/// (B, T, P, H, d). `rotates`: the second half of the sorting heads sees the sequence rotated left by bucket - 1, as in
/// causal self-attention. `mask` (B, T) bool, true = real. Sums run in f64; the summaries of a
/// bf16 x are f32. Behaviour 2.2, 2.3, 2.8 and rule 3.
Var bucket_summary(const Var& x, Summary kind, std::int64_t bucket, std::int64_t local, std::int64_t part = 0,
                   const Tensor& mask = {}, bool rotates = true);

}  // namespace sinkhorn
