#include "autograd/ops/bucketed_attention.h"

namespace sinkhorn {
namespace {

enum Input { kQ, kKv, kWeights, kNullKeys, kNullValues, kPicks, kMask };

AttentionShape attention_shape(Inputs in, std::int64_t bucket, std::int64_t local) {
  const Shape &q = in[kQ].shape(), &kv = in[kKv].shape();
  if (q.rank() != 4 || kv != Shape{q[0], q[1], 2, q[2], q[3]})
    fail("bucketed_attention: expected q (B, T, H, d) and kv (B, T, 2, H, d), got ", q, " and ", kv);
  if (bucket < 1 || q[1] % bucket != 0)
    fail("bucketed_attention: the length ", q[1], " is not a multiple of the bucket size ", bucket);
  if (local < 0 || local > q[2]) fail("bucketed_attention: ", local, " local heads of ", q[2]);
  const Shape &weights = in[kWeights].shape(), &picks = in[kPicks].shape();
  AttentionShape s{q[0], q[1], q[2], local, q[3], bucket, weights.rank() == 4 ? weights[3] : 0};
  const Shape expected{s.batch, s.sorting(), s.buckets(), s.n_top}, nulls{s.sorting(), 1, s.width};
  if (weights != expected || picks != expected)
    fail("bucketed_attention: expected weights and picks (B, h, N, n) = ", expected, ", got ", weights, " and ", picks);
  if (in[kNullKeys].shape() != nulls || in[kNullValues].shape() != nulls)
    fail("bucketed_attention: expected null keys and values ", nulls, ", got ", in[kNullKeys].shape(), " and ",
         in[kNullValues].shape());
  if (in[kMask] && in[kMask].shape() != Shape{s.batch, s.length})
    fail("bucketed_attention: expected a mask (B, T) = ", Shape{s.batch, s.length}, ", got ", in[kMask].shape());
  return s;
}

template <class T>
typename kernels::BucketedAttention<T>::Arguments arguments(const ops::BucketedAttention& op, Inputs in) {
  return {attention_shape(in, op.bucket, op.local),
          in[kQ].data<T>(),
          in[kKv].data<T>(),
          in[kWeights].data<T>(),
          in[kPicks].data<std::int32_t>(),
          in[kNullKeys].data<T>(),
          in[kNullValues].data<T>(),
          in[kMask] ? in[kMask].data<bool>() : nullptr,
          op.dropout,
          op.rng.split(0).bits(),
          op.rng.split(1).bits()};
}

// The inputs of one case: routing that obeys causality, with nulls and earlier buckets among the picks.
Tensors draw_inputs(Draw& draw, AttentionShape s, bool masked) {
  Tensor picks(Shape{s.batch, s.sorting(), s.buckets(), s.n_top}, DType::i32);
  const Tensor random = draw.integers(picks.shape(), 1 << 20);
  for (std::int64_t i = 0; i < picks.count(); ++i) {
    const std::int64_t u = i / s.n_top % s.buckets(), choices = s.n_top + u;
    // distinct within a row: consecutive columns from a random one
    const std::int64_t start = random.data<std::int32_t>()[i - i % s.n_top];
    picks.data<std::int32_t>()[i] = std::int32_t((start + i % s.n_top) % choices);
  }
  return {draw.uniform({s.batch, s.length, s.heads, s.width}),
          draw.uniform({s.batch, s.length, 2, s.heads, s.width}),
          draw.uniform(picks.shape(), 0.2, 1),
          draw.uniform({s.sorting(), 1, s.width}),
          draw.uniform({s.sorting(), 1, s.width}),
          picks,
          masked ? draw.mask({s.batch, s.length}) : Tensor()};
}

}  // namespace

namespace ops {

Output BucketedAttention::forward(Saved& save, Inputs in) const {
  const AttentionShape s = attention_shape(in, bucket, local);
  Tensor y = in[kQ].like();
  Tensor log_sum_exp(Shape{s.batch, s.heads, s.length}, y.dtype() == DType::f64 ? DType::f64 : DType::f32, y.device());
  dispatch(y, [&]<class T>(auto space) {
    kernels::BucketedAttention<T>::forward(space, arguments<T>(*this, in), y.data<T>(), log_sum_exp.data<Real<T>>());
  });
  save.tensors.assign(in.begin(), in.end());
  save.tensors.push_back(log_sum_exp);
  return {y, {log_sum_exp}};
}

Tensors BucketedAttention::backward(const Saved& saved, const Tensor& dy) const {
  const Inputs in(saved.tensors.data(), saved.tensors.size() - 1);
  Tensors flows(in.size());
  for (int k = kQ; k <= kNullValues; ++k) flows[k] = in[k].like();
  dispatch(dy, [&]<class T>(auto space) {
    kernels::BucketedAttention<T>::backward(space, arguments<T>(*this, in), saved.tensors.back().data<Real<T>>(),
                                            dy.data<T>(),
                                            {flows[kQ].data<T>(), flows[kKv].data<T>(), flows[kWeights].data<T>(),
                                             flows[kNullKeys].data<T>(), flows[kNullValues].data<T>()});
  });
  return flows;
}

std::vector<Case<BucketedAttention>> BucketedAttention::cases() {
  auto at = [](std::string label, AttentionShape s, bool masked = false, double dropout = 0) {
    return Case<BucketedAttention>(std::move(label), {s.bucket, s.local, dropout, Rng(5)},
                                   [=](Draw& draw) { return draw_inputs(draw, s, masked); });
  };
  // batch, length, heads, local, width, bucket, n_top
  return {at("two sorting heads", {2, 6, 2, 0, 2, 2, 2}), at("one head is rotated", {1, 9, 1, 0, 3, 3, 1}),
          at("local heads", {1, 6, 2, 2, 2, 2, 0}),       at("mixed, three picks", {1, 6, 4, 1, 2, 2, 3}),
          at("buckets of one", {1, 3, 2, 1, 2, 1, 2}),    at("one bucket", {2, 3, 2, 0, 2, 3, 2}),
          at("padding", {2, 6, 3, 1, 2, 3, 2}, true),     at("dropout", {1, 6, 3, 1, 2, 3, 2}, false, 0.3)};
}

}  // namespace ops

Var bucketed_attention(const Var& q, const Var& kv, const Routing& routing, const Var& null_keys,
                       const Var& null_values, std::int64_t bucket, std::int64_t local, const Tensor& mask,
                       double dropout, Rng rng) {
  return apply(ops::BucketedAttention{bucket, local, dropout, std::move(rng)},
               {q, kv, routing.weights, null_keys, null_values, routing.picks, mask});
}

}  // namespace sinkhorn
