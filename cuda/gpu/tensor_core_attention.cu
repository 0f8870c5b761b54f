#include <algorithm>
#include <type_traits>

#include "autograd/memory.h"
#include "cuda/blas.h"
#include "cuda/gpu/attention_tiles.h"
#include "cuda/gpu/choosers.h"
#include "cuda/sums.h"
#include "cuda/tensor_core_attention.h"

// Each block of threads works on up to 128 rows, 64 to a group of four warps, and walks over what they meet in steps of
// 64 or 32 rows, of which two lie in shared memory: one at work, one on its way. Forward and the gradient of queries
// hold queries and walk over keys; the gradient of keys and values holds keys and walks over the queries that chose
// their bucket, which a sorted list of the picks names. Scores are kept in units of log 2, and a block's weight is
// folded into the exponent where it can be: w p = 2^(score + log2 w). In f32 operands are planes of bf16 (mma.h), and
// results leave as the sums they are.
namespace sinkhorn::cuda {
namespace {

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

// dq; per warp its share of the weights' gradients, and of each tile that of the nulls'; and of each query its
// log-sum-exp in units of log 2 and <dP, P> = <dy, y>.
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

// dk and dv of a tile of key slots. Where the list of a bucket's choosers is cut, each piece leaves its sums, and
// AddPieces adds them in their order.
template <int kPlanes, int d, int kWarps, int kBlocks, int kStep, int kPart, bool kDrops>
struct KeyGradientOnTensorCores {
  using T = Number<kPlanes>;
  using Tile = MmaTile<d, kPlanes>;
  using Queries = Steps<d, kPlanes, kStep, kWarps * kWarp>;
  using Mask = cuda::Mask<T>;
  static constexpr int kRows = kWarps * kRowsOfWarp, kThreads = kWarps * kWarp, kBlocksOfMultiprocessor = kBlocks;
  TileInputs<T> in;
  Divisor tiles;  // of keys in a key bucket
  Choosers choosers;
  int later_pieces;
  Global<const T> dy;
  Global<const float2> rows;  // of queries: log-sum-exp in units of log 2 and <dP, P>
  Global<T> dkv;
  Global<float4>
      sums_of_pieces;  // (2, later pieces, tiles, 2, d / 8, threads): first pieces by the number of the second

  static constexpr std::size_t shared_bytes() {
    return std::size_t(Tile::count(2 * kRows)) * sizeof(bf16) + Queries::bytes() + 2 * kStep * sizeof(float2);
  }
  static std::int64_t bytes_of_pieces(std::int64_t later_pieces, std::int64_t tiles) {
    return 2 * later_pieces * tiles * 2 * (d / 8) * kThreads * std::int64_t(sizeof(float4));
  }

  struct Sums {
    FragmentC dk[d / 8] = {}, dv[d / 8] = {};
  };
  // What a block of threads works on: a tile of a bucket of a head, and one piece of its list.
  struct Task {
    int tile, bucket, item;
    ChooserPiece piece;
  };
  __device__ int repeats() const { return in.lists == 1 ? in.buckets : 1; }
  // The later piece of number n.
  __device__ Task later_piece(int n, int tile) const {
    const ChooserPiece piece = ChooserPiece::later(choosers, repeats(), in.key_buckets, n);
    const int sorting = in.heads - in.local, group = piece.key / (in.key_buckets + 1);
    return {tile, piece.key - group * (in.key_buckets + 1), group / sorting * in.heads + in.local + group % sorting,
            piece};
  }
  // Later pieces, which are the longest, come first.
  __device__ bool find(const Thread& t, Task& task) const {
    const int block = int(t.block()), later = later_pieces * tiles.value();
    if (block < later) {
      const int number = block / tiles;
      task = later_piece(number, block - number * tiles.value());
      return task.piece.is_there();
    }
    const Place place = place_of(block - later, tiles, in.by_key_buckets);
    task = {place.tile, place.bucket, place.item, {}};
    const TileHead<T> head(in, place.item);
    if (!head.is_local)
      task.piece = ChooserPiece::first(choosers, repeats(), head.group() * (in.key_buckets + 1) + place.bucket);
    return true;
  }
  // Where a thread finds the sums of a piece.
  __device__ Global<float4> sums_of(const Thread& t, bool is_first, std::int64_t number, int tile) const {
    const std::int64_t piece = ((is_first ? 0 : later_pieces) + number) * tiles.value() + tile;
    return sums_of_pieces + (piece * 2 * (d / 8) * kThreads + t.index());
  }

