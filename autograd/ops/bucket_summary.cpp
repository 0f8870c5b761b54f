#include "autograd/ops/bucket_summary.h"

namespace sinkhorn {
namespace ops {

kernels::SummaryShape BucketSummary::summary_shape(const Shape& x) const {
  if (x.rank() != 4 && x.rank() != 5) fail("bucket_summary: expected (B, T, H, d) or (B, T, P, H, d), got ", x);
  if (bucket < 1 || x[1] % bucket != 0)
    fail("bucket_summary: the length ", x[1], " is not a multiple of the bucket size ", bucket);
  const std::int64_t parts = x.rank() == 5 ? x[2] : 1;
  if (part < 0 || part >= parts || local < 0 || local > x[-2])
    fail("bucket_summary: part ", part, " and ", local, " local heads do not fit ", x);
  return {x[0], x[1], parts, x[-2], x[-1], part, local, bucket, rotates};
}

Output BucketSummary::forward(Saved& save, Inputs in) const {
  const Tensor &x = in[0], &mask = in[1];
  const kernels::SummaryShape s = summary_shape(x.shape());
  if (mask && mask.shape() != Shape{s.batch, s.length})
    fail("bucket_summary: expected a mask (B, T) = ", Shape{s.batch, s.length}, ", got ", mask.shape());
  Tensor y({s.batch, s.sorting(), s.buckets(), s.width}, wide(x.dtype()), x.device());
  dispatch(x, [&]<class T>(auto space) {
    kernels::BucketSummary<T>::forward(space, kind, s, x.data<T>(), mask.data_or_null<bool>(), y.data<Real<T>>());
  });
  save.tensors = {x, mask};
  return y;
}

Tensors BucketSummary::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &x = saved.tensors[0], &mask = saved.tensors[1];
  // Only the summarised part of x is touched, mostly behind attention, whose flow is there already.
  const Tensor dx = saved.adds(0) ? saved.into[0] : Tensor::zeros(x.shape(), x.dtype(), x.device());
  dispatch(x, [&]<class T>(auto space) {
    kernels::BucketSummary<T>::backward(space, kind, summary_shape(x.shape()), dy.data<Real<T>>(),
                                        mask.data_or_null<bool>(), dx.data<T>());
  });
  return {dx, {}};
}

std::vector<Case<BucketSummary>> BucketSummary::cases() {
  std::vector<Case<BucketSummary>> cases;
  for (Summary kind :
       {Summary::mean_at_first, Summary::value_at_first, Summary::sum_of_means, Summary::mean, Summary::sum}) {
    const std::string which = "kind " + std::to_string(static_cast<int>(kind));
    const bool rotates = kind != Summary::mean && kind != Summary::sum;
    auto packed = [](Draw& draw) { return Tensors{draw.uniform({2, 6, 2, 2, 2}), draw.mask({2, 6})}; };
    cases.push_back({which, {kind, 3, 1, 0, rotates}, [](Draw& draw) {
                       return Tensors{draw.uniform({2, 6, 3, 2}), {}};
                     }});
    cases.push_back({which + ", packed and padded", {kind, 2, 0, 1, rotates}, packed});
    cases.push_back({which + ", the other way round", {kind, 2, 0, 1, !rotates}, packed});
  }
  return cases;
}

}  // namespace ops

Var bucket_summary(const Var& x, Summary kind, std::int64_t bucket, std::int64_t local, std::int64_t part,
                   const Tensor& mask, bool rotates) {
  return apply(ops::BucketSummary{kind, bucket, local, part, rotates}, {x, mask});
}

}  // namespace sinkhorn
