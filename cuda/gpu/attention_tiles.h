// Tiles of bucketed attention as tensor cores want them: how rows of a head come to shared memory and go back, which
// pairs of queries and keys see each other, and which of them dropout keeps.
#pragma once
#include <cmath>
#include <limits>

#include "cuda/attention_pattern.h"
#include "cuda/gpu/mma.h"

namespace sinkhorn::cuda {

inline constexpr int kStep = 64;  // rows of a tile that is walked over
inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
inline constexpr float kNone = -std::numeric_limits<float>::infinity();

/// Everything both passes read, and what the host works out of it.
struct TileInputs : AttentionInputs<bf16> {
  explicit TileInputs(const kernels::BucketedAttention<bf16>::Arguments& in)
      : AttentionInputs<bf16>(in),
        is_padded(in.mask || in.key_mask),
        keep_factor(float(1 / (1 - in.dropout))),
        drop_end(in.dropout > 0 ? std::uint32_t(std::ceil(in.dropout * 8388608 - 0.5)) : 0) {}

  bool is_padded;
  float keep_factor;       // what dropout multiplies with
  std::uint32_t drop_end;  // words of random bits whose upper 23 are below are dropped: (x + 1/2) / 2^23 < dropout
};

/// One head of one sequence.
struct TileHead : AttentionHead<bf16> {
  __device__ TileHead(const TileInputs& inputs, int item) : AttentionHead<bf16>(inputs, item), in(inputs) {}
  const TileInputs& in;
};

template <class T>
__device__ T* pointer(const Shared<T>& memory) {
  return &memory[0];
}
template <int d>
__device__ MmaTile<d> tile_of(Thread& t, int rows) {
  return {pointer(t.shared<bf16>(MmaTile<d>::count(rows)))};
}
template <int d>
__device__ constexpr float scale_of_scores() {
  return d == 64 ? 0.125f : 0.17677669529663687f;  // 1 / sqrt(d)
}

/// What a block of threads works on: a tile of a bucket of a head of a sequence.
struct Place {
  int tile, bucket, item;
};
__device__ inline Place place_of(std::uint32_t block, int tiles, int buckets) {
  const std::uint32_t bucket = block / std::uint32_t(tiles), item = bucket / std::uint32_t(buckets);
  return {int(block - bucket * std::uint32_t(tiles)), int(bucket - item * std::uint32_t(buckets)), int(item)};
}

/// The rows of one head in memory, by slot: those of a token are `stride` elements from those of the next.
template <class T>
struct HeadRows {
  T* first;
  int stride, length, shift;
  __device__ T* operator()(int slot) const {
    const int rotated = slot + shift;
    return first + std::int64_t(rotated < length ? rotated : rotated - length) * stride;
  }
  // Whether slots `slot` .. + count - 1 follow each other in memory.
  __device__ bool is_straight(int slot, int count) const { return slot + shift + count <= length; }
};
template <class T>
__device__ HeadRows<T> rows_of(const TileHead& head, const Global<T>& x, int stride, int length) {
  return {&x[std::int64_t(head.sequence) * length * stride + head.head * head.in.width], stride, length, head.shift};
}
/// Of queries or their gradient.
template <class T>
__device__ HeadRows<T> query_rows(const TileHead& head, const Global<T>& q) {
  return rows_of(head, q, head.in.query_stride, head.in.length);
}
/// Of results (B, T, H, d) or their gradient.
template <class T>
__device__ HeadRows<T> result_rows(const TileHead& head, const Global<T>& y) {
  return rows_of(head, y, head.in.heads * head.in.width, head.in.length);
}
/// Keys; the values of the same token lie heads * width elements behind.
template <class T>
__device__ HeadRows<T> key_rows(const TileHead& head, const Global<T>& kv) {
  return rows_of(head, kv, head.in.key_stride, head.in.key_length);
}

/// The first kRows rows of a tile become those of slots `slot` .. + count - 1, and 0 behind them.
template <int kRows, int kThreads, int d>
__device__ void copy_rows(const Thread& t, const MmaTile<d>& tile, const HeadRows<const bf16>& from, int slot,
                          int count) {
  constexpr int chunks = d / 8, pass = kThreads / chunks;
  static_assert(kRows % pass == 0 && pass % 8 == 0);
  const int column = t.index() % chunks * 8, row = t.index() / chunks;
  bf16* const to = tile.at(row, column);
  if (count >= kRows && from.is_straight(slot, kRows)) {
    const bf16* x = from.first + std::int64_t(slot + from.shift + row) * from.stride + column;
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
/// The same of two tiles, of which the second's rows lie `apart` elements behind the first's.
template <int kRows, int kThreads, int d>
__device__ void copy_rows(const Thread& t, const MmaTile<d>& tile, const MmaTile<d>& second,
                          const HeadRows<const bf16>& from, int apart, int slot, int count) {
  constexpr int chunks = d / 8, pass = kThreads / chunks;
  static_assert(kRows % pass == 0 && pass % 8 == 0);
  const int column = t.index() % chunks * 8, row = t.index() / chunks;
  bf16 *const to = tile.at(row, column), *const to_second = second.at(row, column);
  if (count >= kRows && from.is_straight(slot, kRows)) {
    const bf16* x = from.first + std::int64_t(slot + from.shift + row) * from.stride + column;
    const std::int64_t next = std::int64_t(pass) * from.stride;
#pragma unroll
    for (int at = 0; at < kRows; at += pass, x += next) {
      copy_async<16>(to + at * d, x, true);
      copy_async<16>(to_second + at * d, x + apart, true);
    }
    return;
  }
#pragma unroll 1
  for (int at = 0; at < kRows; at += pass) {
    const bool is = at + row < count;
    const bf16* const x = from(is ? slot + at + row : slot) + column;
    copy_async<16>(to + at * d, x, is);
    copy_async<16>(to_second + at * d, x + apart, is);
  }
}

/// The rounded numbers of C are A of the next product.
template <int kPieces>
__device__ void round_to(FragmentA (&a)[kPieces / 2], const FragmentC (&c)[kPieces]) {
#pragma unroll
  for (int k = 0; k < kPieces / 2; ++k) a[k] = to_a(c[2 * k], c[2 * k + 1]);
}
/// What rounding takes from c, rounded in turn.
template <int kPieces>
__device__ void round_rest_to(FragmentA (&a)[kPieces / 2], const FragmentC (&c)[kPieces]) {
#pragma unroll
  for (int k = 0; k < kPieces / 2; ++k) {
    const FragmentA rounded = to_a(c[2 * k], c[2 * k + 1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const x = &c[2 * k + i / 2].x[i % 2 * 2];
      a[k].x[i] = pack(x[0] - lower_half(rounded.x[i]), x[1] - upper_half(rounded.x[i]));
    }
  }
}

/// Stores a warp's rows, of slots `slot` .. + count - 1 of a block, through its part of a tile.
template <int d>
__device__ void store_rows(const Thread& t, const MmaTile<d>& tile, const FragmentA (&x)[d / 16],
                           const HeadRows<bf16>& to, int slot, int count) {
  constexpr int chunks = d / 8, pass = kWarp / chunks;
  const int first = t.warp() * kRowsOfWarp, row = first + t.lane() / chunks, column = t.lane() % chunks * 8;
  __syncwarp();
#pragma unroll
  for (int k = 0; k < d / 16; ++k) tile.put(first, k * 16, t.lane(), x[k]);
  __syncwarp();
  const auto copy = [&](bf16* y, int at) {
    *reinterpret_cast<uint4*>(y) = *reinterpret_cast<const uint4*>(tile.at(row + at, column));
  };
  if (first + kRowsOfWarp <= count && to.is_straight(slot + first, kRowsOfWarp)) {
    bf16* y = to.first + std::int64_t(slot + to.shift + row) * to.stride + column;
    const std::int64_t next = std::int64_t(pass) * to.stride;
#pragma unroll
    for (int at = 0; at < kRowsOfWarp; at += pass, y += next) copy(y, at);
    return;
  }
#pragma unroll 1
  for (int at = 0; at < kRowsOfWarp && row + at < count; at += pass) copy(to(slot + row + at) + column, at);
}

/// Over the four lanes that share a row.
__device__ inline float sum_of_row(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ inline float largest_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/// c (16, d) += the sum of each row of p times the first row of a tile: a null block, whose keys are all the same.
/// Rounded to bf16, its equal probabilities would all be wrong in the same direction, so this is done in f32.
template <int d, int kPieces>
__device__ void add_null(FragmentC (&c)[d / 8], const FragmentC (&p)[kPieces], const MmaTile<d>& tile, int lane) {
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
}

/// A stretch of key columns that a query bucket looks at: all of a block, as far as the threads need to know it.
struct KeyBlock {
  int c = -1;  // which of the bucket's blocks
  AttentionBlock::Kind kind = AttentionBlock::closed;
  int begin = 0, width = 0;
  float weight = 1;
};

/// Which pairs of 16 rows and some columns see each other, one side being queries i .. of bucket u, the other keys j ..
/// of a block. Of a number of columns that a lane holds, number e of piece n is bit 8 n + e of a word.
struct Mask {
  const TileHead& head;
  int u;
  const KeyBlock& block;
  int query, key;  // the first of each

  /// Keys up to the query.
  __device__ bool is_triangle() const { return head.in.causal && block.kind == AttentionBlock::own; }
  /// The last bucket of a rotated head: all but its first query see their own keys behind the first, and no others.
  __device__ bool is_wrapped() const { return head.shift > 0 && u == head.in.buckets - 1; }
  /// Whether all of these queries see all of `keys` keys.
  __device__ bool is_open(int keys) const {
    return !head.in.is_padded && !is_wrapped() && key >= 0 && key + keys <= block.width &&
           !(is_triangle() && key + keys - 1 > query);
  }
  __device__ Mask later(int queries, int keys) const { return {head, u, block, query + queries, key + keys}; }

  /// Of 16 x 32.
  template <bool kRowsAreQueries>
  __device__ std::uint32_t seen(int lane) const {
    const int row = (kRowsAreQueries ? query : key) + lane / 4;
    std::uint32_t words[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      words[half] = kRowsAreQueries ? keys_of(row + half * 8) : queries_of(row + half * 8);
    if (head.in.is_padded) {
      const std::uint32_t columns =
          __ballot_sync(0xffffffffu, kRowsAreQueries ? is_real_key(key + lane) : is_real_query(query + lane));
#pragma unroll
      for (int half = 0; half < 2; ++half)
        words[half] &= (kRowsAreQueries ? is_real_query(row + half * 8) : is_real_key(row + half * 8)) ? columns : 0;
    }
    return bits_of_lane(words[0], words[1], lane);
  }

  /// Which of 16 x 32 dropout keeps. A lane draws whole blocks of four words, which belong to keys side by side, where
  /// these begin at a multiple of four; then the bits are handed to those who need them.
  template <bool kRowsAreQueries>
  __device__ std::uint32_t kept(int lane) const {
    const std::int64_t columns = head.columns();
    const int at = block.c * (head.is_local ? head.in.bucket : head.in.key_bucket) + key;
    const RandomBits bits = (head.is_local ? head.in.local_stream : head.in.sorting_stream).now();
    const std::int64_t group = head.is_local ? head.sequence * head.in.local + head.head : head.group();
    // of query i and key j, counted from the first ones
    const auto element = [&](int i, int j) {
      return std::uint64_t(((group * head.in.buckets + u) * head.in.bucket + query + i) * columns + at + j);
    };
    const auto keeps = [&](std::uint32_t word) { return word >> 9 >= head.in.drop_end; };
    std::uint32_t words[2] = {};
    if (((columns | at) & 3) != 0) {
      std::uint32_t result = 0;
#pragma unroll 1
      for (int k = 0; k < 16; ++k) {
        const int row = k % 4 / 2 * 8 + lane / 4, column = k / 4 * 8 + lane % 4 * 2 + k % 2;
        const std::uint32_t word = bits.word(kRowsAreQueries ? element(row, column) : element(column, row));
        result |= std::uint32_t(keeps(word)) << (k / 4 * 8 + k % 4);
      }
      return result;
    }
    const auto four = [&](int i, int j) {
      const Word4 drawn = bits.block(element(i, j) / 4);
      std::uint32_t result = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) result |= std::uint32_t(keeps(drawn[std::size_t(k)])) << k;
      return result;
    };
    if constexpr (kRowsAreQueries) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = half * 8 + lane / 4, column = lane % 4 * 4;
        std::uint32_t word = four(row, column) << column | four(row, column + 16) << (column + 16);
        word |= __shfl_xor_sync(0xffffffffu, word, 1);
        words[half] = word | __shfl_xor_sync(0xffffffffu, word, 2);
      }
    } else {  // a lane draws for a query, a word goes to a key
      std::uint32_t drawn = 0;
#pragma unroll
      for (int j = 0; j < 16; j += 4) drawn |= four(lane, j) << j;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const std::uint32_t word = __ballot_sync(0xffffffffu, drawn >> j & 1);
        if (j % 8 == lane / 4) words[j / 8] = word;
      }
    }
    return bits_of_lane(words[0], words[1], lane);
  }

 private:
  // One bit for each of 32 keys that query i sees, as far as padding allows, and for each of 32 queries that see key j.
  __device__ std::uint32_t keys_of(int i) const {
    const bool is_behind = is_wrapped() && i > 0;
    const int low = is_behind ? (block.kind == AttentionBlock::own ? 1 : block.width) : 0;
    const int high = is_triangle() ? min(i + 1, block.width) : block.width;
    return below(high - key) & ~below(low - key);
  }
  __device__ std::uint32_t queries_of(int j) const {
    if (j < 0 || j >= block.width) return 0;
    const bool is_of_first = is_wrapped() && (block.kind != AttentionBlock::own || j == 0);
    return (is_of_first ? below(1 - query) : ~0u) & ~(is_triangle() ? below(j - query) : 0);
  }
  __device__ static std::uint32_t below(int bits) { return bits >= 32 ? ~0u : (1u << max(bits, 0)) - 1; }

  __device__ bool is_real_query(int i) const {
    return i < head.in.bucket && (!head.in.mask || head.in.mask[head.token(u * head.in.bucket + i, head.in.length)]);
  }
  __device__ bool is_real_key(int j) const {
    return block.kind == AttentionBlock::null || !head.in.key_mask ||
           (j >= 0 && j < block.width && head.in.key_mask[head.token(block.begin + j, head.in.key_length)]);
  }
  // Of the words for rows lane / 4 and 8 + lane / 4.
  __device__ static std::uint32_t bits_of_lane(std::uint32_t upper, std::uint32_t lower, int lane) {
    const int shift = lane % 4 * 2;
    return (upper >> shift & 0x03030303u) | (lower >> shift & 0x03030303u) << 2;
  }
};
__device__ inline bool bit(std::uint32_t bits, int n, int e) { return bits >> (n * 8 + e) & 1; }

/// Multiplies with what dropout multiplies.
template <int kPieces>
__device__ void drop(FragmentC (&x)[kPieces], const std::uint32_t (&kept)[kPieces / 4], float factor) {
#pragma unroll
  for (int n = 0; n < kPieces; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) x[n].x[e] *= bit(kept[n / 4], n % 4, e) ? factor : 0.0f;
}

/// Keys and values j0 .. of a block.
template <int kRows, int kThreads, int d>
__device__ void copy_keys(const Thread& t, const TileHead& head, const HeadRows<const bf16>& from,
                          const KeyBlock& block, int j0, const MmaTile<d>& keys, const MmaTile<d>& values) {
  if (block.kind != AttentionBlock::null) {
    copy_rows<kRows, kThreads>(t, keys, values, from, head.in.heads * d, block.begin + j0, block.width - j0);
    return;
  }
  const auto null = [&](const Global<const bf16>& x) {
    return HeadRows<const bf16>{&x[head.sorting_head * d], 0, kRows, 0};
  };
  copy_rows<kRows, kThreads>(t, keys, null(head.in.null_keys), 0, block.width - j0);
  copy_rows<kRows, kThreads>(t, values, null(head.in.null_values), 0, block.width - j0);
}

/// Steps of 64 keys over all that query bucket u looks at, for queries of it before `end`.
struct KeySteps {
  const TileHead& head;
  int u, end;
  KeyBlock block = {};
  int j0 = 0;

  /// To the next step; false where there is none.
  __device__ bool next() {
    j0 += kStep;
    if (block.c >= 0 && j0 < block.width && !(head.in.causal && block.kind == AttentionBlock::own && j0 >= end))
      return true;
    j0 = 0;
    for (++block.c; block.c < head.blocks(); ++block.c) {
      const AttentionBlock found = head.block(u, block.c);
      if (found.kind == AttentionBlock::closed) continue;
      block = {block.c, found.kind, found.begin, found.width, head.weight(found)};
      return true;
    }
    return false;
  }
};

/// Weights that can be folded into the exponent: w 2^x = 2^(x + log2 w) without a loss of range.
__device__ inline bool folds(float weight) { return weight >= 0x1p-64f; }

}  // namespace sinkhorn::cuda
