// The gradient of bucketed attention's queries on tensor cores: a block of threads holds queries and walks over keys.
#pragma once
#include "cuda/gpu/attention_masks.h"
#include "cuda/reduce.h"

namespace sinkhorn::cuda {

/// dq; per warp its share of the weights' gradients, and of each tile that of the nulls'; and of each query its
/// log-sum-exp in units of log 2 and <dP, P> = <dy, y>.
template <int kPlanes, int d, int kWarps, int kBlocks, int kStep, int kPart, bool kDrops>
struct QueryGradientOnTensorCores {
  using T = Number<kPlanes>;
  using Tile = MmaTile<d, kPlanes>;
  using Keys = Steps<d, kPlanes, kStep, kWarps * kWarp>;
  using Mask = cuda::Mask<T>;
  static constexpr int kRows = kWarps * kRowsOfWarp, kThreads = kWarps * kWarp, kBlocksOfMultiprocessor = kBlocks;
  TileInputs<T> in;
  Divisor tiles;
  std::int64_t batch;
  Global<const T> y, rest, dy;
  Global<const float> log_sum_exp;
  Global<T> dq;
  Global<float2> rows;     // (B, H, T), slots in rotated order
  Global<float> dweights;  // (B, h, N, tiles, warps, n)
  Global<float> dnulls;    // keys and values (2, h, B, N, tiles, width)

  static constexpr std::size_t shared_bytes() {
    return std::size_t(Tile::count(2 * kRows)) * sizeof(bf16) + Keys::bytes() + kRows * sizeof(float2);
  }

  // What a warp gathers of its rows.
  struct Sums {
    FragmentC dq[d / 8] = {};
    float dweight = 0;
  };

  __device__ void operator()(Thread& t) const {
    const auto [tile, u, item] = place_of(int(t.block()), tiles, in.by_buckets);
    const TileHead<T> head(in, item);
    const int i0 = tile * kRows, slot = u * in.bucket + i0, count = in.bucket - i0;
    const int lane = t.lane(), first = t.warp() * kRowsOfWarp;
    const int group = uniform(t.warp() / kWarpsOfGroup) * kRowsOfGroup;
    const Tile queries = tile_of<d, kPlanes>(t, kRows), flow = tile_of<d, kPlanes>(t, kRows);
    const Keys keys(t, in.width);  // and values
    float2* const rows_of_block = pointer(t.shared<float2>(kRows));
    const HeadRows<const T> key_rows_of_head = key_rows(head, in.kv);
    const int apart = in.heads * in.width;  // from a key to its value
    const auto copy = [&](const KeySteps<kStep, T>& step, int s) {
      keys.copy_both(t, s, key_rows_of_head, apart, step.block.begin + step.j0, step.block.width - step.j0);
    };

    copy_rows<kRows, kThreads>(t, queries, query_rows(head, in.q), slot, count, in.width);
    copy_rows<kRows, kThreads>(t, flow, result_rows(head, dy), slot, count, in.width);
    commit_copies();
    KeySteps<kStep, T> ahead{head, u, i0 + kRows};
    bool more = ahead.next();
    if (more) copy(ahead, 0);
    commit_copies();
    const RowOfResult read = read_row(t, head, item, slot, count);
    await_copies<1>();
    t.sync();
    write_rows(t, read, item, slot, count, flow, rows_of_block + first);
    float lse[2], dot[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 row = rows_of_block[first + half * 8 + lane / 4];
      lse[half] = row.x;
      dot[half] = row.y;
    }

    Sums sums;
    const auto dweight_of = [&](int c) -> float& { return dweights_of(t, head, u, tile)[c]; };
    for (int c = lane; !head.is_local && c < in.n_top; c += kWarp) dweight_of(c) = 0;  // closed blocks have none
    __syncwarp();
    for (int s = 0; more; s ^= 1) {
      const KeyBlock block = ahead.block;
      const Mask all{head, u, block, i0 + first, ahead.j0};
      await_products<0>();  // they read what is copied to next
      keys.arrive(t);
      const auto send_next = [&] {
        more = ahead.next();
        if (more) copy(ahead, s ^ 1);
        commit_copies();
      };
#pragma unroll
      for (int j = 0; j < kStep; j += kPart) {
        const Mask mask = all.later(0, j);
        const auto meanwhile = [&] {
          if (j == 0) send_next();
        };
        if ((!mask.is_triangle() || mask.key < i0 + group + kRowsOfGroup) && mask.key < block.width)
          add(mask, lane, queries.from(group), flow.from(group), keys.first_of(s).from(j), keys.second_of(s).from(j),
              lse, dot, sums, meanwhile);
        else
          meanwhile();
      }
      if ((!more || ahead.block.c != block.c) && !head.is_local) {  // the block ends
        const float dweight = reduce_warp(t, sums.dweight, Plus{});
        if (lane == 0 && block.c < in.n_top) dweight_of(block.c) = dweight;
        sums.dweight = 0;
      }
    }
    await_copies<0>();
    await_products<0>();
    pin(sums.dq);
    t.sync();  // of queries and flow a warp reads only its own from here
    add_nulls(t, place_of(anew(int(t.block())), tiles, in.by_buckets), queries, flow, lse, dot, rows_of_block, sums);
#pragma unroll
    for (FragmentC& piece : sums.dq)
#pragma unroll
      for (float& x : piece.x) x *= in.scale;
    store_rows<d>(t, queries, sums.dq, query_rows(head, dq), slot, count, in.width);
  }