  // Queries of one bucket, and what goes with them.
  struct Stage {
    Tile queries, flow;
    float2* rows;
  };
  __device__ void operator()(Thread& t) const {
    Task task;
    if (!find(t, task)) return;
    const int item = task.item, s0 = task.bucket * in.key_bucket + task.tile * kRows;
    const int count = min(in.key_bucket - task.tile * kRows, kRows);
    const TileHead<T> head(in, item);
    const int lane = t.lane(), first = t.warp() * kRowsOfWarp;
    const int group = uniform(t.warp() / kWarpsOfGroup) * kRowsOfGroup;
    const Tile keys = tile_of<d, kPlanes>(t, kRows), values = tile_of<d, kPlanes>(t, kRows);
    const Queries queries(t, in.width);  // and flow
    float2* const rows_of_queries = pointer(t.shared<float2>(2 * kStep));
    const auto stage = [&](int s) {
      return Stage{queries.first_of(s), queries.second_of(s), rows_of_queries + s * kStep};
    };
    const HeadRows<const T> from_q = query_rows(head, in.q), from_dy = result_rows(head, dy);
    const auto copy = [&](int u, int i0, int s) {
      const int slot = u * in.bucket + i0, rest = in.bucket - i0;
      queries.copy_first(t, s, from_q, slot, rest);
      queries.copy_second(t, s, from_dy, slot, rest);
      if (const int row = t.index(); row < kStep)
        copy_async<8>(rows_of_queries + s * kStep + row,
                      &rows[std::int64_t(item) * in.length + slot + (row < rest ? row : 0)], row < rest);
    };

    const int apart = in.heads * in.width;  // from a key to its value
    copy_rows<kRows, kThreads>(t, keys, values, HeadRows<const T>(key_rows(head, in.kv)), apart, s0, count, in.width);
    Visits<T> visits(head, s0, count, choosers, task.piece);
    bool more = visits.next();
    int i0 = 0;
    if (more) copy(visits.u, i0, 0);
    commit_copies();
    Sums sums;
    for (int s = 0; more; s ^= 1) {
      const int u = visits.u;
      const KeyBlock block = visits.block;
      const Mask all{head, u, block, i0, s0 - block.begin + first};
      const int group_key = s0 - block.begin + group;
      i0 += kStep;
      if (i0 >= in.bucket) {
        i0 = 0;
        more = visits.next();
      }
      await_products<0>();  // they read what is copied to next
      queries.arrive(t);
      if (more) copy(visits.u, i0, s ^ 1);
      commit_copies();
#pragma unroll
      for (int i = 0; i < kStep; i += kPart) {
        const Mask mask = all.later(i, 0);
        if ((!mask.is_triangle() || group_key < mask.query + kPart) && mask.query < in.bucket)
          add(mask, lane, keys.from(group), values.from(group), stage(s), i, sums);
      }
    }
    await_copies<0>();
    await_products<0>();
    pin(sums.dk);
    pin(sums.dv);
    t.sync();  // keys and values are read no more

    const bool is_first = task.piece.index == 0;
    if (is_first && task.piece.end - task.piece.begin <= choosers.piece) return store(t, task, keys, values, sums);
    const Global<float4> to =
        sums_of(t, is_first, task.piece.number(max(task.piece.index, std::int64_t(1)), choosers.piece), task.tile);
#pragma unroll
    for (int n = 0; n < d / 8; ++n) {
      to[n * kThreads] = {sums.dk[n].x[0], sums.dk[n].x[1], sums.dk[n].x[2], sums.dk[n].x[3]};
      to[(d / 8 + n) * kThreads] = {sums.dv[n].x[0], sums.dv[n].x[1], sums.dv[n].x[2], sums.dv[n].x[3]};
    }
  }

