// Tiles of bucketed attention as tensor cores want them, and how rows of a head come to shared memory and go back.
#pragma once
#include <cmath>
#include <limits>

#include "cuda/attention_pattern.h"
#include "cuda/gpu/mma.h"

namespace sinkhorn::cuda {

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
inline constexpr float kNone = -std::numeric_limits<float>::infinity();

/// What is split into planes, and what results are stored in.
template <int kPlanes>
using Number = std::conditional_t<kPlanes == 1, bf16, float>;

/// Everything both passes read, and what the host works out of it. The width of a head is a multiple of 8; tiles may be
/// wider.
template <class T>
struct TileInputs : AttentionInputs<T> {
  explicit TileInputs(const typename kernels::BucketedAttention<T>::Arguments& in)
      : AttentionInputs<T>(in),
        is_padded(in.mask || in.key_mask),
        scale(float(1 / std::sqrt(double(in.shape.width)))),
        keep_factor(float(1 / (1 - in.dropout))),
        drop_end(in.dropout > 0 ? std::uint32_t(std::ceil(in.dropout * 8388608 - 0.5)) : 0) {}

  bool is_padded;
  float scale;             // of scores: 1 / sqrt(width)
  float keep_factor;       // what dropout multiplies with
  std::uint32_t drop_end;  // words of random bits whose upper 23 are below are dropped: (x + 1/2) / 2^23 < dropout
};

/// One head of one sequence.
template <class T>
struct TileHead : AttentionHead<T> {
  __device__ TileHead(const TileInputs<T>& inputs, int item) : AttentionHead<T>(inputs, item), in(inputs) {}
  const TileInputs<T>& in;
};

template <class T>
__device__ T* pointer(const Shared<T>& memory) {
  return &memory[0];
}
template <int d, int kPlanes>
__device__ MmaTile<d, kPlanes> tile_of(Thread& t, int rows) {
  return {pointer(t.shared<bf16>(MmaTile<d, kPlanes>::count(rows)))};
}

/// x, of which the compiler does not know that: what follows from it is worked out anew, not held in registers until
/// then.
__device__ inline int anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

/// What a block of threads works on: a tile of a bucket of a head of a sequence.
struct Place {
  int tile, bucket, item;
};
__device__ inline Place place_of(int block, const Divisor& tiles, const Divisor& buckets) {
  const int bucket = block / tiles, item = bucket / buckets;
  return {block - bucket * tiles.value(), bucket - item * buckets.value(), item};
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
__device__ HeadRows<T> rows_of(const TileHead<std::remove_const_t<T>>& head, const Global<T>& x, int stride,
                               int length) {
  return {&x[std::int64_t(head.sequence) * length * stride + head.head * head.in.width], stride, length, head.shift};
}
/// Of queries or their gradient.
template <class T>
__device__ HeadRows<T> query_rows(const TileHead<std::remove_const_t<T>>& head, const Global<T>& q) {
  return rows_of(head, q, head.in.query_stride, head.in.length);
}
/// Of results (B, T, H, d) or their gradient.
template <class T>
__device__ HeadRows<T> result_rows(const TileHead<std::remove_const_t<T>>& head, const Global<T>& y) {
  return rows_of(head, y, head.in.heads * head.in.width, head.in.length);
}
/// Keys; the values of the same token lie heads * width elements behind.
template <class T>
__device__ HeadRows<T> key_rows(const TileHead<std::remove_const_t<T>>& head, const Global<T>& kv) {
  return rows_of(head, kv, head.in.key_stride, head.in.key_length);
}

/// What a thread copies of the first kRows rows of slots `slot` .. + count - 1: 16 bytes of row `row` and of every
/// kPass-th behind it.
template <int d, int kRows, int kThreads, class T>
struct Share {
  static constexpr int kChunk = 16 / int(sizeof(T)), kChunks = d / kChunk, kPass = kThreads / kChunks;
  static_assert(kRows % kPass == 0);
  int row, column;
  int source;  // the column that is read: columns beyond the width of a head are those before it again
  __device__ Share(const Thread& t, int width)
      : row(t.index() / kChunks), column(t.index() % kChunks * kChunk), source(min(column, width - kChunk)) {}

  /// Calls f(how many rows behind the first, where they lie, whether there is such a slot).
  template <class F>
  __device__ void for_each(const HeadRows<const T>& from, int slot, int count, F f) const {
    if (count >= kRows && from.is_straight(slot, kRows)) {
      const T* x = from.first + std::int64_t(slot + from.shift + row) * from.stride + source;
      const std::int64_t apart = std::int64_t(kPass) * from.stride;
#pragma unroll
      for (int at = 0; at < kRows; at += kPass, x += apart) f(at, x, true);
      return;
    }
#pragma unroll 1
    for (int at = 0; at < kRows; at += kPass) {
      const bool is = at + row < count;
      f(at, from(is ? slot + at + row : slot) + source, is);
    }
  }
};

/// Four columns of a row.
template <int d, int kPlanes>
__device__ void put(const MmaTile<d, kPlanes>& tile, int row, int column, const float4& x) {
  std::uint32_t left[kPlanes], right[kPlanes];
  split(left, x.x, x.y);
  split(right, x.z, x.w);
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane)
    *reinterpret_cast<uint2*>(tile.at(row, column, plane)) = {left[plane], right[plane]};
}

/// The first kRows rows of a tile become those of slots `slot` .. + count - 1, and 0 behind them and beyond the width
/// of a head: in bf16 when the copies have come, in planes at once.
template <int kRows, int kThreads, int d>
__device__ void copy_rows(const Thread& t, const MmaTile<d, 1>& tile, const HeadRows<const bf16>& from, int slot,
                          int count, int width) {
  using Part = Share<d, kRows, kThreads, bf16>;
  static_assert(Part::kPass % 8 == 0);
  const Part share(t, width);
  const bool is_inside = share.column < width;
  bf16* const to = tile.at(share.row, share.column);
  share.for_each(from, slot, count,
                 [&](int at, const bf16* x, bool is) { copy_async<16>(to + tile.count(at), x, is && is_inside); });
}
template <int kRows, int kThreads, int d, int kPlanes>
__device__ void copy_rows(const Thread& t, const MmaTile<d, kPlanes>& tile, const HeadRows<const float>& from, int slot,
                          int count, int width) {
  using Part = Share<d, kRows, kThreads, float>;
  const Part share(t, width);
  float4 x[kRows / Part::kPass];  // all on their way before the first is waited for
#pragma unroll
  for (int i = 0; i < kRows / Part::kPass; ++i) {
    const int row = i * Part::kPass + share.row;
    x[i] = row < count && share.column < width ? *reinterpret_cast<const float4*>(from(slot + row) + share.column)
                                               : float4{};
  }
#pragma unroll
  for (int i = 0; i < kRows / Part::kPass; ++i) put(tile, i * Part::kPass + share.row, share.column, x[i]);
}

/// The same of two tiles, of which the second's rows lie `apart` elements behind the first's.
template <int kRows, int kThreads, int d>
__device__ void copy_rows(const Thread& t, const MmaTile<d, 1>& tile, const MmaTile<d, 1>& second,
                          const HeadRows<const bf16>& from, int apart, int slot, int count, int width) {
  using Part = Share<d, kRows, kThreads, bf16>;
  static_assert(Part::kPass % 8 == 0);
  const Part share(t, width);
  const bool is_inside = share.column < width;
  bf16 *const to = tile.at(share.row, share.column), *const to_second = second.at(share.row, share.column);
  share.for_each(from, slot, count, [&](int at, const bf16* x, bool is) {
    copy_async<16>(to + tile.count(at), x, is && is_inside);
    copy_async<16>(to_second + tile.count(at), x + apart, is && is_inside);
  });
}
template <int kRows, int kThreads, int d, int kPlanes>
__device__ void copy_rows(const Thread& t, const MmaTile<d, kPlanes>& tile, const MmaTile<d, kPlanes>& second,
                          const HeadRows<const float>& from, int apart, int slot, int count, int width) {
  copy_rows<kRows, kThreads>(t, tile, from, slot, count, width);
  copy_rows<kRows, kThreads>(t, second, {from.first + apart, from.stride, from.length, from.shift}, slot, count, width);
}

/// Two matrices that are walked over together, kRows rows a step, of which the next are on their way while some are at
/// work. In bf16 they go to the other half of two tiles. In f32 a thread copies its share to a place of its own, and
/// splits it into planes when nobody reads the tiles any more. Columns beyond the width of a head are of no meaning:
/// what multiplies them is 0.
template <int d, int kPlanes, int kRows, int kThreads>
struct Steps {
  using T = Number<kPlanes>;
  using Tile = MmaTile<d, kPlanes>;
  static constexpr int kHalves = kPlanes == 1 ? 2 : 1;
  static constexpr int kShare = kPlanes == 1 ? 0 : kRows * d / 4 / kThreads;  // of a thread, packs of 4 numbers
  int width;
  Tile first, second;
  float4* copied;  // (2, kShare, kThreads)