  // What some keys give to the queries of a group; `meanwhile` is called while products are at work.
  template <class F>
  __device__ void add(const Mask& mask, int lane, const Tile& queries, const Tile& flow, const Tile& keys,
                      const Tile& values, const float (&lse)[2], const float (&dot)[2], Sums& sums, F meanwhile) const {
    FragmentC p[kPart / 8], ds[kPart / 8];
    begin_products();
    multiply_rows(p, queries, keys, 0, lane);
    multiply_rows(ds, flow, values, 0, lane);
    commit_products();
    meanwhile();
    const bool is_open = mask.is_open(kPart) && folds(mask.block.weight);
    std::uint32_t seen[kPart / 32], kept[kPart / 32] = {};
#pragma unroll
    for (int j = 0; j < kPart; j += 32) {
      seen[j / 32] = is_open ? ~0u : mask.later(0, j).template seen<true>(lane);
      if (kDrops) kept[j / 32] = mask.later(0, j).template kept<true>(lane);
    }
    await_products<0>();
    pin(p);
    pin(ds);
    pin(sums.dq);
    if (kDrops) drop(ds, kept, in.keep_factor);

    const float w = mask.block.weight, scale = w * in.scale * kLog2E;
    float by_score = 0, by_value = 0;  // <dS, q k'> and <P, dy v'>, both times w where that is folded
    const auto differentiate = [&](auto open, float log_weight, float weight) {
#pragma unroll
      for (int n = 0; n < kPart / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float score = p[n].x[e], dp = ds[n].x[e];
          float probability = exp2_fast(fmaf(score, scale, log_weight - lse[e / 2]));
          if (!decltype(open)::value && !bit(seen[n / 4], n % 4, e)) probability = 0;
          const float dscore = probability * fmaf(w, dp, -dot[e / 2]);
          by_score = fmaf(dscore, score, by_score);
          by_value = fmaf(probability, dp, by_value);
          p[n].x[e] = decltype(open)::value ? probability : weight * probability;
          ds[n].x[e] = decltype(open)::value ? dscore : weight * dscore;
        }
    };
    if (is_open)
      differentiate(std::true_type{}, __log2f(w), 1.0f);
    else
      differentiate(std::false_type{}, 0.0f, w);
    sums.dweight += (by_score * in.scale + by_value) * (is_open ? __fdividef(1.0f, w) : 1.0f);
    FragmentA a[kPlanes][kPart / 16];
    split(a, ds);
    begin_products();
    add_columns<d>(sums.dq, a, keys, 0, lane);
    commit_products();
  }

  // Of the warp's rows, the gradients of the weights.
  __device__ Global<float> dweights_of(const Thread& t, const TileHead<T>& head, int u, int tile) const {
    return dweights +
           (((std::int64_t(head.group()) * in.buckets + u) * tiles.value() + tile) * kWarps + t.warp()) * in.n_top;
  }

