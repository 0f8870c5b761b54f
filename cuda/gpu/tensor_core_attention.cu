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

constexpr int kRowsOfWarp = 16, kStep = 64, kHalf = 32;
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

// The first `rows` rows of a tile become those of slots `slot` .. + count - 1, and 0 behind them.
template <int d>
__device__ void copy_rows(const Thread& t, const MmaTile<d>& tile, int rows, const HeadRows<const bf16>& from, int slot,
                          int count) {
  constexpr int chunks = d / 8;
  const int column = t.index() % chunks * 8;
  for (int row = t.index() / chunks; row < rows; row += t.size() / chunks)
    copy_async<16>(tile.at(row, column), from(row < count ? slot + row : slot) + column, row < count);
}

// Keys and values of columns j0 .. of a block.
template <int d>
__device__ void copy_keys(const Thread& t, const Head& head, bool is_null, int begin, int width, int j0, int rows,
                          const MmaTile<d>& keys, const MmaTile<d>& values) {
  const auto rows_of = [&](const Global<const bf16>& null, int part) {
    return is_null ? HeadRows<const bf16>{&null[head.sorting_head * d], 0, 1, 0} : key_rows(head, head.in.kv, part);
  };
  copy_rows(t, keys, rows, rows_of(head.in.null_keys, 0), is_null ? 0 : begin + j0, width - j0);
  copy_rows(t, values, rows, rows_of(head.in.null_values, 1), is_null ? 0 : begin + j0, width - j0);
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

// Over the four lanes that share a row.
__device__ float sum_of_row(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ float largest_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// c (16, columns) += a (16, d) times the transposed rows `row` .. of a tile; a(k): columns 16 k .. of a.
template <int d, int kPieces, class A>
__device__ void add_scores(FragmentC (&c)[kPieces], const A& a, const MmaTile<d>& tile, int row, int lane) {
#pragma unroll
  for (int k = 0; k < d / 16; ++k) {
    const FragmentA a_k = a(k);
#pragma unroll
    for (int n = 0; n < kPieces / 2; ++n) {
      FragmentB b[2];
      tile.b_of_rows(b, row + n * 16, k * 16, lane);
      mma(c[2 * n], a_k, b[0]);
      mma(c[2 * n + 1], a_k, b[1]);
    }
  }
}
// c (16, d) += p (16, rows), rounded, times the rows `row` .. of a tile.
template <int d, int kPieces>
__device__ void add_rows(FragmentC (&c)[d / 8], const FragmentC (&p)[kPieces], const MmaTile<d>& tile, int row,
                         int lane) {
#pragma unroll
  for (int k = 0; k < kPieces / 2; ++k) {
    const FragmentA a = to_a(p[2 * k], p[2 * k + 1]);
#pragma unroll
    for (int n = 0; n < d / 16; ++n) {
      FragmentB b[2];
      tile.b_of_columns(b, row + k * 16, n * 16, lane);
      mma(c[2 * n], a, b[0]);
      mma(c[2 * n + 1], a, b[1]);
    }
  }
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
  bool has_padding;  // so that a lane's bits say more

  __device__ Mask(const Head& head, int u, Block::Kind kind, int width, int query, int key)
      : query(query),
        key(key),
        width(width),
        is_triangle(head.in.causal && kind == Block::own),
        is_wrapped(head.shift > 0 && u == head.in.buckets - 1),
        is_own(kind == Block::own),
        has_padding(head.in.mask || head.in.key_mask) {}
  __device__ bool sees(int i, int j) const {
    return j >= 0 && j < width && !(is_triangle && j > i) && !(is_wrapped && i > 0 && (!is_own || j == 0));
  }
  // Whether all of these queries see all of these keys, and whether none does.
  __device__ bool is_open(int keys) const {
    return !has_padding && !is_wrapped && key >= 0 && key + keys <= width && !(is_triangle && key + keys - 1 > query);
  }
  __device__ Mask later(int keys) const {
    Mask mask = *this;
    mask.key += keys;
    return mask;
  }
  __device__ bool is_closed(int queries) const { return is_triangle && key > query + queries - 1; }
};

// One bit for each of the 16 numbers that a lane holds of 16 x 32, in the order n, e.
__device__ bool bit(std::uint32_t bits, int n, int e) { return bits >> (n * 4 + e) & 1; }

// What padding lets be seen, and what dropout keeps. Found before the products are made, so that it takes no registers
// from them.
struct Looks {
  std::uint32_t seen = ~0u, kept = ~0u;
};
template <bool kRowsAreQueries>
__device__ Looks look(const Head& head, int u, int c, const Mask& mask, int lane) {
  Looks looks;
  if (!mask.has_padding && head.in.dropout == 0) return looks;
  const Block block = head.block(u, c);
  const auto bits_of = [&](auto test) {
    std::uint32_t bits = 0;
#pragma unroll 1
    for (int k = 0; k < 16; ++k) {
      const int row = k % 4 / 2 * 8 + lane / 4, column = k / 4 * 8 + lane % 4 * 2 + k % 2;
      const bool is =
          kRowsAreQueries ? test(mask.query + row, mask.key + column) : test(mask.query + column, mask.key + row);
      bits |= std::uint32_t(is) << k;
    }
    return bits;
  };
  if (mask.has_padding) looks.seen = bits_of([&](int i, int j) { return head.sees(u, i, block, j); });
  if (head.in.dropout > 0) looks.kept = bits_of([&](int i, int j) { return head.kept(u, i, block, j) != 0; });
  return looks;
}

// Pairs that do not see each other score -inf.
template <bool kRowsAreQueries, int kPieces>
__device__ void hide(FragmentC (&score)[kPieces], const Mask& mask, const Looks (&looks)[kPieces / 4], int lane) {
  if (mask.is_open(kRowsAreQueries ? kPieces * 8 : kRowsOfWarp)) return;
#pragma unroll
  for (int n = 0; n < kPieces; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = e / 2 * 8 + lane / 4, column = n * 8 + lane % 4 * 2 + e % 2;
      const bool sees = kRowsAreQueries ? mask.sees(mask.query + row, mask.key + column)
                                        : mask.sees(mask.query + column, mask.key + row);
      if (!sees || !bit(looks[n / 4].seen, n % 4, e)) score[n].x[e] = kNone;
    }
}
// Multiplies with what dropout multiplies.
template <int kPieces>
__device__ void drop(FragmentC (&x)[kPieces], const Looks (&looks)[kPieces / 4], double dropout) {
  if (dropout == 0) return;
  const float factor = float(1 / (1 - dropout));
#pragma unroll
  for (int n = 0; n < kPieces; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) x[n].x[e] *= bit(looks[n / 4].kept, n % 4, e) ? factor : 0.0f;
}

// Steps over the keys that rows i0 .. of query bucket u look at.
struct KeySteps {
  const Head& head;
  int u, i0, rows;
  int c = -1, j0 = 0;
  Block::Kind kind = Block::closed;
  int begin = 0, width = 0;  // of the block
  float weight = 1;

  // To the next step; false where there is none.
  __device__ bool next() {
    j0 += kStep;
    const bool is_triangle = head.in.causal && kind == Block::own;
    if (c >= 0 && j0 < width && !(is_triangle && j0 >= i0 + rows)) return true;
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

template <int d, int kWarps>
struct AttendOnTensorCores {
  static_assert(d == 32 || d == 64);
  static constexpr int kRows = kWarps * kRowsOfWarp, kThreads = kWarps * kWarp,
                       kBlocksOfMultiprocessor = 512 / kThreads;
  Inputs in;
  std::int64_t tiles;  // of queries in a bucket
  Global<bf16> y, rest;
  Global<float> log_sum_exp;

  static std::size_t shared_bytes() { return std::size_t(MmaTile<d>::count(kRows + 4 * kStep)) * sizeof(bf16); }

  __device__ void operator()(Thread& t) const {
    const int tile = int(t.block() % tiles), u = int(t.block() / tiles % in.buckets);
    const int item = int(t.block() / tiles / in.buckets);
    const Head head(in, item);
    const int i0 = tile * kRows, slot = u * in.bucket + i0, count = in.bucket - i0;
    const int lane = t.lane(), first = t.warp() * kRowsOfWarp;
    const MmaTile<d> queries = tile_of<d>(t, kRows), keys = tile_of<d>(t, 2 * kStep), values = tile_of<d>(t, 2 * kStep);
    const auto copy = [&](const KeySteps& step, int s) {
      copy_keys(t, head, step.kind == Block::null, step.begin, step.width, step.j0, kStep, keys.from(s * kStep),
                values.from(s * kStep));
    };

    copy_rows(t, queries, kRows, query_rows(head, in.q), slot, count);
    commit_copies();
    KeySteps ahead{head, u, i0, kRows};
    bool more = ahead.next();
    if (more) copy(ahead, 0);
    commit_copies();
    await_copies<1>();
    t.sync();
    FragmentA q[d / 16];
#pragma unroll
    for (int k = 0; k < d / 16; ++k) q[k] = queries.a(first, k * 16, lane);

    FragmentC sum[d / 8];
    float largest[2] = {kNone, kNone}, total[2] = {};
    for (int s = 0; more; s ^= 1) {
      const Mask mask(head, u, ahead.kind, ahead.width, i0 + first, ahead.j0);
      const int c = ahead.c;
      const bool is_null = ahead.kind == Block::null;
      const float w = ahead.weight;
      more = ahead.next();
      if (more) copy(ahead, s ^ 1);
      commit_copies();
      await_copies<1>();
      t.sync();
      if (!mask.is_closed(kRowsOfWarp))
        attend(head, u, c, w, is_null, mask, lane, q, keys.from(s * kStep), values.from(s * kStep), sum, largest,
               total);
      t.sync();
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
  __device__ void attend(const Head& head, int u, int c, float w, bool is_null, const Mask& mask, int lane,
                         const FragmentA (&q)[d / 16], const MmaTile<d>& keys, const MmaTile<d>& values,
                         FragmentC (&sum)[d / 8], float (&largest)[2], float (&total)[2]) const {
    const float scale = w * scale_of_scores<d>() * kLog2E;
    Looks looks[kStep / kHalf];
#pragma unroll
    for (int part = 0; part < kStep / kHalf; ++part)
      looks[part] = look<true>(head, u, c, mask.later(part * kHalf), lane);
    FragmentC score[kStep / 8];
    add_scores(
        score, [&](int k) { return q[k]; }, keys, 0, lane);
#pragma unroll
    for (FragmentC& piece : score)
#pragma unroll
      for (float& x : piece.x) x *= scale;
    hide<true>(score, mask, looks, lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float above = largest[half], all = 0;
#pragma unroll
      for (const FragmentC& piece : score) above = fmaxf(above, fmaxf(piece.x[2 * half], piece.x[2 * half + 1]));
      above = largest_of_row(above);
      const float base = above == kNone ? 0.0f : above, rescale = exp2_fast(largest[half] - base);
      largest[half] = above;
#pragma unroll
      for (FragmentC& piece : score)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float p = exp2_fast(piece.x[2 * half + e] - base);
          all += p;
          piece.x[2 * half + e] = p * w;
        }
      total[half] = total[half] * rescale + all;
#pragma unroll
      for (FragmentC& piece : sum)
#pragma unroll
        for (int e = 0; e < 2; ++e) piece.x[2 * half + e] *= rescale;
    }
    drop(score, looks, in.dropout);
    if (is_null)
      add_null(sum, score, values, lane);
    else
      add_rows(sum, score, values, 0, lane);
  }
};

// dq, and per warp its shares of the weights' and nulls' gradients; and <dP, P> = <dy, y> of each query.
template <int d, int kWarps>
struct QueryGradientOnTensorCores {
  static constexpr int kRows = kWarps * kRowsOfWarp, kThreads = kWarps * kWarp,
                       kBlocksOfMultiprocessor = 384 / kThreads;
  Inputs in;
  std::int64_t tiles, batch;
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
    const int tile = int(t.block() % tiles), u = int(t.block() / tiles % in.buckets);
    const int item = int(t.block() / tiles / in.buckets);
    const Head head(in, item);
    const int i0 = tile * kRows, slot = u * in.bucket + i0, count = in.bucket - i0;
    const int lane = t.lane(), first = t.warp() * kRowsOfWarp;
    const MmaTile<d> queries = tile_of<d>(t, kRows), flow = tile_of<d>(t, kRows);
    const MmaTile<d> keys = tile_of<d>(t, 2 * kStep), values = tile_of<d>(t, 2 * kStep);
    float* const scratch = pointer(t.shared<float>(kRows)) + first;  // of this warp
    const auto copy = [&](const KeySteps& step, int s) {
      copy_keys(t, head, step.kind == Block::null, step.begin, step.width, step.j0, kStep, keys.from(s * kStep),
                values.from(s * kStep));
    };

    copy_rows(t, queries, kRows, query_rows(head, in.q), slot, count);
    copy_rows(t, flow, kRows, query_rows(head, dy), slot, count);
    commit_copies();
    KeySteps ahead{head, u, i0, kRows};
    bool more = ahead.next();
    if (more) copy(ahead, 0);
    commit_copies();
    await_copies<1>();
    t.sync();
    FragmentA q[d / 16], f[d / 16];
#pragma unroll
    for (int k = 0; k < d / 16; ++k) {
      q[k] = queries.a(first, k * 16, lane);
      f[k] = flow.a(first, k * 16, lane);
    }
    write_dots(t, head, item, slot, count, flow, scratch);
    float lse[2], dot[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = half * 8 + lane / 4;
      dot[half] = scratch[row];
      lse[half] =
          first + row < count ? log_sum_exp[std::int64_t(item) * in.length + slot + first + row] * kLog2E : 0.0f;
    }

    FragmentC sum[d / 8];
    float null_key[2] = {}, null_value[2] = {};  // what the nulls' gradients multiply each query and its dy with
    const std::int64_t part = ((std::int64_t(head.group()) * in.buckets + u) * tiles + tile) * kWarps + t.warp();
    const auto dweight_of = [&](int c) -> float& { return dweights[part * in.n_top + c]; };
    for (int c = lane; !head.is_local && c < in.n_top; c += kWarp) dweight_of(c) = 0;  // closed blocks have none
    __syncwarp();
    float dweight = 0;
    for (int s = 0; more; s ^= 1) {
      const Mask both(head, u, ahead.kind, ahead.width, i0 + first, ahead.j0);
      const int c = ahead.c;
      const bool is_null = ahead.kind == Block::null;
      const float w = ahead.weight;
      more = ahead.next();
      if (more) copy(ahead, s ^ 1);
      commit_copies();
      await_copies<1>();
      t.sync();
#pragma unroll
      for (int half = 0; half < kStep; half += kHalf) {
        const Mask mask = both.later(half);
        if (!mask.is_closed(kRowsOfWarp) && mask.key < mask.width)
          add(head, u, c, w, is_null, mask, lane, q, f, keys.from(s * kStep + half), values.from(s * kStep + half), lse,
              dot, sum, dweight, null_key, null_value);
      }
      if (!more || ahead.c != c) {  // the block ends
        dweight = reduce_warp(t, dweight, Plus{});
        if (!head.is_local && c < in.n_top && lane == 0) dweight_of(c) = dweight;
        dweight = 0;
      }
      t.sync();
    }

    if (!head.is_local && in.nulls > 0) {
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

  // What 32 keys give to the warp's queries.
  __device__ void add(const Head& head, int u, int c, float w, bool is_null, const Mask& mask, int lane,
                      const FragmentA (&q)[d / 16], const FragmentA (&f)[d / 16], const MmaTile<d>& keys,
                      const MmaTile<d>& values, const float (&lse)[2], const float (&dot)[2], FragmentC (&sum)[d / 8],
                      float& dweight, float (&null_key)[2], float (&null_value)[2]) const {
    const float scale = w * scale_of_scores<d>() * kLog2E;
    const Looks looks[1] = {look<true>(head, u, c, mask, lane)};
    FragmentC p[kHalf / 8], ds[kHalf / 8];
    add_scores(
        p, [&](int k) { return q[k]; }, keys, 0, lane);
    add_scores(
        ds, [&](int k) { return f[k]; }, values, 0, lane);
    hide<true>(p, mask, looks, lane);
    drop(ds, looks, in.dropout);
    float dw = 0;
#pragma unroll
    for (int n = 0; n < kHalf / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float score = p[n].x[e], dp = ds[n].x[e];
        const float probability = score == kNone ? 0.0f : exp2_fast(score * scale - lse[e / 2]);
        const float dscore = probability * (w * dp - dot[e / 2]);
        if (probability != 0) dw += dscore * score * scale_of_scores<d>() + probability * dp;
        p[n].x[e] = w * probability;
        ds[n].x[e] = w * dscore;
      }
    dweight += dw;
    if (!is_null) return add_rows(sum, ds, keys, 0, lane);
    const float2 key = add_null(sum, ds, keys, lane);
    null_key[0] += key.x;
    null_key[1] += key.y;
    drop(p, looks, in.dropout);
#pragma unroll
    for (int n = 0; n < kHalf / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) null_value[e / 2] += p[n].x[e];
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
template <int d, int kWarps>
struct KeyGradientOnTensorCores {
  static constexpr int kRows = kWarps * kRowsOfWarp, kThreads = kWarps * kWarp,
                       kBlocksOfMultiprocessor = 384 / kThreads;
  Inputs in;
  std::int64_t tiles;  // of keys in a key bucket
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
    copy_rows(t, stage.queries, kStep, query_rows(head, in.q), slot, count);
    copy_rows(t, stage.flow, kStep, query_rows(head, dy), slot, count);
    for (int k = t.index(); k < 2 * kStep; k += t.size()) {
      const int row = k % kStep;
      const std::int64_t at = std::int64_t(item) * in.length + slot + (row < count ? row : 0);
      copy_async<4>((k < kStep ? stage.lse : stage.dot) + row, k < kStep ? &log_sum_exp[at] : &dots[at], row < count);
    }
  }

  __device__ void operator()(Thread& t) const {
    const int offset = int(t.block() % tiles) * kRows, item = int(t.block() / tiles / in.key_buckets);
    const int s0 = int(t.block() / tiles % in.key_buckets) * in.key_bucket + offset;
    const int rows = min(in.key_bucket - offset, kRows);
    const Head head(in, item);
    const int lane = t.lane(), first = t.warp() * kRowsOfWarp;
    const MmaTile<d> keys = tile_of<d>(t, kRows), values = tile_of<d>(t, kRows);
    const MmaTile<d> queries = tile_of<d>(t, 2 * kStep), flow = tile_of<d>(t, 2 * kStep);
    float *const lse = pointer(t.shared<float>(2 * kStep)), *const dot = pointer(t.shared<float>(2 * kStep));
    const auto stage = [&](int s) {
      return Stage{queries.from(s * kStep), flow.from(s * kStep), lse + s * kStep, dot + s * kStep};
    };

    copy_keys(t, head, false, s0, rows, 0, kRows, keys, values);
    Visits visits(head, s0, rows, choosers);
    bool more = visits.next(choosers);
    int i0 = 0;
    if (more) copy(t, head, item, visits.u, i0, stage(0));
    commit_copies();

    await_copies<0>();
    t.sync();
    FragmentA k[d / 16], v[d / 16];
#pragma unroll
    for (int part = 0; part < d / 16; ++part) {
      k[part] = keys.a(first, part * 16, lane);
      v[part] = values.a(first, part * 16, lane);
    }
    FragmentC dk[d / 8], dv[d / 8];
    for (int s = 0; more; s ^= 1) {
      const int u = visits.u, c = visits.c;
      const Block block = head.block(u, c);
      const Mask both(head, u, block.kind, block.width, i0, s0 - block.begin + first);
      const float w = head.weight(block);
      i0 += kStep;
      if (i0 >= in.bucket) {
        i0 = 0;
        more = visits.next(choosers);
      }
      if (more) copy(t, head, item, visits.u, i0, stage(s ^ 1));
      commit_copies();
      await_copies<1>();
      t.sync();
#pragma unroll
      for (int half = 0; half < kStep; half += kHalf) {
        Mask mask = both;
        mask.query += half;
        if (!mask.is_closed(kHalf) && mask.query < in.bucket)
          add(head, u, c, w, mask, lane, k, v, stage(s), half, dk, dv);
      }
      t.sync();
    }

#pragma unroll
    for (FragmentC& piece : dk)
#pragma unroll
      for (float& x : piece.x) x *= scale_of_scores<d>();
    store_rows(t, keys, dk, key_rows(head, dkv, 0), s0, rows);
    store_rows(t, values, dv, key_rows(head, dkv, 1), s0, rows);
  }

  // What 32 queries, `half` rows into the stage, give to the warp's keys.
  __device__ void add(const Head& head, int u, int c, float w, const Mask& mask, int lane, const FragmentA (&k)[d / 16],
                      const FragmentA (&v)[d / 16], const Stage& stage, int half, FragmentC (&dk)[d / 8],
                      FragmentC (&dv)[d / 8]) const {
    const float scale = w * scale_of_scores<d>() * kLog2E;
    const Looks looks[1] = {look<false>(head, u, c, mask, lane)};
    FragmentC p[kHalf / 8], ds[kHalf / 8];
    add_scores(
        p, [&](int part) { return k[part]; }, stage.queries, half, lane);
    add_scores(
        ds, [&](int part) { return v[part]; }, stage.flow, half, lane);
#pragma unroll
    for (FragmentC& piece : p)
#pragma unroll
      for (float& x : piece.x) x *= scale;
    hide<false>(p, mask, looks, lane);
    drop(ds, looks, in.dropout);
#pragma unroll
    for (int n = 0; n < kHalf / 8; ++n)
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int query = half + n * 8 + lane % 4 * 2 + side;
        const float lse = stage.lse[query] * kLog2E, dot = stage.dot[query];
#pragma unroll
        for (int e = side; e < 4; e += 2) {
          p[n].x[e] = w * exp2_fast(p[n].x[e] - lse);
          ds[n].x[e] = p[n].x[e] * (w * ds[n].x[e] - dot);
        }
      }
    drop(p, looks, in.dropout);
    add_rows(dv, p, stage.flow, half, lane);
    add_rows(dk, ds, stage.queries, half, lane);
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
    using Kernel = AttendOnTensorCores<decltype(d)::value, decltype(warps)::value>;
    const std::int64_t tiles = pieces(s.pattern.bucket, Kernel::kRows);
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
    using Kernel = QueryGradientOnTensorCores<decltype(d)::value, warps>;
    const std::int64_t tiles = pieces(s.pattern.bucket, Kernel::kRows), parts = s.buckets() * tiles * warps;
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
    using Kernel = KeyGradientOnTensorCores<decltype(d)::value, 4>;
    const std::int64_t tiles = pieces(s.pattern.key_bucket, Kernel::kRows);
    launch(
        kName, s.batch * s.heads * s.key_buckets() * tiles, Kernel::kThreads, Kernel::shared_bytes(),
        Kernel{
            inputs, tiles, {begin.data<std::int32_t>(), positions}, dy, out.log_sum_exp, dots.data<float>(), flows.kv});
  });
}

}  // namespace sinkhorn::cuda
