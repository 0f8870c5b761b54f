// Bucketed attention forward on tensor cores: a block of threads holds queries and walks over keys.
#pragma once
#include "cuda/gpu/attention_masks.h"

namespace sinkhorn::cuda {

/// y, and in bf16 what rounding took from it, and the log-sum-exp, of a tile of queries.
template <int kPlanes, int d, int kWarps, int kBlocks, int kStep, bool kDrops>
struct AttendOnTensorCores {
  using T = Number<kPlanes>;
  using Tile = MmaTile<d, kPlanes>;
  using Keys = Steps<d, kPlanes, kStep, kWarps * kWarp>;
  using Mask = cuda::Mask<T>;
  static constexpr int kRows = kWarps * kRowsOfWarp, kThreads = kWarps * kWarp, kBlocksOfMultiprocessor = kBlocks;
  // A row's base of exponents follows its largest score only when that is 2^8 times ahead: its sums need not be scaled
  // anew at every step, and lose no range.
  static constexpr float kSlack = 8;
  TileInputs<T> in;
  Divisor tiles;  // of queries in a bucket
  Global<T> y, rest;
  Global<float> log_sum_exp;

  static constexpr std::size_t shared_bytes() { return std::size_t(Tile::count(kRows)) * sizeof(bf16) + Keys::bytes(); }

  // What a warp knows of its rows.
  struct Rows {
    FragmentC sum[d / 8] = {};
    float base[2] = {kNone, kNone}, total[2] = {};

    // Moves the bases to scores that are ahead; `rescale` is what totals are to be multiplied with. Sums have been.
    __device__ void follow(const float (&largest)[2], float (&rescale)[2]) {
      bool moves = false;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float next = largest[half] > base[half] + kSlack ? largest[half] : base[half];
        rescale[half] = next == base[half] ? 1.0f : exp2_fast(base[half] - next);
        moves |= next != base[half];
        base[half] = next;
      }
      if (!__any_sync(0xffffffffu, moves)) return;
#pragma unroll
      for (FragmentC& piece : sum)
#pragma unroll
        for (int e = 0; e < 4; ++e) piece.x[e] *= rescale[e / 2];
    }
    // What exponents begin from: of a row that has seen nothing, any number.
    __device__ float origin(int half) const { return base[half] == kNone ? 0.0f : base[half]; }
  };