  // What null blocks give to the warp's rows, and these to them.
  __device__ void add_nulls(const Thread& t, const Place& place, const Tile& queries, const Tile& flow,
                            const float (&lse)[2], const float (&dot)[2], float2* factors, Sums& sums) const {
    const TileHead<T> head(in, place.item);
    if (head.is_local || in.nulls == 0) return;
    const int lane = t.lane(), first = t.warp() * kRowsOfWarp, u = place.bucket;
    const T *const key = null_row(head, in.null_keys), *const value = null_row(head, in.null_values);
    float by_key[2] = {}, by_value[2] = {};  // what their gradients multiply each query and its dy with
    bool has_null = false;
    for_nulls(head, u, [&](const KeyBlock& block) {
      const Mask mask{head, u, block, place.tile * kRows + first, 0};
      const float2 scores = times_vector(queries, first, key, in.width, lane);
      const float2 dps = times_vector(flow, first, value, in.width, lane);
      const float score[2] = {scores.x, scores.y}, dp[2] = {dps.x, dps.y};
      const NullColumns columns = null_columns<kDrops>(mask, lane);
      const float w = block.weight, scale = w * in.scale * kLog2E;
      float dweight = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // sums over the columns
        const float p = columns.seen[half] == 0 ? 0.0f : exp2_fast(fmaf(score[half], scale, -lse[half]));
        const float kept = p * columns.kept[half];
        const float dscore = fmaf(w * dp[half], kept, -dot[half] * p * columns.seen[half]);
        dweight += fmaf(dscore * in.scale, score[half], kept * dp[half]);
        by_key[half] = fmaf(w, dscore, by_key[half]);
        by_value[half] = fmaf(w, kept, by_value[half]);
      }
      dweight = sum_of_rows(dweight);
      if (lane == 0) dweights_of(t, head, u, place.tile)[block.c] = dweight;
      has_null = true;
    });
    const std::int64_t row = std::int64_t(head.sorting_head) * batch + head.sequence;
    const Global<float> to = dnulls + ((row * in.buckets + u) * tiles.value() + place.tile) * in.width;
    const std::int64_t to_values = (in.heads - in.local) * batch * in.buckets * tiles.value() * in.width;
    if (has_null) {
      add_vector(sums.dq, by_key, key, in.width, lane);
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (lane % 4 == 0) factors[first + half * 8 + lane / 4] = {by_key[half], by_value[half]};
      t.sync();
    }
    for (int i = t.index(); i < 2 * in.width; i += kThreads) {
      const bool is_key = i < in.width;
      const int column = is_key ? i : i - in.width;
      float sum = 0;
      for (int row = 0; has_null && row < kRows; ++row)
        sum += is_key ? factors[row].x * queries.number(row, column) : factors[row].y * flow.number(row, column);
      to[is_key ? column : to_values + column] = is_key ? sum * in.scale : sum;
    }
    if (has_null) t.sync();  // the queries are read no more
  }

  // What two lanes read of a query of the warp, half each; asked for before tiles are waited for.
  struct RowOfResult {
    EightOfResult y[d / 16] = {};
    float log_sum_exp = 0;
  };
  __device__ RowOfResult read_row(const Thread& t, const TileHead<T>& head, int item, int slot, int count) const {
    const int row = t.warp() * kRowsOfWarp + t.lane() / 2, column = t.lane() % 2 * (d / 2);
    RowOfResult read;
    if (row >= count) return read;
    const HeadRows<const T> rows_of_y = result_rows(head, y);
    const T* const of_y = rows_of_y(slot + row) + column;
    const T* const of_rest = kPlanes == 1 ? result_rows(head, rest).first + (of_y - rows_of_y.first) : of_y;
#pragma unroll
    for (int k = 0; k < d / 2; k += 8)
      if (column + k < in.width) read.y[k / 8] = read_eight(of_y + k, of_rest + k);
    read.log_sum_exp = log_sum_exp[std::int64_t(item) * in.length + slot + row];
    return read;
  }
  __device__ void write_rows(const Thread& t, const RowOfResult& read, int item, int slot, int count, const Tile& flow,
                             float2* scratch) const {
    const int row = t.warp() * kRowsOfWarp + t.lane() / 2, column = t.lane() % 2 * (d / 2);
    float dot = 0;
#pragma unroll
    for (int k = 0; k < d / 2; k += 8) {
      const Eight y_of_k = numbers_of<T>(read.y[k / 8]), flow_of_k = numbers_of(flow, row, column + k);
#pragma unroll
      for (int e = 0; e < 8; ++e) dot = fmaf(y_of_k.x[e], flow_of_k.x[e], dot);
    }
    dot += t.shuffle_xor(dot, 1);
    if (t.lane() % 2 == 0) {
      const float2 values{read.log_sum_exp * kLog2E, dot};
      if (row < count) rows[std::int64_t(item) * in.length + slot + row] = values;
      scratch[t.lane() / 2] = values;
    }
    __syncwarp();
  }
};

}  // namespace sinkhorn::cuda
