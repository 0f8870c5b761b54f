#include "nn/composed_attention.h"

#include <cmath>

#include "autograd/visibility.h"

namespace sinkhorn {
namespace {

// (B, T, H, d) -> (B, H, T, d)
Var by_head(const Var& x) { return permute(x, {0, 2, 1, 3}); }

// One layer's heads and masks: q (B, H, T, d), k and v (B, H, S, d), masks (B, T) and (B, S).
struct Heads {
  // As they are projected: (B, T, H, d) and (B, S, 2, H, d), or (B, T, 3, H, d) and nothing.
  Heads(const Var& queries, const Var& keys_and_values, const AttentionMasks& masks) {
    const bool packed = !keys_and_values.value;
    const Var& all = packed ? queries : keys_and_values;
    const Shape s = all.shape();
    auto part = [&](std::int64_t i) { return by_head(reshape(slice(all, 2, i, i + 1), {s[0], s[1], s[3], s[4]})); };
    const Device device = queries.value.device();
    auto or_all = [device](const Tensor& mask, Shape shape) {
      return mask ? mask.to(device) : Tensor::full(shape, 1, DType::boolean, device);
    };
    q = packed ? part(0) : by_head(queries);
    k = part(packed ? 1 : 0);
    v = part(packed ? 2 : 1);
    query_is_real = or_all(masks.queries, {s[0], queries.shape()[1]});
    key_is_real = or_all(masks.keys, {s[0], s[1]});
  }
  Var q, k, v;
  Tensor query_is_real, key_is_real;
};

// softmax(q k' / sqrt(d)) v within buckets: q (G, N, b, d), k and v (G, N, J, d), allowed (G, N, b, J).
Var attend(const Var& q, const Var& k, const Var& v, const Tensor& allowed, double dropout_rate, const Rng& rng) {
  const Var scores = scale(matmul(q, k, false, true), 1 / std::sqrt(double(q.shape()[3])));
  Var probabilities = softmax(scores, allowed);
  if (dropout_rate > 0) probabilities = dropout(probabilities, dropout_rate, rng);
  return matmul(probabilities, v);
}

// The first `local` heads: each window sees itself, the one before and, unless causal, the one after. (B, local, T, d)
Var local_heads(const Heads& heads, const AttentionPattern& p, const AttentionDropout& dropout) {
  const Shape s = heads.q.shape();
  const std::int64_t groups = s[0] * p.local, length = s[2], windows = length / p.bucket;
  auto in_windows = [&](const Var& x) { return reshape(slice(x, 1, 0, p.local), {groups, windows, p.bucket, s[3]}); };
  auto neighbours = [&](const Var& x) {
    const Var rows = in_windows(x), around = pad(rows, 1, 1, 1);
    std::vector<Var> parts{slice(around, 1, 0, windows), rows};
    if (!p.causal) parts.push_back(slice(around, 1, 2, windows + 2));
    return concat(parts, 2);
  };
  const WindowRule rule{p.local, length, p.bucket, p.causal};
  const Tensor allowed = heads.query_is_real.like({groups, windows, p.bucket, rule.seen()});
  dispatch_device(allowed, [&](auto space) {
    kernels::Visible::windows(space, allowed.count(), rule, heads.query_is_real.data<bool>(),
                              heads.key_is_real.data<bool>(), allowed.data<bool>());
  });
  const Var y = attend(in_windows(heads.q), neighbours(heads.k), neighbours(heads.v), allowed, dropout.rate,
                       dropout.rng.split(0));
  return reshape(y, {s[0], p.local, length, s[3]});
}

// The other heads, each sequence and head a group of its own, in the order in which the head sees the sequence.
struct SortingHeads {
  SortingHeads(const Heads& heads, const AttentionPattern& pattern)
      : pattern(pattern),
        batch(heads.q.shape()[0]),
        count(heads.q.shape()[1] - pattern.local),
        groups(batch * count),
        length(heads.q.shape()[2]),
        key_length(heads.k.shape()[2]),
        width(heads.q.shape()[3]),
        buckets(length / pattern.bucket) {
    auto group = [&](const Var& x) {
      return reshape(rotated(slice(x, 1, pattern.local, x.shape()[1]), pattern.bucket - 1),
                     {groups, x.shape()[2], width});
    };
    auto group_mask = [&](const Tensor& mask) {
      const std::int64_t slots = mask.shape()[1];
      const Var by_head = broadcast_to(reshape(Var(mask), {batch, 1, slots}), {batch, count, slots});
      return rotated(by_head, pattern.bucket - 1).value.reshape({groups, slots});
    };
    q = group(heads.q);
    k = group(heads.k);
    v = group(heads.v);
    query_is_real = group_mask(heads.query_is_real);
    key_is_real = group_mask(heads.key_is_real);
  }
  // Causal layers rotate the second half of these heads along time (axis 2).
  Var rotated(const Var& x, std::int64_t shift) const {
    if (!pattern.causal) return x;
    return concat({slice(x, 1, 0, count / 2), rotate(slice(x, 1, count / 2, count), 2, shift)}, 1);
  }
  Var in_key_buckets(const Var& x) const {
    return reshape(x, {groups, key_length / pattern.key_bucket, pattern.key_bucket, width});
  }
  Var in_buckets(const Var& x) const { return reshape(x, {groups, buckets, pattern.bucket, width}); }

