// Who sees whom in bucketed attention, by index arithmetic: what its kernels share, with and without tensor cores.
#pragma once
#include "autograd/ops/bucketed_attention.h"
#include "cuda/divisor.h"
#include "cuda/random.h"

namespace sinkhorn::cuda {

// Everything both passes read, as the device sees it.
template <class T>
struct AttentionInputs {
  using R = Real<T>;
  explicit AttentionInputs(const typename kernels::BucketedAttention<T>::Arguments& in)
      : length(int(in.shape.length)),
        key_length(int(in.shape.key_length)),
        buckets(int(in.shape.buckets())),
        key_buckets(int(in.shape.key_buckets())),
        heads(int(in.shape.heads)),
        by_heads(in.shape.heads),
        by_buckets(in.shape.buckets()),
        by_key_buckets(in.shape.key_buckets()),
        local(int(in.shape.pattern.local)),
        width(int(in.shape.width)),
        query_stride(int(in.shape.query_stride())),
        key_stride(int(in.shape.key_stride())),
        bucket(int(in.shape.pattern.bucket)),
        key_bucket(int(in.shape.pattern.key_bucket)),
        lists(int(in.shape.lists)),
        n_top(int(in.shape.n_top)),
        nulls(int(in.shape.nulls())),
        causal(in.shape.pattern.causal),
        own(in.shape.pattern.own),
        q(in.q),
        kv(in.kv),
        weights(in.weights),
        null_keys(in.null_keys),
        null_values(in.null_values),
        picks(in.picks),
        mask(in.mask),
        key_mask(in.key_mask),
        dropout(in.dropout),
        local_stream(in.local_bits),
        sorting_stream(in.sorting_bits) {}

  // A sequence has fewer than 2^31 tokens, all of them together may have more elements.
  int length, key_length, buckets, key_buckets, heads;
  Divisor by_heads, by_buckets, by_key_buckets;
  int local, width;
  int query_stride, key_stride;  // elements from a token to the next
  int bucket, key_bucket, lists, n_top, nulls;
  bool causal, own;
  Global<const T> q, kv;
  Global<const R> weights;
  Global<const T> null_keys, null_values;
  Global<const std::int32_t> picks;
  Global<const bool> mask, key_mask;
  double dropout;
  RandomStream local_stream, sorting_stream;
};

// A stretch of key columns that a query bucket looks at, the first of them column `at` of all.
struct AttentionBlock {
  enum Kind { closed, null, keys, own } kind;
  int begin;  // first slot of its keys; of no meaning for null, whose one key stands in every column
  int width;
  std::int64_t choice;  // place of its weight; -1: weight 1
  int at;
};

// One head of one sequence.
template <class T>
struct AttentionHead {
  using R = Real<T>;
  SINKHORN_DEVICE AttentionHead(const AttentionInputs<T>& inputs, int item)
      : in(inputs),
        sequence(item / inputs.by_heads),
        head(item - sequence * inputs.heads),
        sorting(inputs.heads - inputs.local),
        sorting_head(head - inputs.local),
        is_local(head < inputs.local),
        shift(inputs.causal && !is_local && sorting_head >= sorting / 2 ? inputs.bucket - 1 : 0) {}

  SINKHORN_DEVICE int blocks() const { return is_local ? (in.causal ? 2 : 3) : in.n_top + (in.own ? 1 : 0); }
  SINKHORN_DEVICE int columns() const {
    return is_local ? blocks() * in.bucket : in.n_top * in.key_bucket + (in.own ? in.bucket : 0);
  }
  // Of this head's sorting heads in all sequences; of no meaning for a local head.
  SINKHORN_DEVICE int group() const { return sequence * sorting + sorting_head; }

  // The c-th block of query bucket u.
  SINKHORN_DEVICE AttentionBlock block(int u, int c) const {
    const int b = in.bucket;
    if (is_local) {  // before, own, behind
      const int window = u + c - 1;
      const bool there = window >= 0 && window < in.buckets;
      return {c == 1  ? AttentionBlock::own
              : there ? AttentionBlock::keys
                      : AttentionBlock::closed,
              window * b, b, -1, c * b};
    }
    if (c == in.n_top) return {AttentionBlock::own, u * b, b, -1, c * in.key_bucket};
    const std::int64_t choice = (std::int64_t(group()) * in.lists + (in.lists == 1 ? 0 : u)) * in.n_top + c;
    const int pick = in.picks[choice], source = pick - in.nulls;
    const bool there = pick >= 0 && source < in.key_buckets;
    return {!there       ? AttentionBlock::closed
            : source < 0 ? AttentionBlock::null
                         : AttentionBlock::keys,
            source * in.key_bucket, in.key_bucket, choice, c * in.key_bucket};
  }
  SINKHORN_DEVICE R weight(const AttentionBlock& block) const {
    return block.choice < 0 ? R(1) : in.weights[block.choice];
  }

  // The token in a slot of this head, as an index into (B, length).
  SINKHORN_DEVICE std::int64_t token(int slot, int length) const {
    const int rotated = slot + shift;
    return std::int64_t(sequence) * length + (rotated < length ? rotated : rotated - length);
  }
  // Where the row of a slot begins: in queries or their gradient, in keys (part 0) and values (1) or theirs, and in
  // results (B, T, H, d) or theirs.
  SINKHORN_DEVICE std::int64_t query_row(int slot) const {
    return token(slot, in.length) * in.query_stride + head * in.width;
  }
  SINKHORN_DEVICE std::int64_t key_row(int slot, int part) const {
    return token(slot, in.key_length) * in.key_stride + (part * in.heads + head) * in.width;
  }
  SINKHORN_DEVICE std::int64_t result_row(int slot) const {
    return (token(slot, in.length) * in.heads + head) * in.width;
  }

  // Whether query i of bucket u sees column j of a block: not padding, nor ahead of it. In the last bucket of a rotated
  // head (slots T-1, 0, 1, .., b-2) all but the own bucket lies ahead of the wrapped slots, and slot T-1 too.
  SINKHORN_DEVICE bool sees(int u, int i, const AttentionBlock& block, int j) const {
    if (i >= in.bucket || j < 0 || j >= block.width || block.kind == AttentionBlock::closed) return false;
    if (in.mask && !in.mask[token(u * in.bucket + i, in.length)]) return false;
    const bool own = block.kind == AttentionBlock::own, wrapped = shift > 0 && u == in.buckets - 1 && i > 0;
    if (own && in.causal && j > i) return false;
    if (wrapped && (!own || j == 0)) return false;
    return block.kind == AttentionBlock::null || !in.key_mask || in.key_mask[token(block.begin + j, in.key_length)];
  }

  // What dropout multiplies the probability of query i and column j with.
  SINKHORN_DEVICE R kept(int u, int i, const AttentionBlock& block, int j) const {
    if (in.dropout == 0) return 1;
    const RandomBits bits = (is_local ? in.local_stream : in.sorting_stream).now();
    const std::int64_t group = is_local ? sequence * in.local + head : this->group();
    const std::int64_t element = ((group * in.buckets + u) * in.bucket + i) * columns() + block.at + j;
    return bits.uniform<double>(std::uint64_t(element)) < in.dropout ? R(0) : R(1 / (1 - in.dropout));
  }

  const AttentionInputs<T>& in;
  int sequence, head, sorting, sorting_head;
  bool is_local;
  int shift;
};

}  // namespace sinkhorn::cuda
