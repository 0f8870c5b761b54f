// The gradient of bucketed attention's keys and values on tensor cores: a block of threads holds keys and walks over
// the queries that chose their bucket, which a sorted list of the picks names.
#pragma once
#include "cuda/gpu/choosers.h"

namespace sinkhorn::cuda {

/// dk and dv of a tile of key slots. Where the list of a bucket's choosers is cut, each piece leaves its sums, and
/// AddPieces adds them in their order.
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

/// The sums of the pieces of a list, first to last; one block of threads for each second piece and tile.
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

}  // namespace sinkhorn::cuda