  __device__ void operator()(Thread& t) const {
    const auto [tile, u, item] = place_of(int(t.block()), tiles, in.by_buckets);
    const TileHead<T> head(in, item);
    const int i0 = tile * kRows, slot = u * in.bucket + i0, count = in.bucket - i0;
    const int lane = t.lane(), first = t.warp() * kRowsOfWarp;
    const int group = uniform(t.warp() / kWarpsOfGroup) * kRowsOfGroup;
    const Tile queries = tile_of<d, kPlanes>(t, kRows);
    const Keys keys(t, in.width);  // and values
    const HeadRows<const T> key_rows_of_head = key_rows(head, in.kv);
    const int apart = in.heads * in.width;  // from a key to its value
    const auto copy = [&](const KeySteps<kStep, T>& step, int s) {
      keys.copy_both(t, s, key_rows_of_head, apart, step.block.begin + step.j0, step.block.width - step.j0);
    };

    copy_rows<kRows, kThreads>(t, queries, query_rows(head, in.q), slot, count, in.width);
    KeySteps<kStep, T> ahead{head, u, i0 + kRows};
    bool more = ahead.next();
    if (more) copy(ahead, 0);
    commit_copies();
    Rows rows;
    for (int s = 0; more; s ^= 1) {
      const KeyBlock block = ahead.block;
      const Mask mask{head, u, block, i0 + first, ahead.j0};
      keys.arrive(t);
      more = ahead.next();
      if (more) copy(ahead, s ^ 1);
      commit_copies();
      if (!mask.is_triangle() || mask.key < i0 + group + kRowsOfGroup)
        attend(mask, lane, queries.from(group), keys.first_of(s), keys.second_of(s), rows);
    }
    await_copies<0>();
    t.sync();  // of the queries a warp reads only its own from here
    // Held in registers until here, its place cost blocks of four warps 180 bytes a thread in spills; those of eight do
    // not mind, but spill 200 if it is worked out anew.
    const int block = int(t.block());
    attend_nulls(place_of(kWarps == 4 ? anew(block) : block, tiles, in.by_buckets), lane, queries, first, rows);

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float all = sum_of_row(rows.total[half]), factor = all == 0 ? 0.0f : __fdividef(1.0f, all);
      const int row = first + half * 8 + lane / 4;
      if (lane % 4 == 0 && row < count)
        log_sum_exp[std::int64_t(item) * in.length + slot + row] =
            all == 0 ? -kNone : (rows.base[half] + __log2f(all)) * kLn2;
#pragma unroll
      for (FragmentC& piece : rows.sum)
#pragma unroll
        for (int e = 0; e < 2; ++e) piece.x[2 * half + e] *= factor;
    }
    if constexpr (kPlanes == 1) {
      FragmentA rounded[2][d / 16];  // and what rounding took, rounded in turn
      split(rounded, rows.sum);
      store_rows<d>(t, queries, rounded[0], result_rows(head, y), slot, count, in.width);
      if (rest) store_rows<d>(t, queries, rounded[1], result_rows(head, rest), slot, count, in.width);
    } else {
      store_rows<d>(t, queries, rows.sum, result_rows(head, y), slot, count, in.width);
    }
  }

  // One step of the running softmax.
  __device__ void attend(const Mask& mask, int lane, const Tile& queries, const Tile& keys, const Tile& values,
                         Rows& rows) const {
    FragmentC score[kStep / 8];
    begin_products();
    multiply_rows(score, queries, keys, 0, lane);
    commit_products();
    std::uint32_t kept[kStep / 32] = {};
#pragma unroll
    for (int j = 0; j < kStep; j += 32)
      if (kDrops) kept[j / 32] = mask.later(0, j).template kept<true>(lane);
    await_products<0>();
    pin(score);

    const float w = mask.block.weight;
    float scale = w * in.scale * kLog2E;
    const bool is_folded = folds(w);
    if (!mask.is_open(kStep) || !is_folded) {  // else scores are scaled as they are used
#pragma unroll
      for (int j = 0; j < kStep; j += 32) {
        const std::uint32_t seen = mask.later(0, j).template seen<true>(lane);
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float& x = score[j / 8 + n].x[e];
            x = bit(seen, n, e) ? x * scale : kNone;
          }
      }
      scale = 1;
    }
    float largest[2] = {kNone, kNone}, rescale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (const FragmentC& piece : score)
        largest[half] = fmaxf(largest[half], fmaxf(piece.x[2 * half], piece.x[2 * half + 1]));
      largest[half] = largest_of_row(largest[half]) * scale;
    }
    rows.follow(largest, rescale);
    const float log_weight = is_folded ? __log2f(w) : 0.0f, by_weight = is_folded ? __fdividef(1.0f, w) : 1.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float offset = log_weight - rows.origin(half);
      float all = 0;
#pragma unroll
      for (FragmentC& piece : score)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float p = exp2_fast(fmaf(piece.x[2 * half + e], scale, offset));
          all += p;
          piece.x[2 * half + e] = p;
        }
      rows.total[half] = fmaf(rows.total[half], rescale[half], all * by_weight);
    }
    if (!is_folded) {
#pragma unroll
      for (FragmentC& piece : score)
#pragma unroll
        for (float& x : piece.x) x *= w;
    }
    if (kDrops) drop(score, kept, in.keep_factor);
    FragmentA p[kPlanes][kStep / 16];
    split(p, score);
    begin_products();
    add_columns<d>(rows.sum, p, values, 0, lane);
    commit_products();
    await_products<0>();
    pin(rows.sum);
  }

  // Null blocks, for the warp's rows `first` ..
  __device__ void attend_nulls(const Place& place, int lane, const Tile& queries, int first, Rows& rows) const {
    const TileHead<T> head(in, place.item);
    if (head.is_local || in.nulls == 0) return;
    const T *const key = null_row(head, in.null_keys), *const value = null_row(head, in.null_values);
    for_nulls(head, place.bucket, [&](const KeyBlock& block) {
      const Mask mask{head, place.bucket, block, place.tile * kRows + first, 0};
      const float2 scores = times_vector(queries, first, key, in.width, lane);
      const NullColumns columns = null_columns<kDrops>(mask, lane);
      const float w = block.weight, scale = w * in.scale * kLog2E;
      float score[2] = {scores.x * scale, scores.y * scale}, rescale[2], factor[2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (columns.seen[half] == 0) score[half] = kNone;
      rows.follow(score, rescale);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float p = exp2_fast(score[half] - rows.origin(half));
        rows.total[half] *= rescale[half];
        if (lane % 4 == 0) rows.total[half] = fmaf(p, columns.seen[half], rows.total[half]);  // one lane's share of it
        factor[half] = w * p * columns.kept[half];
      }
      add_vector(rows.sum, factor, value, in.width, lane);
    });
  }
};

}  // namespace sinkhorn::cuda