  static constexpr std::size_t bytes() {
    return std::size_t(2 * Tile::count(kHalves * kRows)) * sizeof(bf16) + 2 * kShare * kThreads * sizeof(float4);
  }
  __device__ Steps(Thread& t, int width)
      : width(width),
        first(tile_of<d, kPlanes>(t, kHalves * kRows)),
        second(tile_of<d, kPlanes>(t, kHalves * kRows)),
        copied(pointer(t.shared<float4>(2 * kShare * kThreads)) + t.index()) {}

  /// Those of step number s.
  __device__ Tile first_of(int s) const { return first.from(kHalves == 1 ? 0 : s * kRows); }
  __device__ Tile second_of(int s) const { return second.from(kHalves == 1 ? 0 : s * kRows); }

  /// Sends the rows of slots `slot` .. + count - 1 on their way to the tiles of step s, 0 behind them.
  __device__ void copy_first(const Thread& t, int s, const HeadRows<const T>& from, int slot, int count) const {
    copy(t, first_of(s), copied, from, slot, count);
  }
  __device__ void copy_second(const Thread& t, int s, const HeadRows<const T>& from, int slot, int count) const {
    copy(t, second_of(s), copied + kShare * kThreads, from, slot, count);
  }
  /// Both; rows of the second lie `apart` elements behind those of the first.
  __device__ void copy_both(const Thread& t, int s, const HeadRows<const T>& from, int apart, int slot,
                            int count) const {
    const Part share(t, width);
    Places to(first_of(s), share, copied), to_second(second_of(s), share, copied + kShare * kThreads);
    share.for_each(from, slot, count, [&](int at, const T* x, bool is) {
      copy_async<16>(to.next(at), x, is);
      copy_async<16>(to_second.next(at), x + apart, is);
    });
  }
  /// Waits until the tiles of the next step are whole and nobody needs those of the last, whose products are done.
  __device__ void arrive(const Thread& t) const {
    await_copies<0>();
    t.sync();
    if constexpr (kPlanes > 1) {
      const Part share(t, width);
      const auto split_share = [&](const Tile& tile, const float4* from) {
        float4 x[kShare];  // read before the first is written, which the compiler would not dare
#pragma unroll
        for (int i = 0; i < kShare; ++i) x[i] = from[i * kThreads];
#pragma unroll
        for (int i = 0; i < kShare; ++i) put(tile, i * Part::kPass + share.row, share.column, x[i]);
      };
      split_share(first, copied);
      split_share(second, copied + kShare * kThreads);
      show_to_products();
      t.sync();
    }
  }