  // Through the tiles of keys and values, which nobody reads any more.
  __device__ void store(const Thread& t, const Task& task, const Tile& keys, const Tile& values, Sums& sums) const {
    const TileHead<T> head(in, task.item);
    const int s0 = task.bucket * in.key_bucket + task.tile * kRows;
    const int count = min(in.key_bucket - task.tile * kRows, kRows);
    const HeadRows<T> to = key_rows(head, dkv);
#pragma unroll
    for (FragmentC& piece : sums.dk)
#pragma unroll
      for (float& x : piece.x) x *= in.scale;
    store_rows<d>(t, keys, sums.dk, to, s0, count, in.width);
    const HeadRows<T> to_values{to.first + in.heads * in.width, to.stride, to.length, to.shift};
    store_rows<d>(t, values, sums.dv, to_values, s0, count, in.width);
  }

  // What some queries, from row `i` of the stage, give to the keys of a group.
  __device__ void add(const Mask& mask, int lane, const Tile& keys, const Tile& values, const Stage& stage, int i,
                      Sums& sums) const {
    FragmentC p[kPart / 8], ds[kPart / 8];
    begin_products();
    multiply_rows(p, keys, stage.queries, i, lane);
    multiply_rows(ds, values, stage.flow, i, lane);
    commit_products();
    const bool is_open = mask.is_open(kRowsOfWarp) && folds(mask.block.weight);
    std::uint32_t seen[kPart / 32], kept[kPart / 32] = {};
#pragma unroll
    for (int part = 0; part < kPart; part += 32) {
      seen[part / 32] = is_open ? ~0u : mask.later(part, 0).template seen<false>(lane);
      if (kDrops) kept[part / 32] = mask.later(part, 0).template kept<false>(lane);
    }
    await_products<0>();
    pin(p);
    pin(ds);
    pin(sums.dk);
    pin(sums.dv);
    if (kDrops) drop(ds, kept, in.keep_factor);

    const float w = mask.block.weight, scale = w * in.scale * kLog2E;
    const auto differentiate = [&](auto open, float log_weight, float weight) {
#pragma unroll
      for (int n = 0; n < kPart / 8; ++n)
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const float2 row = stage.rows[i + n * 8 + lane % 4 * 2 + side];
#pragma unroll
          for (int e = side; e < 4; e += 2) {
            float probability = exp2_fast(fmaf(p[n].x[e], scale, log_weight - row.x));
            if (!decltype(open)::value) probability = bit(seen[n / 4], n % 4, e) ? weight * probability : 0.0f;
            p[n].x[e] = probability;
            ds[n].x[e] = probability * fmaf(w, ds[n].x[e], -row.y);
          }
        }
    };
    if (is_open)
      differentiate(std::true_type{}, __log2f(w), 1.0f);
    else
      differentiate(std::false_type{}, 0.0f, w);
    if (kDrops) drop(p, kept, in.keep_factor);
    FragmentA a[kPlanes][kPart / 16], b[kPlanes][kPart / 16];
    split(a, p);
    split(b, ds);
    begin_products();
    add_columns<d>(sums.dv, a, stage.flow, i, lane);
    add_columns<d>(sums.dk, b, stage.queries, i, lane);
    commit_products();
  }
};

// The sums of the pieces of a list, first to last; one block of threads for each second piece and tile.
template <class KeyGradient>
struct AddPieces {
  static constexpr int d = KeyGradient::Tile::kWidth;
  KeyGradient of;

