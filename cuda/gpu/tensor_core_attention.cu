#include "cuda/attention_pattern.h"
#include "cuda/gpu/mma.h"
#include "cuda/sums.h"
#include "cuda/tensor_core_attention.h"

// Each block of threads works on up to 128 rows, 16 to a warp, and walks over what they meet in steps of 64 rows, of
// which two lie in shared memory: one at work, one on its way. Forward and the gradient of queries hold queries and
// walk over keys; the gradient of keys and values holds keys and walks over the queries that chose their bucket, which
// a sorted list of the picks names. Scores are kept in units of log 2.
namespace sinkhorn::cuda {
namespace {

constexpr int kStep = 64;
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kNone = -std::numeric_limits<float>::infinity();

using Inputs = AttentionInputs<bf16>;
using Head = AttentionHead<bf16>;
using Block = AttentionBlock;

template <class T>
__device__ T* pointer(const Shared<T>& memory) {
  return &memory[0];
}
template <int d>
__device__ MmaTile<d> tile_of(Thread& t, int rows) {
  return {pointer(t.shared<bf16>(MmaTile<d>::count(rows)))};
}
template <int d>
__device__ float scale_of_scores() {
  return d == 64 ? 0.125f : 0.17677669529663687f;  // 1 / sqrt(d)
}

// The rows of one head in memory, by slot: T elements of a token are `stride` from those of the next.
template <class T>
struct HeadRows {
  T* first;
  int stride, length, shift;
  __device__ T* operator()(int slot) const {
    const int rotated = slot + shift;
    return first + std::int64_t(rotated < length ? rotated : rotated - length) * stride;
  }
};
template <class T>
__device__ HeadRows<T> query_rows(const Head& head, const Global<T>& x) {
  const std::int64_t heads = head.in.heads, d = head.in.width;
  return {&x[(std::int64_t(head.sequence) * head.in.length * heads + head.head) * d], int(heads * d),
          int(head.in.length), int(head.shift)};
}
// part 0: keys, 1: values
template <class T>
__device__ HeadRows<T> key_rows(const Head& head, const Global<T>& kv, int part) {
  const std::int64_t heads = head.in.heads, d = head.in.width;
  return {&kv[((std::int64_t(head.sequence) * head.in.key_length * 2 + part) * heads + head.head) * d],
          int(2 * heads * d), int(head.in.key_length), int(head.shift)};
}

// The first kRows rows of a tile become those of slots `slot` .. + count - 1, and 0 behind them.
template <int kRows, int kThreads, int d>
__device__ void copy_rows(const Thread& t, const MmaTile<d>& tile, const HeadRows<const bf16>& from, int slot,
                          int count) {
  constexpr int chunks = d / 8, pass = kThreads / chunks;
  static_assert(kRows % pass == 0 && pass % 8 == 0);
  const int column = t.index() % chunks * 8, row = t.index() / chunks;
  bf16* const to = tile.at(row, column);
  if (count >= kRows && slot + from.shift + kRows <= from.length) {
    const bf16* x = from(slot + row) + column;
    const std::int64_t apart = std::int64_t(pass) * from.stride;
#pragma unroll
    for (int at = 0; at < kRows; at += pass, x += apart) copy_async<16>(to + at * d, x, true);
    return;
  }
#pragma unroll 1
  for (int at = 0; at < kRows; at += pass) {
    const bool is = at + row < count;
    copy_async<16>(to + at * d, from(is ? slot + at + row : slot) + column, is);
  }
}

// Keys and values of columns j0 .. of a block.
template <int kRows, int kThreads, int d>
__device__ void copy_keys(const Thread& t, const Head& head, bool is_null, int begin, int width, int j0,
                          const MmaTile<d>& keys, const MmaTile<d>& values) {
  const auto rows_of = [&](const Global<const bf16>& null, int part) {
    return is_null ? HeadRows<const bf16>{&null[head.sorting_head * d], 0, 1, 0} : key_rows(head, head.in.kv, part);
  };
  copy_rows<kRows, kThreads>(t, keys, rows_of(head.in.null_keys, 0), is_null ? 0 : begin + j0, width - j0);
  copy_rows<kRows, kThreads>(t, values, rows_of(head.in.null_values, 1), is_null ? 0 : begin + j0, width - j0);
}

// Stores a warp's rows, of slots `slot` .. + count - 1, through its part of a tile.
template <int d>
__device__ void store_rows(const Thread& t, const MmaTile<d>& tile, const FragmentC (&x)[d / 8],
                           const HeadRows<bf16>& to, int slot, int count) {
  const int first = t.warp() * kRowsOfWarp, row = t.lane() / 4, column = t.lane() % 4 * 2;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < d / 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<std::uint32_t*>(tile.at(first + half * 8 + row, n * 8 + column)) =
          pack(x[n].x[2 * half], x[n].x[2 * half + 1]);
  __syncwarp();
  constexpr int chunks = d / 8;
  const int at = t.lane() % chunks * 8;
  for (int r = first + t.lane() / chunks; r < first + kRowsOfWarp; r += kWarp / chunks)
    if (r < count) *reinterpret_cast<uint4*>(to(slot + r) + at) = *reinterpret_cast<const uint4*>(tile.at(r, at));
}

// What a block of threads works on: a tile of a bucket of a head of a sequence.
struct Place {
  int tile, bucket, item;
};
__device__ Place place_of(const Thread& t, int tiles, int buckets) {
  const auto block = std::uint32_t(t.block()), bucket = block / tiles;
  return {int(block % tiles), int(bucket % buckets), int(bucket / buckets)};
}

// Over the four lanes that share a row.
__device__ float sum_of_row(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ float largest_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// The rounded numbers of C are A of the next product.
template <int kPieces>
__device__ void round_to(FragmentA (&a)[kPieces / 2], const FragmentC (&c)[kPieces]) {
#pragma unroll
  for (int k = 0; k < kPieces / 2; ++k) a[k] = to_a(c[2 * k], c[2 * k + 1]);
}

// c (16, d) += the sum of each row of p times the first row of a tile: a null block, whose keys are all the same.
// Rounded to bf16, its equal probabilities would all be wrong in the same direction, so this is done in f32. Returns
// the sums.
template <int d, int kPieces>
__device__ float2 add_null(FragmentC (&c)[d / 8], const FragmentC (&p)[kPieces], const MmaTile<d>& tile, int lane) {
  float sum[2] = {};
#pragma unroll
  for (int n = 0; n < kPieces; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e / 2] += p[n].x[e];
#pragma unroll
  for (float& x : sum) x = sum_of_row(x);
#pragma unroll
  for (int n = 0; n < d / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) c[n].x[e] += sum[e / 2] * float(*tile.at(0, n * 8 + lane % 4 * 2 + e % 2));
  return {sum[0], sum[1]};
}

// Which pairs of 16 rows and some columns see each other, one side being queries i .. of their bucket, the other keys
// j .. of their block.
struct Mask {
  int query, key;    // the first of each
  int width;         // of the block
  bool is_triangle;  // keys up to the query
  bool is_wrapped;   // the last bucket of a rotated head: all but its first query see their own keys behind the first
  bool is_own;
  bool has_padding;  // so that more is hidden

  __device__ Mask(const Head& head, int u, Block::Kind kind, int width, int query, int key)
      : query(query),
        key(key),
        width(width),
        is_triangle(head.in.causal && kind == Block::own),
        is_wrapped(head.shift > 0 && u == head.in.buckets - 1),
        is_own(kind == Block::own),
        has_padding(head.in.mask || head.in.key_mask) {}
  // Whether all of these queries see all of these keys, and whether none does.
  __device__ bool is_open(int keys) const {
    return !has_padding && !is_wrapped && key >= 0 && key + keys <= width && !(is_triangle && key + keys - 1 > query);
  }
  __device__ bool is_closed(int end) const { return is_triangle && key >= end; }  // to the queries before `end`
  __device__ Mask later(int queries, int keys) const {
    Mask mask = *this;
    mask.query += queries;
    mask.key += keys;
    return mask;
  }
  // One bit for each of 32 keys that query i sees, as far as padding allows, and for each of 32 queries that see key j.
  __device__ std::uint32_t keys_of(int i) const {
    const int low = is_wrapped && i > 0 ? (is_own ? 1 : width) : 0, high = is_triangle ? min(i + 1, width) : width;
    return below(high - key) & ~below(low - key);
  }
  __device__ std::uint32_t queries_of(int j) const {
    if (j < 0 || j >= width) return 0;
    return (is_wrapped && (!is_own || j == 0) ? below(1 - query) : ~0u) & ~(is_triangle ? below(j - query) : 0);
  }

 private:
  __device__ static std::uint32_t below(int bits) { return bits >= 32 ? ~0u : (1u << max(bits, 0)) - 1; }
};

// Of the words for rows lane / 4 and 8 + lane / 4, the bits that concern a lane: number e of piece n is bit 8 n + e.
__device__ std::uint32_t bits_of_lane(std::uint32_t upper, std::uint32_t lower, int lane) {
  const int shift = lane % 4 * 2;
  return (upper >> shift & 0x03030303u) | (lower >> shift & 0x03030303u) << 2;
}
__device__ bool bit(std::uint32_t bits, int n, int e) { return bits >> (n * 8 + e) & 1; }

// Which of the 16 numbers that a lane holds of 16 x 32 are of pairs that see each other.
template <bool kRowsAreQueries>
__device__ std::uint32_t seen_bits(const Head& head, int u, Block::Kind kind, int begin, const Mask& mask, int lane) {
  const int row = (kRowsAreQueries ? mask.query : mask.key) + lane / 4;
  std::uint32_t words[2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
    words[half] = kRowsAreQueries ? mask.keys_of(row + half * 8) : mask.queries_of(row + half * 8);
  if (mask.has_padding) {
    const Inputs& in = head.in;
    const auto is_query = [&](int i) {
      return i < in.bucket && (!in.mask || in.mask[head.token(u * in.bucket + i, in.length)]);
    };
    const auto is_key = [&](int j) {
      return kind == Block::null || !in.key_mask ||
             (j >= 0 && j < mask.width && in.key_mask[head.token(begin + j, in.key_length)]);
    };
    const std::uint32_t columns =
        __ballot_sync(0xffffffffu, kRowsAreQueries ? is_key(mask.key + lane) : is_query(mask.query + lane));
#pragma unroll
    for (int half = 0; half < 2; ++half)
      words[half] &= (kRowsAreQueries ? is_query(row + half * 8) : is_key(row + half * 8)) ? columns : 0;
  }
  return bits_of_lane(words[0], words[1], lane);
}

// Which of them dropout keeps.
template <bool kRowsAreQueries>
__device__ std::uint32_t kept_bits(const Head& head, int u, int c, const Mask& mask, int lane) {
  if (head.in.dropout == 0) return ~0u;
  const Block block = head.block(u, c);
  std::uint32_t bits = 0;
#pragma unroll 1
  for (int k = 0; k < 16; ++k) {
    const int row = k % 4 / 2 * 8 + lane / 4, column = k / 4 * 8 + lane % 4 * 2 + k % 2;
    const bool is = kRowsAreQueries ? head.kept(u, mask.query + row, block, mask.key + column) != 0
                                    : head.kept(u, mask.query + column, block, mask.key + row) != 0;
    bits |= std::uint32_t(is) << (k / 4 * 8 + k % 4);
  }
  return bits;
}

// Multiplies with what dropout multiplies.
template <int kPieces>
__device__ void drop(FragmentC (&x)[kPieces], const std::uint32_t (&kept)[kPieces / 4], double dropout) {
  if (dropout == 0) return;
  const float factor = float(1 / (1 - dropout));
#pragma unroll
  for (int n = 0; n < kPieces; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) x[n].x[e] *= bit(kept[n / 4], n % 4, e) ? factor : 0.0f;
}

// Up to 64 keys that a query bucket looks at: from key j0 of its c-th block.
struct KeyStep {
  int c = -1, j0 = 0;
  Block::Kind kind = Block::closed;
  int begin = 0, width = 0;  // of the block
  float weight = 1;
};
// Steps over all that rows i0 .. of query bucket u look at.
struct KeySteps : KeyStep {
  const Head& head;
  int u, end;  // end: of the rows

  __device__ KeySteps(const Head& head, int u, int end) : head(head), u(u), end(end) {}
  // To the next step; false where there is none.
  __device__ bool next() {
    j0 += kStep;
    if (c >= 0 && j0 < width && !(head.in.causal && kind == Block::own && j0 >= end)) return true;
    for (++c; c < head.blocks(); ++c) {
      const Block block = head.block(u, c);
      if (block.kind == Block::closed) continue;
      j0 = 0;
      kind = block.kind;
      begin = block.begin;
      width = block.width;
      weight = head.weight(block);
      return true;
    }
    return false;
  }
};

template <int d, int kWarps, int kBlocks>
struct AttendOnTensorCores {
  static constexpr int kRows = kWarps * kRowsOfWarp, kThreads = kWarps * kWarp, kBlocksOfMultiprocessor = kBlocks;
  Inputs in;
  int tiles;  // of queries in a bucket
  Global<bf16> y, rest;
  Global<float> log_sum_exp;

  static std::size_t shared_bytes() { return std::size_t(MmaTile<d>::count(kRows + 4 * kStep)) * sizeof(bf16); }

  __device__ void operator()(Thread& t) const {
    const auto [tile, u, item] = place_of(t, tiles, in.buckets);
    const Head head(in, item);
    const int i0 = tile * kRows, slot = u * in.bucket + i0, count = in.bucket - i0;
    const int lane = t.lane(), first = t.warp() * kRowsOfWarp;
    const int group = t.warp() / kWarpsOfGroup * kRowsOfGroup;
    const MmaTile<d> queries = tile_of<d>(t, kRows), keys = tile_of<d>(t, 2 * kStep), values = tile_of<d>(t, 2 * kStep);
    const auto copy = [&](const KeySteps& step, int s) {
      copy_keys<kStep, kThreads>(t, head, step.kind == Block::null, step.begin, step.width, step.j0,
                                 keys.from(s * kStep), values.from(s * kStep));
      commit_copies();
    };

    copy_rows<kRows, kThreads>(t, queries, query_rows(head, in.q), slot, count);
    commit_copies();
    KeySteps ahead(head, u, i0 + kRows);
    bool more = ahead.next();
    if (more) copy(ahead, 0);
    FragmentC sum[d / 8] = {};
    float largest[2] = {kNone, kNone}, total[2] = {};
    for (int s = 0; more; s ^= 1) {
      const KeyStep step = ahead;
      const Mask mask(head, u, step.kind, step.width, i0 + first, step.j0);
      await_copies<0>();
      t.sync();
      more = ahead.next();
      if (more) copy(ahead, s ^ 1);
      if (!mask.is_closed(i0 + group + kRowsOfGroup))
        attend(head, u, step, mask, lane, queries.from(group), keys.from(s * kStep), values.from(s * kStep), sum,
               largest, total);
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float all = sum_of_row(total[half]), factor = all == 0 ? 0.0f : 1 / all;
      const int row = first + half * 8 + lane / 4;
      if (lane % 4 == 0 && row < count)
        log_sum_exp[std::int64_t(item) * in.length + slot + row] =
            all == 0 ? -kNone : (largest[half] + __log2f(all)) * kLn2;
#pragma unroll
      for (int n = 0; n < d / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) sum[n].x[2 * half + e] *= factor;
    }
    store_rows(t, queries, sum, query_rows(head, y), slot, count);
    if (!rest) return;
#pragma unroll
    for (FragmentC& piece : sum)
#pragma unroll
      for (float& x : piece.x) x -= float(bf16(x));
    store_rows(t, queries, sum, query_rows(head, rest), slot, count);
  }

  // One step of the running softmax.
  __device__ void attend(const Head& head, int u, const KeyStep& step, const Mask& mask, int lane,
                         const MmaTile<d>& queries, const MmaTile<d>& keys, const MmaTile<d>& values,
                         FragmentC (&sum)[d / 8], float (&largest)[2], float (&total)[2]) const {
    FragmentC score[kStep / 8];
    begin_products();
    multiply_rows<d>(score, queries, keys, 0, lane);
    commit_products();
    std::uint32_t kept[kStep / 32];
#pragma unroll
    for (int j = 0; j < kStep; j += 32) kept[j / 32] = kept_bits<true>(head, u, step.c, mask.later(0, j), lane);
    await_products<0>();
    pin(score);
    // Where all is seen, scores are scaled as they are used.
    const float w = step.weight;
    float scale = w * scale_of_scores<d>() * kLog2E;
    if (!mask.is_open(kStep) || scale < 0) {
#pragma unroll
      for (int j = 0; j < kStep; j += 32) {
        const std::uint32_t seen = seen_bits<true>(head, u, step.kind, step.begin, mask.later(0, j), lane);
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
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float above = kNone, all = 0;
#pragma unroll
      for (const FragmentC& piece : score) above = fmaxf(above, fmaxf(piece.x[2 * half], piece.x[2 * half + 1]));
      above = fmaxf(largest[half], largest_of_row(above) * scale);
      const float base = above == kNone ? 0.0f : above, rescale = exp2_fast(largest[half] - base);
      largest[half] = above;
#pragma unroll
      for (FragmentC& piece : score)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float p = exp2_fast(fmaf(piece.x[2 * half + e], scale, -base));
          all += p;
          piece.x[2 * half + e] = p * w;
        }
      total[half] = total[half] * rescale + all;
#pragma unroll
      for (FragmentC& piece : sum)
#pragma unroll
        for (int e = 0; e < 2; ++e) piece.x[2 * half + e] *= rescale;
    }
    drop(score, kept, in.dropout);
    if (step.kind == Block::null) {
      add_null(sum, score, values, lane);
      return;
    }
    FragmentA p[kStep / 16];
    round_to(p, score);
    begin_products();
    add_columns(sum, p, values, 0, lane);
    commit_products();
    await_products<0>();
    pin(sum);
  }
};

// dq, and per warp its shares of the weights' and nulls' gradients; and <dP, P> = <dy, y> of each query.
template <int d, int kWarps, int kBlocks, int kPart>
struct QueryGradientOnTensorCores {
  static constexpr int kRows = kWarps * kRowsOfWarp, kThreads = kWarps * kWarp, kBlocksOfMultiprocessor = kBlocks;
  Inputs in;
  int tiles;
  std::int64_t batch;
  Global<const bf16> y, rest, dy;
  Global<const float> log_sum_exp;
  Global<bf16> dq;
  Global<float> dots;                      // (B, H, T), slots in rotated order
  Global<float> dweights;                  // (B, h, N, tiles, warps, n)
  Global<float> dnull_keys, dnull_values;  // (h, B, N, tiles, warps, d)

  static std::size_t shared_bytes() {
    return std::size_t(MmaTile<d>::count(2 * kRows + 4 * kStep)) * sizeof(bf16) + kRows * sizeof(float);
  }

  __device__ void operator()(Thread& t) const {
    const auto [tile, u, item] = place_of(t, tiles, in.buckets);
    const Head head(in, item);
    const int i0 = tile * kRows, slot = u * in.bucket + i0, count = in.bucket - i0;
    const int lane = t.lane(), first = t.warp() * kRowsOfWarp;
    const int group = t.warp() / kWarpsOfGroup * kRowsOfGroup;
    const MmaTile<d> queries = tile_of<d>(t, kRows), flow = tile_of<d>(t, kRows);
    const MmaTile<d> keys = tile_of<d>(t, 2 * kStep), values = tile_of<d>(t, 2 * kStep);
    float* const scratch = pointer(t.shared<float>(kRows)) + first;  // of this warp
    const auto copy = [&](const KeySteps& step, int s) {
      copy_keys<kStep, kThreads>(t, head, step.kind == Block::null, step.begin, step.width, step.j0,
                                 keys.from(s * kStep), values.from(s * kStep));
      commit_copies();
    };

    copy_rows<kRows, kThreads>(t, queries, query_rows(head, in.q), slot, count);
    copy_rows<kRows, kThreads>(t, flow, query_rows(head, dy), slot, count);
    commit_copies();
    KeySteps ahead(head, u, i0 + kRows);
    bool more = ahead.next();
    if (more) copy(ahead, 0);
    await_copies<1>();
    t.sync();
    write_dots(t, head, item, slot, count, flow, scratch);
    float lse[2], dot[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = half * 8 + lane / 4;
      dot[half] = scratch[row];
      lse[half] =
          first + row < count ? log_sum_exp[std::int64_t(item) * in.length + slot + first + row] * kLog2E : 0.0f;
    }

    FragmentC sum[d / 8] = {};
    float null_key[2] = {}, null_value[2] = {};  // what the nulls' gradients multiply each query and its dy with
    const std::int64_t part = ((std::int64_t(head.group()) * in.buckets + u) * tiles + tile) * kWarps + t.warp();
    const auto dweight_of = [&](int c) -> float& { return dweights[part * in.n_top + c]; };
    for (int c = lane; !head.is_local && c < in.n_top; c += kWarp) dweight_of(c) = 0;  // closed blocks have none
    __syncwarp();
    float dweight = 0;
    for (int s = 0; more; s ^= 1) {
      const KeyStep step = ahead;
      const Mask all(head, u, step.kind, step.width, i0 + first, step.j0);
      await_copies<0>();
      await_products<0>();  // they read what is copied to next
      t.sync();
      more = ahead.next();
      if (more) copy(ahead, s ^ 1);
#pragma unroll
      for (int j = 0; j < kStep; j += kPart) {
        const Mask mask = all.later(0, j);
        if (!mask.is_closed(i0 + group + kRowsOfGroup) && mask.key < mask.width)
          add(head, u, step, mask, lane, queries.from(group), flow.from(group), keys.from(s * kStep + j),
              values.from(s * kStep + j), lse, dot, sum, dweight, null_key, null_value);
      }
      if (!more || ahead.c != step.c) {  // the block ends
        if (!head.is_local && step.c < in.n_top) {
          dweight = reduce_warp(t, dweight, Plus{});
          if (lane == 0) dweight_of(step.c) = dweight;
        }
        dweight = 0;
      }
    }
    await_products<0>();
    pin(sum);
    t.sync();  // the queries are read no more

    if (!head.is_local && in.nulls > 0) {
      const bf16* const key = &in.null_keys[head.sorting_head * d];
#pragma unroll
      for (float& x : null_key) x = sum_of_row(x);
#pragma unroll
      for (int n = 0; n < d / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[n].x[e] += null_key[e / 2] * float(key[n * 8 + lane % 4 * 2 + e % 2]);
      const std::int64_t row = std::int64_t(head.sorting_head) * batch + head.sequence;
      const std::int64_t at = ((row * in.buckets + u) * tiles + tile) * kWarps + t.warp();
      write_null(lane, {null_key[0], null_key[1]}, queries.from(first), scale_of_scores<d>(), scratch,
                 dnull_keys + at * d);
      write_null(lane, {sum_of_row(null_value[0]), sum_of_row(null_value[1])}, flow.from(first), 1, scratch,
                 dnull_values + at * d);
    }
#pragma unroll
    for (FragmentC& piece : sum)
#pragma unroll
      for (float& x : piece.x) x *= scale_of_scores<d>();
    store_rows(t, queries, sum, query_rows(head, dq), slot, count);
  }

  // What some keys give to the queries of a group.
  __device__ void add(const Head& head, int u, const KeyStep& step, const Mask& mask, int lane,
                      const MmaTile<d>& queries, const MmaTile<d>& flow, const MmaTile<d>& keys,
                      const MmaTile<d>& values, const float (&lse)[2], const float (&dot)[2], FragmentC (&sum)[d / 8],
                      float& dweight, float (&null_key)[2], float (&null_value)[2]) const {
    const float w = step.weight, scale = w * scale_of_scores<d>() * kLog2E;
    FragmentC p[kPart / 8], ds[kPart / 8];
    begin_products();
    multiply_rows<d>(p, queries, keys, 0, lane);
    multiply_rows<d>(ds, flow, values, 0, lane);
    commit_products();
    const bool is_open = mask.is_open(kPart);
    std::uint32_t seen[kPart / 32], kept[kPart / 32];
#pragma unroll
    for (int j = 0; j < kPart; j += 32) {
      kept[j / 32] = kept_bits<true>(head, u, step.c, mask.later(0, j), lane);
      seen[j / 32] = is_open ? ~0u : seen_bits<true>(head, u, step.kind, step.begin, mask.later(0, j), lane);
    }
    await_products<0>();
    pin(p);
    pin(ds);
    pin(sum);
    drop(ds, kept, in.dropout);
    float by_score = 0, by_value = 0;  // <dS, q k'> and <P, dy v'>
    const auto differentiate = [&](auto masked) {
#pragma unroll
      for (int n = 0; n < kPart / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float score = p[n].x[e], dp = ds[n].x[e];
          float probability = exp2_fast(fmaf(score, scale, -lse[e / 2]));
          if (decltype(masked)::value && !bit(seen[n / 4], n % 4, e)) probability = 0;
          const float dscore = probability * fmaf(w, dp, -dot[e / 2]);
          by_score = fmaf(dscore, score, by_score);
          by_value = fmaf(probability, dp, by_value);
          p[n].x[e] = w * probability;
          ds[n].x[e] = w * dscore;
        }
    };
    if (is_open)
      differentiate(std::false_type{});
    else
      differentiate(std::true_type{});
    dweight += by_score * scale_of_scores<d>() + by_value;
    if (step.kind != Block::null) {
      FragmentA a[kPart / 16];
      round_to(a, ds);
      begin_products();
      add_columns(sum, a, keys, 0, lane);
      commit_products();
      return;
    }
    drop(p, kept, in.dropout);
#pragma unroll
    for (int n = 0; n < kPart / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        null_key[e / 2] += ds[n].x[e];
        null_value[e / 2] += p[n].x[e];
      }
  }

  // Two lanes take a query of the warp.
  __device__ void write_dots(const Thread& t, const Head& head, int item, int slot, int count, const MmaTile<d>& flow,
                             float* scratch) const {
    const int row = t.warp() * kRowsOfWarp + t.lane() / 2, column = t.lane() % 2 * (d / 2);
    float dot = 0;
    if (row < count) {
      const bf16 *const high = query_rows(head, y)(slot + row) + column, *const low =
                                                                             query_rows(head, rest)(slot + row) +
                                                                             column;
#pragma unroll
      for (int at = 0; at < d / 2; at += 8) {
        const uint4 high_words = *reinterpret_cast<const uint4*>(high + at);
        const uint4 low_words = *reinterpret_cast<const uint4*>(low + at);
#pragma unroll
        for (int e = 0; e < 8; ++e)
          dot += (float(reinterpret_cast<const bf16*>(&high_words)[e]) +
                  float(reinterpret_cast<const bf16*>(&low_words)[e])) *
                 float(*flow.at(row, column + at + e));
      }
    }
    dot += t.shuffle_xor(dot, 1);
    if (t.lane() % 2 == 0) {
      if (row < count) dots[std::int64_t(item) * in.length + slot + row] = dot;
      scratch[t.lane() / 2] = dot;
    }
    __syncwarp();
  }

  // y = the sum over the warp's rows of their factors times them.
  __device__ static void write_null(int lane, float2 factor, const MmaTile<d>& rows, float scale, float* scratch,
                                    Global<float> y) {
    __syncwarp();
    if (lane % 4 == 0) {
      scratch[lane / 4] = factor.x;
      scratch[8 + lane / 4] = factor.y;
    }
    __syncwarp();
    for (int column = lane; column < d; column += kWarp) {
      float sum = 0;
      for (int row = 0; row < kRowsOfWarp; ++row) sum += scratch[row] * float(*rows.at(row, column));
      y[column] = sum * scale;
    }
  }
};

// Which key bucket of which head each place in the routing chose, (B, h, lists, n); `end` where that is none.
struct KeyOfPick {
  std::int64_t per_head, key_buckets, nulls, end;  // per_head = lists * n
  Global<const std::int32_t> picks;
  Global<std::int32_t> y;
  __device__ void operator()(std::int64_t i) const {
    const std::int64_t source = picks[i] - nulls;
    const bool is_bucket = picks[i] >= 0 && source >= 0 && source < key_buckets;
    y[i] = std::int32_t(is_bucket ? i / per_head * key_buckets + source : end);
  }
};
// Where in the sorted list key k begins.
struct BeginOfKey {
  std::int64_t count;
  Global<const std::int32_t> sorted;
  Global<std::int32_t> y;
  __device__ void operator()(std::int64_t key) const {
    std::int64_t low = 0, high = count;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (sorted[middle] < key)
        low = middle + 1;
      else
        high = middle;
    }
    y[key] = std::int32_t(low);
  }
};

// The places of the routing, sorted by the key bucket they chose.
struct Choosers {
  Global<const std::int32_t> begin;   // (B * h * key buckets + 1)
  Global<const std::int64_t> places;  // (B, h, lists, n), flat
};

// The query buckets that look at key slots s0 .. s0 + rows - 1, and through which of their blocks: own and neighbours'
// first, then those that chose the bucket, in order.
struct Visits {
  const Head& head;
  int first_window, windows, ways, first_chooser = 0, choosers = 0;  // ways: visitors of a window
  std::int64_t at = -1;
  int u = 0, c = 0;

  __device__ Visits(const Head& head, int s0, int rows, const Choosers& list)
      : head(head), first_window(s0 / head.in.bucket) {
    const Inputs& in = head.in;
    windows = head.is_local || in.own ? (s0 + rows - 1) / in.bucket - first_window + 1 : 0;
    ways = head.is_local ? (in.causal ? 2 : 3) : 1;
    if (head.is_local) return;
    const std::int64_t key = std::int64_t(head.group()) * in.key_buckets + s0 / in.key_bucket;
    first_chooser = list.begin[key];
    choosers = list.begin[key + 1] - first_chooser;
  }
  // To the next visit; false where there is none.
  __device__ bool next(const Choosers& list) {
    const Inputs& in = head.in;
    while (++at < windows * ways) {
      const int way = int(at) % ways;  // own, the bucket behind it, the one before it
      c = head.is_local ? (way == 0 ? 1 : way == 1 ? 0 : 2) : in.n_top;
      u = first_window + int(at) / ways + (head.is_local ? 1 - c : 0);
      if (u >= 0 && u < in.buckets) return true;
    }
    const std::int64_t rest = at - windows * ways;
    const int repeats = in.lists == 1 ? in.buckets : 1, chooser = int(rest / repeats);
    if (chooser >= choosers) return false;
    const std::int64_t place = list.places[first_chooser + chooser];
    c = int(place % in.n_top);
    u = in.lists == 1 ? int(rest % repeats) : int(place / in.n_top % in.lists);
    return true;
  }
};

// dk and dv of a tile of key slots.
template <int d, int kWarps, int kBlocks, int kPart>
struct KeyGradientOnTensorCores {
  static constexpr int kRows = kWarps * kRowsOfWarp, kThreads = kWarps * kWarp, kBlocksOfMultiprocessor = kBlocks;
  Inputs in;
  int tiles;  // of keys in a key bucket
  Choosers choosers;
  Global<const bf16> dy;
  Global<const float> log_sum_exp, dots;
  Global<bf16> dkv;

  static std::size_t shared_bytes() {
    return std::size_t(MmaTile<d>::count(2 * kRows + 4 * kStep)) * sizeof(bf16) + 4 * kStep * sizeof(float);
  }

  // Queries of one bucket, and what goes with them.
  struct Stage {
    MmaTile<d> queries, flow;
    float *lse, *dot;
  };
  __device__ void copy(const Thread& t, const Head& head, int item, int u, int i0, const Stage& stage) const {
    const int slot = u * in.bucket + i0, count = in.bucket - i0;
    copy_rows<kStep, kThreads>(t, stage.queries, query_rows(head, in.q), slot, count);
    copy_rows<kStep, kThreads>(t, stage.flow, query_rows(head, dy), slot, count);
    for (int k = t.index(); k < 2 * kStep; k += kThreads) {
      const int row = k % kStep;
      const std::int64_t at = std::int64_t(item) * in.length + slot + (row < count ? row : 0);
      copy_async<4>((k < kStep ? stage.lse : stage.dot) + row, k < kStep ? &log_sum_exp[at] : &dots[at], row < count);
    }
  }

  __device__ void operator()(Thread& t) const {
    const auto [tile, bucket, item] = place_of(t, tiles, in.key_buckets);
    const int offset = tile * kRows, s0 = bucket * in.key_bucket + offset;
    const int rows = min(in.key_bucket - offset, kRows);
    const Head head(in, item);
    const int lane = t.lane(), first = t.warp() * kRowsOfWarp;
    const int group = t.warp() / kWarpsOfGroup * kRowsOfGroup;
    const MmaTile<d> keys = tile_of<d>(t, kRows), values = tile_of<d>(t, kRows);
    const MmaTile<d> queries = tile_of<d>(t, 2 * kStep), flow = tile_of<d>(t, 2 * kStep);
    float *const lse = pointer(t.shared<float>(2 * kStep)), *const dot = pointer(t.shared<float>(2 * kStep));
    const auto stage = [&](int s) {
      return Stage{queries.from(s * kStep), flow.from(s * kStep), lse + s * kStep, dot + s * kStep};
    };

    copy_keys<kRows, kThreads>(t, head, false, s0, rows, 0, keys, values);
    Visits visits(head, s0, rows, choosers);
    bool more = visits.next(choosers);
    int i0 = 0;
    if (more) copy(t, head, item, visits.u, i0, stage(0));
    commit_copies();

    FragmentC dk[d / 8] = {}, dv[d / 8] = {};
    for (int s = 0; more; s ^= 1) {
      const int u = visits.u, c = visits.c;
      const Block block = head.block(u, c);
      const Mask all(head, u, block.kind, block.width, i0, s0 - block.begin + first);
      const int group_key = s0 - block.begin + group;
      const float w = head.weight(block);
      i0 += kStep;
      if (i0 >= in.bucket) {
        i0 = 0;
        more = visits.next(choosers);
      }
      await_copies<0>();
      await_products<0>();  // they read what is copied to next
      t.sync();
      if (more) copy(t, head, item, visits.u, i0, stage(s ^ 1));
      commit_copies();
#pragma unroll
      for (int i = 0; i < kStep; i += kPart) {
        const Mask mask = all.later(i, 0);
        const bool is_closed = mask.is_triangle && group_key >= mask.query + kPart;
        if (!is_closed && mask.query < in.bucket)
          add(head, u, c, block.kind, block.begin, w, mask, lane, keys.from(group), values.from(group), stage(s), i, dk,
              dv);
      }
    }
    await_copies<0>();
    await_products<0>();
    pin(dk);
    pin(dv);
    t.sync();  // keys and values are read no more

#pragma unroll
    for (FragmentC& piece : dk)
#pragma unroll
      for (float& x : piece.x) x *= scale_of_scores<d>();
    store_rows(t, keys, dk, key_rows(head, dkv, 0), s0, rows);
    store_rows(t, values, dv, key_rows(head, dkv, 1), s0, rows);
  }

  // What some queries, from row `i` of the stage, give to the keys of a group.
  __device__ void add(const Head& head, int u, int c, Block::Kind kind, int begin, float w, const Mask& mask, int lane,
                      const MmaTile<d>& k, const MmaTile<d>& v, const Stage& stage, int i, FragmentC (&dk)[d / 8],
                      FragmentC (&dv)[d / 8]) const {
    const float scale = w * scale_of_scores<d>() * kLog2E;
    FragmentC p[kPart / 8], ds[kPart / 8];
    begin_products();
    multiply_rows<d>(p, k, stage.queries, i, lane);
    multiply_rows<d>(ds, v, stage.flow, i, lane);
    commit_products();
    const bool is_open = mask.is_open(kRowsOfWarp);
    std::uint32_t seen[kPart / 32], kept[kPart / 32];
#pragma unroll
    for (int part = 0; part < kPart; part += 32) {
      kept[part / 32] = kept_bits<false>(head, u, c, mask.later(part, 0), lane);
      seen[part / 32] = is_open ? ~0u : seen_bits<false>(head, u, kind, begin, mask.later(part, 0), lane);
    }
    await_products<0>();
    pin(p);
    pin(ds);
    pin(dk);
    pin(dv);
    drop(ds, kept, in.dropout);
    const auto differentiate = [&](auto masked) {
#pragma unroll
      for (int n = 0; n < kPart / 8; ++n)
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int query = i + n * 8 + lane % 4 * 2 + side;
          const float lse = stage.lse[query] * kLog2E, dot = stage.dot[query];
#pragma unroll
          for (int e = side; e < 4; e += 2) {
            float probability = w * exp2_fast(fmaf(p[n].x[e], scale, -lse));
            if (decltype(masked)::value && !bit(seen[n / 4], n % 4, e)) probability = 0;
            p[n].x[e] = probability;
            ds[n].x[e] = probability * fmaf(w, ds[n].x[e], -dot);
          }
        }
    };
    if (is_open)
      differentiate(std::false_type{});
    else
      differentiate(std::true_type{});
    drop(p, kept, in.dropout);
    FragmentA a[kPart / 16], b[kPart / 16];
    round_to(a, p);
    round_to(b, ds);
    begin_products();
    add_columns(dv, a, stage.flow, i, lane);
    add_columns(dk, b, stage.queries, i, lane);
    commit_products();
  }
};

struct Partial {
  std::int64_t after;
  Global<const float> x;
  __device__ float operator()(std::int64_t row, std::int64_t column) const { return x[row * after + column]; }
};

bool has_tensor_cores() {
  static const bool has = [] {
    int major = 0;
    check("attention", cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    return major >= 8;
  }();
  return has;
}

// Calls f with the width, known to the compiler.
template <class F>
void with_width(std::int64_t width, F f) {
  width == 64 ? f(std::integral_constant<int, 64>{}) : f(std::integral_constant<int, 32>{});
}

constexpr std::string_view kName = "bucketed_attention";

}  // namespace

bool TensorCoreAttention::takes(const AttentionShape& shape) {
  return (shape.width == 64 || shape.width == 32) && has_tensor_cores();
}

void TensorCoreAttention::forward(const Op::Arguments& in, const Op::Results& out) {
  const AttentionShape& s = in.shape;
  const auto attend = [&](auto d, auto warps) {
    using Kernel = AttendOnTensorCores<decltype(d)::value, decltype(warps)::value, 16 / decltype(warps)::value>;
    const int tiles = int(pieces(s.pattern.bucket, Kernel::kRows));
    launch(kName, s.batch * s.heads * s.buckets() * tiles, Kernel::kThreads, Kernel::shared_bytes(),
           Kernel{Inputs(in), tiles, out.y, out.rest, out.log_sum_exp});
  };
  with_width(s.width, [&](auto d) {
    if (s.pattern.bucket > 64)
      attend(d, std::integral_constant<int, 8>{});
    else
      attend(d, std::integral_constant<int, 4>{});
  });
}

void TensorCoreAttention::backward(const Op::Arguments& in, const Op::Results& out, const bf16* dy,
                                   const Op::Flows& flows) {
  const AttentionShape& s = in.shape;
  const Inputs inputs(in);
  const Tensor dots = workspace({s.batch, s.heads, s.length}, DType::f32);
  with_width(s.width, [&](auto d) {
    constexpr int warps = 4;
    using Kernel = QueryGradientOnTensorCores<decltype(d)::value, warps, 3, 32>;
    const int tiles = int(pieces(s.pattern.bucket, Kernel::kRows));
    const std::int64_t parts = s.buckets() * tiles * warps;
    const Tensor dweights = workspace({s.batch * s.sorting(), parts, s.n_top}, DType::f32);
    const Tensor dnulls = workspace({2, s.sorting(), s.nulls() > 0 ? s.batch * parts : 0, s.width}, DType::f32);
    float *null_keys = dnulls.data<float>(), *null_values = null_keys + dnulls.count() / 2;
    launch(kName, s.batch * s.heads * s.buckets() * tiles, Kernel::kThreads, Kernel::shared_bytes(),
           Kernel{inputs, tiles, s.batch, out.y, out.rest, dy, out.log_sum_exp, flows.q, dots.data<float>(),
                  dweights.data<float>(), null_keys, null_values});
    const auto add = [&](std::int64_t before, std::int64_t extent, std::int64_t after, const float* partial, auto* to) {
      if (to) sum_axis<float>(kName, Around(Shape{before, extent, after}, 1), Partial{after, partial}, to);
    };
    // A row of routing is one query bucket's, or that of all.
    add(s.batch * s.sorting() * s.lists, s.lists == 0 ? 0 : parts / s.lists, s.n_top, dweights.data<float>(),
        flows.weights);
    add(s.sorting(), s.batch * parts, s.width, null_keys, flows.null_keys);
    add(s.sorting(), s.batch * parts, s.width, null_values, flows.null_values);
  });

  const std::int64_t places = s.batch * s.sorting() * s.lists * s.n_top;
  const std::int64_t keys = s.batch * s.sorting() * s.key_buckets();
  const Tensor key_of = workspace({places}, DType::i32), sorted = workspace({places}, DType::i32);
  const Tensor order = workspace({places}, DType::f64);  // i64, 8 bytes each
  const Tensor begin = workspace({keys + 1}, DType::i32);
  auto* const positions = reinterpret_cast<std::int64_t*>(order.data<double>());
  for_each(kName, places,
           KeyOfPick{s.lists * s.n_top, s.key_buckets(), s.nulls(), keys, in.picks, key_of.data<std::int32_t>()});
  sort_positions(places, std::int32_t(keys + 1), key_of.data<std::int32_t>(), sorted.data<std::int32_t>(), positions);
  for_each(kName, keys + 1, BeginOfKey{places, sorted.data<std::int32_t>(), begin.data<std::int32_t>()});
  with_width(s.width, [&](auto d) {
    using Kernel = KeyGradientOnTensorCores<decltype(d)::value, 4, 2, 64>;
    const int tiles = int(pieces(s.pattern.key_bucket, Kernel::kRows));
    launch(
        kName, s.batch * s.heads * s.key_buckets() * tiles, Kernel::kThreads, Kernel::shared_bytes(),
        Kernel{
            inputs, tiles, {begin.data<std::int32_t>(), positions}, dy, out.log_sum_exp, dots.data<float>(), flows.kv});
  });
}

}  // namespace sinkhorn::cuda
