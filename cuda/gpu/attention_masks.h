// Which pairs of queries and keys see each other, which of them dropout keeps, and in what order a block of threads
// meets them.
#pragma once
#include "cuda/gpu/attention_tiles.h"

namespace sinkhorn::cuda {

/// A stretch of key columns that a query bucket looks at: all of a block, as far as the threads need to know it.
struct KeyBlock {
  int c = -1;  // which of the bucket's blocks
  AttentionBlock::Kind kind = AttentionBlock::closed;
  int begin = 0, width = 0;
  float weight = 1;
};

/// Which pairs of 16 rows and some columns see each other, one side being queries i .. of bucket u, the other keys j ..
/// of a block. Of a number of columns that a lane holds, number e of piece n is bit 8 n + e of a word.
template <class T>
struct Mask {
  const TileHead<T>& head;
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

/// A null block is one key that stands in each of its columns, so its scores are one number a row, and so is all that
/// follows from them: summed in f32, with no tile. (Rounded to bf16, equal probabilities would all err in one
/// direction.) How many columns a lane's two rows see, and the sum of what dropout multiplies them with.
struct NullColumns {
  float seen[2], kept[2];
};
template <bool kDrops, class T>
__device__ NullColumns null_columns(const Mask<T>& mask, int lane) {
  const TileInputs<T>& in = mask.head.in;
  const int width = mask.block.width;
  if (!kDrops && mask.is_open(width)) return {{float(width), float(width)}, {float(width), float(width)}};
  NullColumns sums{};
#pragma unroll 1
  for (int j = 0; j < width; j += 32) {
    const Mask<T> part = mask.later(0, j);
    const std::uint32_t seen = part.template seen<true>(lane);
    const std::uint32_t kept = kDrops ? seen & part.template kept<true>(lane) : seen;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t of_half = 0x03030303u << 2 * half;
      sums.seen[half] += float(__popc(seen & of_half));
      sums.kept[half] += float(__popc(kept & of_half));
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sums.seen[half] = sum_of_row(sums.seen[half]);
    sums.kept[half] = sum_of_row(sums.kept[half]) * (kDrops ? in.keep_factor : 1.0f);
  }
  return sums;
}
/// The null key or value of a head.
template <class T>
__device__ const T* null_row(const TileHead<T>& head, const Global<const T>& nulls) {
  return &nulls[std::int64_t(head.sorting_head) * head.in.width];
}
/// Calls f with the null blocks of query bucket u of a sorting head.
template <class T, class F>
__device__ void for_nulls(const TileHead<T>& head, int u, F f) {
#pragma unroll 1
  for (int c = 0; c < head.in.n_top; ++c) {
    const AttentionBlock found = head.block(u, c);
    if (found.kind == AttentionBlock::null) f(KeyBlock{c, found.kind, 0, found.width, head.weight(found)});
  }
}

/// Steps of kStep keys over all that query bucket u looks at but nulls, for queries of it before `end`. The own bucket
/// of a sorting head comes first: its keys are on their way while the picks are read.
template <int kStep, class T>
struct KeySteps {
  const TileHead<T>& head;
  int u, end;
  KeyBlock block = {};
  int j0 = 0, looked_at = 0;  // blocks

  /// To the next step; false where there is none.
  __device__ bool next() {
    j0 += kStep;
    if (block.c >= 0 && j0 < block.width && !(head.in.causal && block.kind == AttentionBlock::own && j0 >= end))
      return true;
    j0 = 0;
    const bool own_first = !head.is_local && head.in.own;
    while (looked_at < head.blocks()) {
      const int c = !own_first ? looked_at : looked_at == 0 ? head.in.n_top : looked_at - 1;
      ++looked_at;
      const AttentionBlock found = head.block(u, c);
      if (found.kind == AttentionBlock::closed || found.kind == AttentionBlock::null) continue;
      block = {c, found.kind, found.begin, found.width, head.weight(found)};
      return true;
    }
    return false;
  }
};

/// Weights that can be folded into the exponent: w 2^x = 2^(x + log2 w) without a loss of range.
__device__ inline bool folds(float weight) { return weight >= 0x1p-64f; }

}  // namespace sinkhorn::cuda