  static std::size_t shared_bytes() {
    return std::size_t(KeyGradient::Tile::count(2 * KeyGradient::kRows)) * sizeof(bf16);
  }

  __device__ void operator()(Thread& t) const {
    const int number = int(t.block()) / of.tiles, tile_number = int(t.block()) - number * of.tiles.value();
    const auto task = of.later_piece(number, tile_number);
    if (!task.piece.is_there() || task.piece.index != 1) return;
    typename KeyGradient::Sums sums;
    const auto add = [&](bool is_first, std::int64_t number) {
      const Global<float4> from = of.sums_of(t, is_first, number, tile_number);
#pragma unroll
      for (int n = 0; n < 2 * d / 8; ++n) {
        const float4 x = from[n * KeyGradient::kThreads];
        FragmentC& sum = n < d / 8 ? sums.dk[n] : sums.dv[n - d / 8];
        sum = {sum.x[0] + x.x, sum.x[1] + x.y, sum.x[2] + x.z, sum.x[3] + x.w};
      }
    };
    add(true, number);
    for (std::int64_t index = 1; task.piece.begin + index * of.choosers.piece < task.piece.end; ++index)
      add(false, task.piece.number(index, of.choosers.piece));
    const auto tile = [&] { return tile_of<d, KeyGradient::Tile::kDepth>(t, KeyGradient::kRows); };
    const typename KeyGradient::Tile keys = tile(), values = tile();
    of.store(t, task, keys, values, sums);
  }
};

struct Partial {
  std::int64_t after;
  Global<const float> x;
  __device__ float operator()(std::int64_t row, std::int64_t column) const { return x[row * after + column]; }
};

// How the kernels are cut for a number of planes and a width of tiles, so that registers and shared memory suffice:
// warps of a block, blocks on a multiprocessor, rows of a step, and rows of a part, whose scores are in registers at
// once. What is fastest was measured (cuda/NOTES.md).
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

// Calls f with the cut for a number of planes and a width, in tiles that may be wider, and with whether dropout is on.
// (Without it kernels are half as long: they waited for instructions in up to a tenth of their time.)
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

int attribute(cudaDeviceAttr which) {
  int value = 0;
  check("attention", cudaDeviceGetAttribute(&value, which, 0));
  return value;
}

constexpr std::string_view kName = "bucketed_attention";

}  // namespace

template <class T>
bool TensorCoreAttention<T>::takes(const AttentionShape& s) {
  static const int major = attribute(cudaDevAttrComputeCapabilityMajor);
  static const int shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (major < 8 || s.width % 8 != 0 || s.width > 128) return false;
  return with_cut<T>(s.width, false, [&]<class Cut, bool kDrops>(Cut, std::bool_constant<kDrops>) {
    using Forward = typename Cut::template Forward<kDrops>;
    using Queries = typename Cut::template Queries<kDrops>;
    using Keys = typename Cut::template Keys<kDrops>;
    return std::max({Forward::shared_bytes(), Queries::shared_bytes(), Keys::shared_bytes()}) <= std::size_t(shared);
  });
}

template <class T>
void TensorCoreAttention<T>::forward(const Arguments& in, const Results& out) {
  const AttentionShape& s = in.shape;
  const TileInputs<T> inputs(in);
  const auto attend = [&]<class Kernel>(std::type_identity<Kernel>) {
    const Divisor tiles(pieces(s.pattern.bucket, Kernel::kRows));
    launch(kName, s.batch * s.heads * s.buckets() * tiles.value(), Kernel::kThreads, Kernel::shared_bytes(),
           Kernel{inputs, tiles, out.y, out.rest, out.log_sum_exp});
  };
  with_cut<T>(s.width, inputs.drop_end > 0, [&]<class Cut, bool kDrops>(Cut, std::bool_constant<kDrops>) {
    if (s.pattern.bucket > 64)
      attend(std::type_identity<typename Cut::template Forward<kDrops>>{});
    else
      attend(std::type_identity<typename Cut::template ForwardOfFew<kDrops>>{});
  });
}