  AttentionPattern pattern;
  std::int64_t batch, count, groups, length, key_length, width, buckets;
  Var q, k, v;                        // (G, T, d), (G, S, d)
  Tensor query_is_real, key_is_real;  // (G, T), (G, S)
};

// What sorting hands to the query buckets: keys and values (G, lists, J, d) and which of the slots may be seen,
// bool (G, lists, J). One list for each query bucket, or one for all.
struct Sorted {
  Var keys, values;
  Tensor seen;
};

// The n chosen blocks of each list, times their weights; in causal layers n null blocks stand before the buckets.
Sorted chosen_blocks(const SortingHeads& heads, const Routing& routing, const NullBlock& null) {
  const Shape s = routing.picks.shape();  // (B, h, lists, n)
  const std::int64_t lists = s[2], n = s[3], c = heads.pattern.key_bucket, nulls = heads.pattern.causal ? n : 0;
  const Var weights = reshape(cast(routing.weights, heads.k.value.dtype()), {heads.groups, lists, n});
  const Tensor picks = routing.picks.reshape({heads.groups, lists, n});
  auto gathered = [&](const Var& x, const Var& token) {
    Var source = heads.in_key_buckets(x);
    if (nulls > 0) {
      const Var block = broadcast_to(reshape(token, {1, heads.count, 1, 1, heads.width}),
                                     {heads.batch, heads.count, nulls, c, heads.width});
      source = concat({reshape(block, {heads.groups, nulls, c, heads.width}), source}, 1);
    }
    return gather_buckets(source, weights, picks);
  };
  const Tensor seen = heads.key_is_real.like({heads.groups, lists, n * c});
  dispatch_device(seen, [&](auto space) {
    kernels::Visible::chosen(space, seen.count(), {lists * n, c, nulls, heads.key_length}, picks.data<std::int32_t>(),
                             heads.key_is_real.data<bool>(), seen.data<bool>());
  });
  return {gathered(heads.k, null.keys), gathered(heads.v, null.values), seen};
}

// Blends of the key buckets by the rows of a sorting matrix (B, h, rows, M).
Sorted blended_blocks(const SortingHeads& heads, const Var& matrix, bool shared) {
  const Shape s = matrix.shape();
  const std::int64_t rows = s[2], sources = s[3], c = heads.pattern.key_bucket, lists = shared ? 1 : rows,
                     slots = shared ? rows * c : c;
  const Var shares = reshape(matrix, {heads.groups, rows, sources});
  const Tensor is_real = heads.key_is_real.reshape({heads.groups, heads.key_length, 1});
  auto blended = [&](const Var& x) {
    const Var y = matmul(shares, reshape(mask_fill(x, is_real, 0), {heads.groups, sources, c * heads.width}));
    return reshape(y, {heads.groups, lists, slots, heads.width});
  };
  const Tensor seen = heads.key_is_real.like({heads.groups, lists, slots});
  dispatch(shares.value, [&]<class T>(auto space) {
    kernels::VisibleBlends<T>::forward(space, seen.count(), {rows, sources, c}, shares.value.data<T>(),
                                       heads.key_is_real.data<bool>(), seen.data<bool>());
  });
  return {blended(heads.k), blended(heads.v), seen};
}

// Every query bucket over its sorted slots and then, if the pattern says so, its own. (B, h, T, d)
Var attend_to_sorted(const SortingHeads& heads, const Sorted& sorted, const AttentionDropout& dropout) {
  const AttentionPattern& p = heads.pattern;
  const std::int64_t b = p.bucket, lists = sorted.seen.shape()[1], slots = sorted.seen.shape()[2];
  auto with_own = [&](const Var& blocks, const Var& x) {
    const Var all =
        lists == heads.buckets ? blocks : broadcast_to(blocks, {heads.groups, heads.buckets, slots, heads.width});
    return p.own ? concat({all, heads.in_buckets(x)}, 2) : all;
  };
  const SortedRule rule{heads.count, heads.length, heads.key_length, b, lists, slots, p.causal, p.own};
  const Tensor allowed = sorted.seen.like({heads.groups, heads.buckets, b, rule.width()});
  dispatch_device(allowed, [&](auto space) {
    kernels::Visible::sorted(space, allowed.count(), rule, sorted.seen.data<bool>(), heads.query_is_real.data<bool>(),
                             heads.key_is_real.data<bool>(), allowed.data<bool>());
  });
  const Var y = attend(heads.in_buckets(heads.q), with_own(sorted.keys, heads.k), with_own(sorted.values, heads.v),
                       allowed, dropout.rate, dropout.rng.split(1));
  return heads.rotated(reshape(y, {heads.batch, heads.count, heads.length, heads.width}), -(b - 1));
}

// Local heads, then sorting heads: (B, T, H, d).
template <class Sort>
Var attention(const Var& q, const Var& kv, const AttentionPattern& pattern, const AttentionMasks& masks,
              const AttentionDropout& dropout, Sort sort) {
  const Heads heads(q, kv, masks);
  std::vector<Var> outputs;
  if (pattern.local > 0) outputs.push_back(local_heads(heads, pattern, dropout));
  if (pattern.local < q.shape()[-2]) {
    const SortingHeads sorting(heads, pattern);
    outputs.push_back(attend_to_sorted(sorting, sort(sorting), dropout));
  }
  return by_head(concat(outputs, 1));
}

}  // namespace

Var composed_attention(const Var& q, const Var& kv, const Routing& routing, const NullBlock& null,
                       const AttentionPattern& pattern, const AttentionMasks& masks, const AttentionDropout& dropout) {
  return attention(q, kv, pattern, masks, dropout,
                   [&](const SortingHeads& heads) { return chosen_blocks(heads, routing, null); });
}

Var blended_attention(const Var& q, const Var& kv, const Var& matrix, bool shared, const AttentionPattern& pattern,
                      const AttentionMasks& masks, const AttentionDropout& dropout) {
  return attention(q, kv, pattern, masks, dropout,
                   [&](const SortingHeads& heads) { return blended_blocks(heads, matrix, shared); });
}

}  // namespace sinkhorn
