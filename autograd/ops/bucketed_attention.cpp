#include "autograd/ops/bucketed_attention.h"

#include <algorithm>

#include "autograd/ops/elementwise.h"

namespace sinkhorn {
namespace {

enum Input { kQ, kKv, kWeights, kNullKeys, kNullValues, kPicks, kMask, kKeyMask, kInputs };

void check_pattern(const AttentionPattern& p, std::int64_t length, std::int64_t key_length, std::int64_t heads) {
  auto whole = [](std::int64_t length, std::int64_t bucket, const char* which) {
    if (bucket < 1 || length % bucket != 0)
      fail("bucketed_attention: the ", which, " length ", length, " is not a multiple of the bucket size ", bucket);
  };
  whole(length, p.bucket, "query");
  whole(key_length, p.key_bucket, "key");
  if (p.local < 0 || p.local > heads) fail("bucketed_attention: ", p.local, " local heads of ", heads);
  if ((p.own || p.causal || p.local > 0) && length != key_length)
    fail("bucketed_attention: queries see their own bucket or window, so as many keys are needed as queries: ", length,
         " queries, ", key_length, " keys");
  if (p.causal && p.bucket != p.key_bucket)
    fail("bucketed_attention: a causal layer needs equal buckets, got ", p.bucket, " for queries and ", p.key_bucket,
         " for keys");
}

AttentionShape attention_shape(Inputs in, const AttentionPattern& pattern) {
  const Shape &q = in[kQ].shape(), &kv = in[kKv].shape();
  const bool packed = !in[kKv];
  if (packed ? q.rank() != 5 || q[2] != 3 : q.rank() != 4 || kv.rank() != 5 || kv != Shape{q[0], kv[1], 2, q[2], q[3]})
    fail("bucketed_attention: expected q (B, T, H, d) and kv (B, S, 2, H, d), or all packed (B, T, 3, H, d), got ", q,
         " and ", kv);
  const std::int64_t key_length = packed ? q[1] : kv[1];
  check_pattern(pattern, q[1], key_length, q[-2]);
  const Shape &weights = in[kWeights].shape(), &picks = in[kPicks].shape();
  AttentionShape s{pattern, q[0], q[1], key_length, q[-2], q[-1], 0, 0, packed};
  if (weights.rank() == 4) {
    s.lists = weights[2];
    s.n_top = weights[3];
  }
  const Shape expected{s.batch, s.sorting(), s.lists, s.n_top}, nulls{s.sorting(), 1, s.width};
  const bool fits = s.lists == s.buckets() || (s.lists == 1 && !pattern.causal);
  if (weights != expected || picks != expected || !fits)
    fail("bucketed_attention: expected weights and picks (B, h, N, n), or (B, h, 1, n) if not causal, of B ", s.batch,
         ", h ", s.sorting(), ", N ", s.buckets(), ", got ", weights, " and ", picks);
  if (pattern.causal && (in[kNullKeys].shape() != nulls || in[kNullValues].shape() != nulls))
    fail("bucketed_attention: expected null keys and values ", nulls, ", got ", in[kNullKeys].shape(), " and ",
         in[kNullValues].shape());
  auto check_mask = [&](const Tensor& mask, std::int64_t length, const char* which) {
    if (mask && mask.shape() != Shape{s.batch, length})
      fail("bucketed_attention: expected a ", which, " mask ", Shape{s.batch, length}, ", got ", mask.shape());
  };
  check_mask(in[kMask], s.length, "query");
  check_mask(in[kKeyMask], s.key_length, "key");
  return s;
}

// Keys and values: a tensor of their own, or behind the queries.
template <class T>
T* keys_and_values(const AttentionShape& s, const Tensor& q, const Tensor& kv) {
  return s.packed ? q.data<T>() + s.heads * s.width : kv.data<T>();
}

template <class T>
typename kernels::BucketedAttention<T>::Arguments arguments(const ops::BucketedAttention& op, Inputs in) {
  auto values = [&](Input i) { return in[i] ? in[i].data<T>() : nullptr; };
  auto mask = [&](Input i) { return in[i] ? in[i].data<bool>() : nullptr; };
  const AttentionShape shape = attention_shape(in, op.pattern);
  return {shape,
          in[kQ].data<T>(),
          keys_and_values<T>(shape, in[kQ], in[kKv]),
          in[kWeights].data<Real<T>>(),
          in[kPicks].data<std::int32_t>(),
          values(kNullKeys),
          values(kNullValues),
          mask(kMask),
          mask(kKeyMask),
          op.dropout,
          op.rng.split(0).bits(),
          op.rng.split(1).bits()};
}

template <class T>
typename kernels::BucketedAttention<T>::Results results(const Tensor& y, const Tensor& rest,
                                                        const Tensor& log_sum_exp) {
  return {y.data<T>(), rest.data_or_null<T>(), log_sum_exp.data<Real<T>>()};
}

// The inputs of one case: distinct picks within a row; causal ones are nulls and earlier buckets.
Tensors draw_inputs(Draw& draw, const AttentionShape& s, bool masked) {
  Tensor picks(Shape{s.batch, s.sorting(), s.lists, s.n_top}, DType::i32);
  const Tensor random = draw.integers(picks.shape(), 1 << 20);
  for (std::int64_t i = 0; i < picks.count(); ++i) {
    const std::int64_t u = i / s.n_top % s.lists, choices = s.pattern.causal ? s.n_top + u : s.key_buckets();
    // consecutive columns from a random one
    const std::int64_t start = random.data<std::int32_t>()[i - i % s.n_top];
    picks.data<std::int32_t>()[i] = i % s.n_top < choices ? std::int32_t((start + i % s.n_top) % choices) : -1;
  }
  auto null = [&] { return s.pattern.causal ? draw.uniform({s.sorting(), 1, s.width}) : Tensor(); };
  auto mask = [&](std::int64_t length) { return masked ? draw.mask({s.batch, length}) : Tensor(); };
  const Tensor queries = mask(s.length);
  const Shape kv{s.batch, s.key_length, 2, s.heads, s.width};
  return {draw.uniform(s.packed ? kv.with(2, 3) : Shape{s.batch, s.length, s.heads, s.width}),
          s.packed ? Tensor() : draw.uniform(kv),
          draw.uniform(picks.shape(), 0.2, 1),
          null(),
          null(),
          picks,
          queries,
          s.length == s.key_length ? queries : mask(s.key_length)};
}

}  // namespace

namespace ops {

Output BucketedAttention::forward(Saved& save, Inputs in) const {
  const AttentionShape s = attention_shape(in, pattern);
  const Tensor y = in[kQ].like({s.batch, s.length, s.heads, s.width});
  const Tensor log_sum_exp(Shape{s.batch, s.heads, s.length}, wide(y.dtype()), y.device());
  const bool recorded = std::find(save.wants.begin(), save.wants.end(), true) != save.wants.end();
  const Tensor rest = recorded && y.dtype() == DType::bf16 ? y.like() : Tensor();
  dispatch(y, [&]<class T>(auto space) {
    kernels::BucketedAttention<T>::forward(space, arguments<T>(*this, in), results<T>(y, rest, log_sum_exp));
  });
  save.tensors.assign(in.begin(), in.end());
  for (const Tensor& result : {y, rest, log_sum_exp}) save.tensors.push_back(result);
  return {y, {log_sum_exp}};
}

Tensors BucketedAttention::backward(const Saved& saved, const Tensor& dy) const {
  const Inputs in(saved.tensors.data(), kInputs);
  const Tensor *const out = &saved.tensors[kInputs], &y = out[0], &rest = out[1], &log_sum_exp = out[2];
  Tensors flows(in.size());
  for (int k = kQ; k <= kNullValues; ++k)
    if (in[k]) flows[k] = in[k].like();
  dispatch(dy, [&]<class T>(auto space) {
    const auto flow = [&](Input k) { return flows[k] ? flows[k].data<T>() : nullptr; };
    const auto arguments = sinkhorn::arguments<T>(*this, in);
    kernels::BucketedAttention<T>::backward(space, arguments, results<T>(y, rest, log_sum_exp), dy.data<T>(),
                                            {flow(kQ), keys_and_values<T>(arguments.shape, flows[kQ], flows[kKv]),
                                             flows[kWeights].data<Real<T>>(), flow(kNullKeys), flow(kNullValues)});
  });
  return flows;
}

std::vector<Case<BucketedAttention>> BucketedAttention::cases() {
  auto at = [](std::string label, AttentionShape s, bool masked = false, double dropout = 0) {
    return Case<BucketedAttention>(std::move(label), {s.pattern, dropout, Rng(5)},
                                   [=](Draw& draw) { return draw_inputs(draw, s, masked); });
  };
  auto causal = [](std::int64_t bucket, std::int64_t local) { return AttentionPattern{bucket, bucket, local}; };
  auto free = [](std::int64_t bucket, std::int64_t key_bucket, std::int64_t local, bool own = true) {
    return AttentionPattern{bucket, key_bucket, local, false, own};
  };
  // pattern, batch, length, key_length, heads, width, lists, n_top
  return {at("two sorting heads", {causal(2, 0), 2, 6, 6, 2, 2, 3, 2}),
          at("one head is rotated", {causal(3, 0), 1, 9, 9, 1, 3, 3, 1}),
          at("local heads", {causal(2, 2), 1, 6, 6, 2, 2, 3, 0}),
          at("mixed, three picks", {causal(2, 1), 1, 6, 6, 4, 2, 3, 3}),
          at("packed", {causal(2, 1), 2, 6, 6, 3, 2, 3, 2, true}, true, 0.3),
          at("packed, both directions", {free(2, 3, 1), 1, 6, 6, 2, 2, 3, 2, true}),
          at("buckets of one", {causal(1, 1), 1, 3, 3, 2, 2, 3, 2}),
          at("one bucket", {causal(3, 0), 2, 3, 3, 2, 2, 1, 2}),
          at("padding", {causal(3, 1), 2, 6, 6, 3, 2, 2, 2}, true),
          at("dropout", {causal(3, 1), 1, 6, 6, 3, 2, 2, 2}, false, 0.3),
          at("both directions", {free(2, 2, 1), 2, 6, 6, 3, 2, 3, 2}),
          at("both directions, padding", {free(2, 2, 1), 2, 6, 6, 2, 2, 3, 2}, true),
          at("another key bucket", {free(2, 3, 1), 1, 6, 6, 2, 2, 3, 2}, false, 0.3),
          at("sortcut", {free(2, 3, 0), 2, 6, 6, 2, 2, 1, 2}, true),
          at("more picks than buckets", {free(3, 3, 0), 1, 6, 6, 1, 2, 2, 3}),
          at("context", {free(2, 2, 0, false), 1, 4, 6, 2, 2, 2, 2}),
          at("context, padding and sortcut", {free(2, 3, 0, false), 2, 4, 6, 2, 2, 1, 2}, true)};
}

}  // namespace ops

Var bucketed_attention(const Var& q, const Var& kv, const Routing& routing, const NullBlock& null,
                       const AttentionPattern& pattern, const AttentionMasks& masks, const AttentionDropout& dropout) {
  return apply(ops::BucketedAttention{pattern, dropout.rate, dropout.rng},
               {q, kv, cast(routing.weights, wide(q.value.dtype())), null.keys, null.values, routing.picks,
                masks.queries, masks.keys});
}

}  // namespace sinkhorn