 private:
  using Part = Share<d, kRows, kThreads, T>;
  // Where a thread copies its share to, row by row.
  struct Places {
    bf16* in_tile;
    float4* copied;
    __device__ Places(const Tile& tile, const Part& share, float4* copied)
        : in_tile(tile.at(share.row, share.column)), copied(copied) {}
    __device__ void* next(int at) {
      if constexpr (kPlanes == 1) {
        static_assert(Part::kPass % 8 == 0);
        return in_tile + Tile::count(at);
      } else {
        void* const place = copied;
        copied += kThreads;
        return place;
      }
    }
  };
  __device__ void copy(const Thread& t, const Tile& tile, float4* own, const HeadRows<const T>& from, int slot,
                       int count) const {
    const Part share(t, width);
    Places to(tile, share, own);
    share.for_each(from, slot, count, [&](int at, const T* x, bool is) { copy_async<16>(to.next(at), x, is); });
  }
};

/// Eight numbers side by side.
struct Eight {
  float x[8];
};
/// Those of a result as they lie in memory: rounded, and behind them what rounding took; or all of them.
struct EightOfResult {
  uint4 first, second;
};
__device__ inline EightOfResult read_eight(const bf16* rounded, const bf16* rest) {
  return {*reinterpret_cast<const uint4*>(rounded), *reinterpret_cast<const uint4*>(rest)};
}
__device__ inline EightOfResult read_eight(const float* x, const float*) {
  return {*reinterpret_cast<const uint4*>(x), *reinterpret_cast<const uint4*>(x + 4)};
}
template <class T>
__device__ Eight numbers_of(const EightOfResult& x) {
  const uint4 a = x.first, b = x.second;
  if constexpr (std::is_same_v<T, bf16>) {
    const auto sum = [](std::uint32_t high, std::uint32_t low) {
      return float2{lower_half(high) + lower_half(low), upper_half(high) + upper_half(low)};
    };
    const float2 s = sum(a.x, b.x), t = sum(a.y, b.y), u = sum(a.z, b.z), v = sum(a.w, b.w);
    return {{s.x, s.y, t.x, t.y, u.x, u.y, v.x, v.y}};
  } else {
    const auto number = [](std::uint32_t word) { return __uint_as_float(word); };
    return {{number(a.x), number(a.y), number(a.z), number(a.w), number(b.x), number(b.y), number(b.z), number(b.w)}};
  }
}
/// Columns `column` .. of a row of a tile.
template <int d, int kPlanes>
__device__ Eight numbers_of(const MmaTile<d, kPlanes>& tile, int row, int column) {
  Eight sum;
#pragma unroll
  for (int plane = kPlanes - 1; plane >= 0; --plane) {
    const auto words = *reinterpret_cast<const uint4*>(tile.at(row, column, plane));
    const std::uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float x = e % 2 == 0 ? lower_half(pairs[e / 2]) : upper_half(pairs[e / 2]);
      sum.x[e] = plane == kPlanes - 1 ? x : sum.x[e] + x;
    }
  }
  return sum;
}