template <class T>
void TensorCoreAttention<T>::backward(const Arguments& in, const Results& out, const T* dy, const Flows& flows) {
  const AttentionShape& s = in.shape;
  const TileInputs<T> inputs(in);
  const Tensor rows = workspace({s.batch, s.heads, s.length, 2}, DType::f32);
  auto* const rows_of_queries = reinterpret_cast<float2*>(rows.data<float>());
  with_cut<T>(s.width, inputs.drop_end > 0, [&]<class Cut, bool kDrops>(Cut, std::bool_constant<kDrops>) {
    using Kernel = typename Cut::template Queries<kDrops>;
    constexpr int warps = Kernel::kThreads / kWarp;
    const Divisor tiles(pieces(s.pattern.bucket, Kernel::kRows));
    const std::int64_t parts = s.buckets() * tiles.value() * warps;
    const Tensor dweights = workspace({s.batch * s.sorting(), parts, s.n_top}, DType::f32);
    const std::int64_t rows_of_nulls = s.nulls() > 0 ? s.batch * s.buckets() * tiles.value() : 0;
    const Tensor dnulls = workspace({2, s.sorting(), rows_of_nulls, s.width}, DType::f32);
    launch(kName, s.batch * s.heads * s.buckets() * tiles.value(), Kernel::kThreads, Kernel::shared_bytes(),
           Kernel{inputs, tiles, s.batch, out.y, out.rest, dy, out.log_sum_exp, flows.q, rows_of_queries,
                  dweights.data<float>(), dnulls.data<float>()});
    const auto add = [&](std::int64_t before, std::int64_t extent, std::int64_t after, const float* partial, auto* to) {
      if (to) sum_axis<float>(kName, Around(Shape{before, extent, after}, 1), Partial{after, partial}, to);
    };
    // A row of routing is one query bucket's, or that of all.
    add(s.batch * s.sorting() * s.lists, s.lists == 0 ? 0 : parts / s.lists, s.n_top, dweights.data<float>(),
        flows.weights);
    constexpr std::int64_t one_launch = 4096;  // rows that threads add one after the other
    if (flows.null_keys && flows.null_values && rows_of_nulls > 0 && rows_of_nulls <= one_launch)
      return sums::add_chunks_of_two(kName, s.sorting(), rows_of_nulls, s.width, dnulls.data<float>(),
                                     sums::Into<T>{flows.null_keys}, sums::Into<T>{flows.null_values});
    const float *keys = dnulls.data<float>(), *values = keys + dnulls.count() / 2;
    add(s.sorting(), rows_of_nulls, s.width, keys, flows.null_keys);
    add(s.sorting(), rows_of_nulls, s.width, values, flows.null_values);
  });

  const ChooserLists lists(kName, s, in.picks);
  with_cut<T>(s.width, inputs.drop_end > 0, [&]<class Cut, bool kDrops>(Cut, std::bool_constant<kDrops>) {
    using Kernel = typename Cut::template Keys<kDrops>;
    const Divisor tiles(pieces(s.pattern.key_bucket, Kernel::kRows));
    const std::int64_t later = lists.later_pieces();
    const Tensor sums = workspace({Kernel::bytes_of_pieces(later, tiles.value())}, DType::boolean);
    const Kernel kernel{inputs, tiles,           lists.choosers(), int(later),
                        dy,     rows_of_queries, flows.kv,         reinterpret_cast<float4*>(sums.raw())};
    launch(kName, (later + s.batch * s.heads * s.key_buckets()) * tiles.value(), Kernel::kThreads,
           Kernel::shared_bytes(), kernel);
    launch(kName, later * tiles.value(), Kernel::kThreads, AddPieces<Kernel>::shared_bytes(),
           AddPieces<Kernel>{kernel});
  });
}

template struct TensorCoreAttention<bf16>;
template struct TensorCoreAttention<float>;

}  // namespace sinkhorn::cuda