/// Stores a warp's rows, of slots `slot` .. + count - 1 of a block: rounded, through its part of a tile that nobody
/// else uses.
template <int d>
__device__ void store_rows(const Thread& t, const MmaTile<d, 1>& tile, const FragmentA (&x)[d / 16],
                           const HeadRows<bf16>& to, int slot, int count, int width) {
  constexpr int chunks = d / 8, pass = kWarp / chunks;
  const int first = t.warp() * kRowsOfWarp, row = first + t.lane() / chunks, column = t.lane() % chunks * 8;
  __syncwarp();
#pragma unroll
  for (int k = 0; k < d / 16; ++k) tile.put(first, k * 16, t.lane(), x[k]);
  __syncwarp();
  if (column >= width) return;
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
template <int d>
__device__ void store_rows(const Thread& t, const MmaTile<d, 1>& tile, const FragmentC (&x)[d / 8],
                           const HeadRows<bf16>& to, int slot, int count, int width) {
  FragmentA rounded[1][d / 16];
  split(rounded, x);
  store_rows<d>(t, tile, rounded[0], to, slot, count, width);
}
/// In f32 as they are.
template <int d, int kPlanes>
__device__ void store_rows(const Thread& t, const MmaTile<d, kPlanes>&, const FragmentC (&x)[d / 8],
                           const HeadRows<float>& to, int slot, int count, int width) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = t.warp() * kRowsOfWarp + half * 8 + t.lane() / 4;
    if (row >= count) continue;
    float* const y = to(slot + row) + t.lane() % 4 * 2;
#pragma unroll
    for (int n = 0; n < d / 8; ++n)
      if (n * 8 < width) *reinterpret_cast<float2*>(y + n * 8) = {x[n].x[2 * half], x[n].x[2 * half + 1]};
  }
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

/// Over the rows of a warp, of what the lanes that share a row all have.
__device__ inline float sum_of_rows(float x) {
#pragma unroll
  for (int lanes = 4; lanes < kWarp; lanes *= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}

/// What a lane's two rows, lane / 4 and lane / 4 + 8 of a warp, give when multiplied with a vector of `width` numbers.
template <int d, int kPlanes, class T>
__device__ float2 times_vector(const MmaTile<d, kPlanes>& rows, int first, const T* x, int width, int lane) {
  float sum[2] = {};
#pragma unroll 1
  for (int column = lane % 4 * 8; column < width; column += 32) {
    const int row = first + lane / 4;
    const Eight upper = numbers_of(rows, row, column), lower = numbers_of(rows, row + 8, column);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float x_of_e = float(x[column + e]);
      sum[0] = fmaf(upper.x[e], x_of_e, sum[0]);
      sum[1] = fmaf(lower.x[e], x_of_e, sum[1]);
    }
  }
  return {sum_of_row(sum[0]), sum_of_row(sum[1])};
}
/// c (16, d) += each row's factor times a vector of `width` numbers.
template <int kPieces, class T>
__device__ void add_vector(FragmentC (&c)[kPieces], const float (&factor)[2], const T* x, int width, int lane) {
#pragma unroll
  for (int n = 0; n < kPieces; ++n)
#pragma unroll
    for (int e = 0; n * 8 < width && e < 4; ++e)
      c[n].x[e] = fmaf(factor[e / 2], float(x[n * 8 + lane % 4 * 2 + e % 2]), c[n].x[e]);
}

}  // namespace sinkhorn::cuda
