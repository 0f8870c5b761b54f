// f32 products by tensor cores that multiply f16.
//
// Operands are split. A number x is taken for hi + lo: hi is x s rounded to f16, lo is what that took, rounded in turn,
// s a power of two. f16 has 11 bits, lo a sign, so two planes have 23; a product of two such sums is hi hi + hi lo + lo
// hi, since lo lo is 2^-22 of it at most. (Ootomo and Yokota 2022, "Recovering single precision accuracy from Tensor
// Cores while surpassing the FP32 theoretical peak performance". In bf16, as in attention, it would take three planes
// and six products.)
//
// Scales by block. f16 ends at 65,504 and at 2^-24, so each 64 numbers along k of a line, which is a row of op(A) or a
// column of op(B), have an s of their own that puts the largest between 2^14 and 2^15. What falls below f16 is then
// less than 2^-39 of the largest. A line's planes depend on that line alone, so a result's row depends on no other row.
//
// Sums outside. Tensor cores cut sums off towards zero, at every product. So the sum over a block of 64 begins at 0,
// the small products come first, and it is added to what was by an ordinary fma, by which the scales go out again.
//
// Packing. A kernel reads an operand, whichever way it lies, and writes what shared memory shall hold of each tile of
// 128 lines by 64, both planes as wgmma wants them, with zeros beyond the ends, and beside that the inverse scales. So
// the product copies contiguous pieces and knows neither transpositions nor ends but those of the result.
#include <cuda_fp16.h>

#include "cuda/gpu/bulk_copies.h"
#include "cuda/gpu/mma.h"
#include "cuda/launch.h"
#include "cuda/planes_gemm.h"
#include "cuda/runtime.h"

namespace sinkhorn::cuda {
namespace {

constexpr std::string_view kName = "planes_gemm";
constexpr int kLines = 128, kBlock = 64;  // of a tile; a block of k has one scale a line
constexpr int kMultiprocessors = 132;     // of an H100: what shapes are cut for, whatever runs them

using Image = MmaTile<kBlock, 2>;  // of 16 bits, here f16; plane 0 is hi
constexpr int kImageBytes = Image::count(kLines) * int(sizeof(bf16));

struct Scale {
  float s, inverse;
};
/// For the largest of a block, as bits of its absolute value, among which NaN is above all. Neither leaves the normal
/// numbers, so the largest of a block is less than 2^14 if it is below 2^-112, where f32 ends at 2^-37 of it.
__device__ Scale scale_of(unsigned largest) {
  const unsigned exponent = min(127 + 14 + 127 - (largest >> 23), 253u);
  return {__uint_as_float(exponent << 23), __uint_as_float((254 - exponent) << 23)};
}
__device__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

/// Two numbers' planes, packed in pairs. Of an infinity hi is one, and lo NaN.
__device__ void split(unsigned& hi, unsigned& lo, float x, float y) {
  const __half2 rounded = __floats2half2_rn(x, y);
  const float2 back = __half22float2(rounded);
  const __half2 rest = __floats2half2_rn(x - back.x, y - back.y);
  hi = reinterpret_cast<const unsigned&>(rounded);
  lo = reinterpret_cast<const unsigned&>(rest);
}

/// What is to be packed: lines of k numbers that lie one behind the other, (lines, k), or side by side, (k, lines).
struct Operand {
  const float* x;
  std::int64_t lines, k;
  bool lie_behind;
  bool in_packs;          // x may then be read 16 bytes at a time
  unsigned char* images;  // of each tile and block
  float* inverse;         // of its lines' scales
  SINKHORN_HD std::int64_t blocks() const { return cuda::pieces(k, kBlock); }
  SINKHORN_HD std::int64_t pieces() const { return cuda::pieces(lines, kLines) * blocks(); }
};

/// Packs both operands of a product. A block of threads makes a piece.
struct PackOperands {
  static constexpr int kThreads = 256, kBlocksOfMultiprocessor = 3;
  Operand a, b;

  static constexpr int kWarps = kThreads / kWarp, kDepth = kBlock / kWarps, kOwn = kLines / kWarp;
  std::size_t shared_bytes() const {
    const std::size_t image_and_largest = std::size_t(kImageBytes) + kWarps * kLines * sizeof(unsigned);
    return a.lie_behind && b.lie_behind ? 0 : image_and_largest;
  }

  __device__ void operator()(Thread& t) const {
    const bool is_a = t.block() < a.pieces();
    const Operand of{is_a ? a.x : b.x,
                     is_a ? a.lines : b.lines,
                     is_a ? a.k : b.k,
                     is_a ? a.lie_behind : b.lie_behind,
                     is_a ? a.in_packs : b.in_packs,
                     is_a ? a.images : b.images,
                     is_a ? a.inverse : b.inverse};
    const std::int64_t piece = t.block() - (is_a ? 0 : a.pieces()), tile = quotient(piece, of.blocks());
    const std::int64_t first = tile * kLines, from = (piece - tile * of.blocks()) * kBlock;
    unsigned char* const to = of.images + piece * kImageBytes;
    float* const inverse = of.inverse + piece * kLines;
    if (of.lie_behind) {
      pack_rows(t, of, first, from, to, inverse);
    } else {
      pack_columns(t, of, first, from, to, inverse);
    }
  }

 private:
  // 16 lanes a line, 4 numbers each
  __device__ static void pack_rows(Thread& t, const Operand& of, std::int64_t first, std::int64_t from,
                                   unsigned char* to, float* inverse) {
    constexpr int kPack = 4, kLanes = kBlock / kPack, kAtOnce = kThreads / kLanes, kTurns = kLines / kAtOnce;
    const int column = t.index() % kLanes * kPack;
    float numbers[kTurns][kPack];
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const std::int64_t line = first + t.index() / kLanes + i * kAtOnce, at = from + column;
      const float* const x = of.x + line * of.k + at;
      float4 pack{};
      if (of.in_packs) {
        if (line < of.lines && at < of.k) pack = *reinterpret_cast<const float4*>(x);
      } else if (line < of.lines) {
        if (at < of.k) pack.x = x[0];
        if (at + 1 < of.k) pack.y = x[1];
        if (at + 2 < of.k) pack.z = x[2];
        if (at + 3 < of.k) pack.w = x[3];
      }
      numbers[i][0] = pack.x;
      numbers[i][1] = pack.y;
      numbers[i][2] = pack.z;
      numbers[i][3] = pack.w;
    }
    const Image image{reinterpret_cast<bf16*>(to)};
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int line = t.index() / kLanes + i * kAtOnce;
      const float(&x)[kPack] = numbers[i];
      unsigned largest = max(max(magnitude(x[0]), magnitude(x[1])), max(magnitude(x[2]), magnitude(x[3])));
#pragma unroll
      for (int mask = kLanes / 2; mask > 0; mask /= 2)
        largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, mask));
      const Scale scale = scale_of(largest);
      uint2 hi, lo;
      split(hi.x, lo.x, x[0] * scale.s, x[1] * scale.s);
      split(hi.y, lo.y, x[2] * scale.s, x[3] * scale.s);
      *reinterpret_cast<uint2*>(image.at(line, column, 0)) = hi;
      *reinterpret_cast<uint2*>(image.at(line, column, 1)) = lo;
      if (column == 0) inverse[line] = scale.inverse;
    }
  }

  // A lane has 4 lines, and 8 numbers of each: a lane's neighbour in memory is its neighbour. The image is put together
  // in shared memory, where eight lines' 16 bytes lie in different banks, and leaves as it lies.
  __device__ static void pack_columns(Thread& t, const Operand& of, std::int64_t first, std::int64_t from,
                                      unsigned char* to, float* inverse) {
    const Image image{&t.shared<bf16>(Image::count(kLines))[0]};
    auto largest_of_warp = t.shared<unsigned>(kWarps * kLines);
    float numbers[kOwn][kDepth];
#pragma unroll
    for (int i = 0; i < kDepth; ++i)
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const std::int64_t row = from + t.warp() * kDepth + i, line = first + own * kWarp + t.lane();
        numbers[own][i] = row < of.k && line < of.lines ? of.x[row * of.lines + line] : 0;
      }
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      unsigned largest = 0;
#pragma unroll
      for (const float x : numbers[own]) largest = max(largest, magnitude(x));
      largest_of_warp[t.warp() * kLines + own * kWarp + t.lane()] = largest;
    }
    t.sync();
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      const int line = own * kWarp + t.lane();
      unsigned largest = 0;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) largest = max(largest, largest_of_warp[warp * kLines + line]);
      const Scale scale = scale_of(largest);
      unsigned hi[kDepth / 2], lo[kDepth / 2];
#pragma unroll
      for (int i = 0; i < kDepth / 2; ++i)
        split(hi[i], lo[i], numbers[own][2 * i] * scale.s, numbers[own][2 * i + 1] * scale.s);
      *reinterpret_cast<uint4*>(image.at(line, t.warp() * kDepth, 0)) = {hi[0], hi[1], hi[2], hi[3]};
      *reinterpret_cast<uint4*>(image.at(line, t.warp() * kDepth, 1)) = {lo[0], lo[1], lo[2], lo[3]};
      if (t.warp() == 0) inverse[line] = scale.inverse;
    }
    t.sync();
    constexpr int kCount = kImageBytes / int(sizeof(uint4));
#pragma unroll
    for (int i = 0; i < kCount; i += kThreads)
      reinterpret_cast<uint4*>(to)[i + t.index()] = reinterpret_cast<const uint4*>(image.memory)[i + t.index()];
  }
};

/// D = alpha sum + beta C + bias. What is added is read in packs, zeros where there is nothing to read; many of them
/// before the first is used, since memory takes its time.
struct Finish {
  float alpha, beta;
  bool adds_bias;
  const float *c, *bias;  // (m, n) if beta is not 0, (n) if there is one
  float* d;
  /// Whether N numbers side by side may be read at once, in rows of n.
  template <int N>
  bool is_aligned(std::int64_t n) const {
    return n % N == 0 && cuda::is_aligned<N>(c, bias, d);
  }
  /// Counts from there on. The compiler shall not see how the offsets came about: of the 32 sums that begin with one it
  /// would keep parts in registers, of which there are none to spare.
  __device__ Finish from(std::int64_t at, std::int64_t column) const {
    asm volatile("" : "+l"(at), "+l"(column));
    return {alpha, beta, adds_bias, c + at, bias + column, d + at};
  }
  template <int N>
  __device__ Pack<float, N> read_c(int i, bool is_there = true) const {
    return is_there && beta != 0 ? Global(c).load<N>(i) : Pack<float, N>{};
  }
  template <int N>
  __device__ Pack<float, N> read_bias(int i, bool is_there = true) const {
    return is_there && adds_bias ? Global(bias).load<N>(i) : Pack<float, N>{};
  }
  template <int N>
  __device__ void write(int i, Pack<float, N> sum, const Pack<float, N>& of_c, const Pack<float, N>& of_bias) const {
#pragma unroll
    for (int e = 0; e < N; ++e) sum[e] = fmaf(beta, of_c[e], alpha * sum[e]) + of_bias[e];
    Global(d).store(i, sum);
  }
};

/// Tiles of 128 x 128 from packed operands, as many blocks of threads as fit, each with one tile after the other: two
/// groups of four warps with 64 rows each, and a third, one thread of which copies ahead.
struct MultiplyTiles {
  static constexpr int kGroups = 2, kGroupThreads = kWarpsOfGroup * kWarp, kBlocksOfMultiprocessor = 1;
  static constexpr int kThreads = (kGroups + 1) * kGroupThreads, kStages = 3;
  std::int64_t m, n;
  int blocks, rows, columns, pieces;   // blocks of k, tiles of the result, and pieces of k
  const unsigned char *a, *b;          // packed
  const float *a_inverse, *b_inverse;  // their inverse scales
  Finish finish;                       // where d is (pieces, m, n) if there are several
  bool in_pairs;                       // 8 bytes of d, c and bias at a time

  static constexpr int kStageBytes = 2 * kImageBytes;
  static std::size_t shared_bytes() {
    constexpr std::size_t scales = 2 * kGroups * kWarpsOfGroup * (kLines + kRowsOfWarp) * sizeof(float);
    return std::size_t(kStages) * (kStageBytes + 2 * sizeof(std::uint64_t)) + scales;
  }
  SINKHORN_HD std::int64_t items() const { return std::int64_t(rows) * columns * pieces; }

#ifdef SINKHORN_HAS_WGMMA
  struct Item {
    int row, column, piece, first, end;  // a tile and its blocks of k
  };
  // Tiles that are worked on at once share rows and columns: up to 8 rows of tiles, column by column.
  __device__ Item item(int i) const {
    constexpr int kTogether = 8;
    const int tiles = rows * columns, piece = i / tiles, tile = i - piece * tiles;
    const int before = tile / (kTogether * columns) * kTogether, within = tile - before * columns;
    const int together = min(rows - before, kTogether), column = within / together;
    return {before + within - column * together, column, piece, int(std::int64_t(blocks) * piece / pieces),
            int(std::int64_t(blocks) * (piece + 1) / pieces)};
  }

  // If both groups multiplied at once, they would end at once, and the tensor cores wait while both add. So they ask
  // for their products in turns, by a barrier for each group: one waits there and the other arrives.
  __device__ static void await_turn_of(int group) {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kGroups * kGroupThreads) : "memory");
  }
  __device__ static void pass_turn_to(int group) {
    asm volatile("bar.arrive %0, %1;" ::"r"(1 + group), "n"(kGroups * kGroupThreads) : "memory");
  }

  __device__ static void products(FragmentC (&c)[kLines / 8], unsigned char* stage, int group) {
    const std::uint32_t a = Image{reinterpret_cast<bf16*>(stage)}.from(group * kRowsOfGroup).address();
    const std::uint32_t b = Image{reinterpret_cast<bf16*>(stage + kImageBytes)}.address();
    bool adds = false;
    for_planes<2>([&](int i, int j) {
#pragma unroll
      for (int k = 0; k < kBlock; k += 16) {
        wgmma_f16(c, Image::descriptor(a + Image::apart(0, k, i)), Image::descriptor(b + Image::apart(0, k, j)), adds);
        adds = true;
      }
    });
  }
  // A warp's own copy of its inverse scales of one block of k: those of the tile's columns, and of the warp's rows.
  static constexpr int kScales = kLines + kRowsOfWarp;
  __device__ void send_scales(float* to, const Item& of, int block, int warp, int lane) const {
    constexpr int kPack = 4;
    const float* const rows = a_inverse + (std::int64_t(of.row) * blocks + block) * kLines + warp * kRowsOfWarp;
    const float* const columns = b_inverse + (std::int64_t(of.column) * blocks + block) * kLines;
    copy_async<16>(to + lane * kPack, columns + lane * kPack, true);
    if (lane < kRowsOfWarp / kPack) copy_async<16>(to + kLines + lane * kPack, rows + lane * kPack, true);
    commit_copies();
  }
  // What the numbers of c are to be multiplied by, of a lane's rows and columns.
  __device__ static void unscale(FragmentC (&by)[kLines / 8], const float* scales, int lane) {
    const float rows[] = {scales[kLines + lane / 4], scales[kLines + lane / 4 + 8]};
#pragma unroll
    for (int i = 0; i < kLines / 8; ++i) {
      const float2 columns = *reinterpret_cast<const float2*>(scales + i * 8 + lane % 4 * 2);
      by[i] = {{rows[0] * columns.x, rows[0] * columns.y, rows[1] * columns.x, rows[1] * columns.y}};
    }
    pin(by);
  }
  // N: 2, or 1 where rows of d do not begin at 8 bytes.
  template <int N>
  __device__ void store(const FragmentC (&sum)[kLines / 8], const Item& item, int row, int lane) const {
    constexpr int kPacks = kLines / 8 * 2 / N;  // of a row in a lane
    const auto place = [](int pack) { return pack * N / 2 * 8 + pack * N % 2; };
    const std::int64_t column = std::int64_t(item.column) * kLines + lane % 4 * 2;
    const int left = int(min(n - column, std::int64_t(kLines)));
    Pack<float, N> of_bias[kPacks], of_c[kPacks];
    const Finish of_row = finish.from(0, column);
#pragma unroll
    for (int i = 0; i < kPacks; ++i) of_bias[i] = of_row.read_bias<N>(place(i), place(i) < left);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t of_d = std::int64_t(item.row) * kLines + row + half * 8;
      const Finish here = finish.from((item.piece * m + of_d) * n + column, column);
      if (of_d >= m) continue;
#pragma unroll
      for (int i = 0; i < kPacks; ++i) of_c[i] = here.read_c<N>(place(i), place(i) < left);
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        Pack<float, N> x;
#pragma unroll
        for (int e = 0; e < N; ++e) x[e] = sum[place(i) / 8].x[half * 2 + place(i) % 8 + e];
        if (place(i) < left) here.write(place(i), x, of_c[i], of_bias[i]);
      }
    }
  }
#endif

  __device__ void operator()(Thread& t) const {
#ifdef SINKHORN_HAS_WGMMA
    unsigned char* const stages = &t.shared<unsigned char>(kStages * kStageBytes)[0];
    MemoryBarrier* const full = &t.shared<MemoryBarrier>(2 * kStages)[0];
    MemoryBarrier* const empty = full + kStages;
    float* const all_scales = &t.shared<float>(2 * kGroups * kWarpsOfGroup * kScales)[0];
    if (t.index() == 0) {
      for (int s = 0; s < kStages; ++s) {
        full[s].init(1);
        empty[s].init(kGroups * kWarpsOfGroup);
      }
      MemoryBarrier::show();
    }
    t.sync();
    const int warp = uniform(t.warp()), lane = t.lane(), count = int(items());
    const int group = warp / kWarpsOfGroup, row = warp * kRowsOfWarp + lane / 4;
    float* const own = all_scales + warp * 2 * kScales;
    int s = 0, round = 0;
    const auto next = [&] {
      if (++s == kStages) s = 0, ++round;
    };
    if (group == kGroups) {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");  // of the 168 that three groups may have each
      if (t.index() != kGroups * kGroupThreads) return;
      for (int i = int(t.block()); i < count; i += int(gridDim.x)) {
        const Item of = item(i);
#pragma unroll 1
        for (int block = of.first; block < of.end; ++block, next()) {
          if (round > 0) {
            full[s].await(round - 1);  // long over; compute-sanitizer wants to see it awaited by who copies again
            empty[s].await(round - 1);
          }
          unsigned char* const stage = stages + s * kStageBytes;
          full[s].arrive_and_expect(kStageBytes);
          full[s].copy(stage, a + (std::int64_t(of.row) * blocks + block) * kImageBytes, kImageBytes);
          full[s].copy(stage + kImageBytes, b + (std::int64_t(of.column) * blocks + block) * kImageBytes, kImageBytes);
        }
      }
    } else {
      asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
      if (group == 1) pass_turn_to(0);
      FragmentC c[kLines / 8];
      int turn = 0;
      const auto scales_of = [&](int turn) { return own + turn % 2 * kScales; };
      Item of = item(int(t.block()));
      send_scales(scales_of(turn), of, of.first, warp, lane);
      for (int i = int(t.block()); i < count; i += int(gridDim.x)) {
        const bool is_last = i + int(gridDim.x) >= count;
        const Item then = is_last ? of : item(i + int(gridDim.x));
        FragmentC sum[kLines / 8] = {};
        for (int block = of.first; block < of.end; ++block, ++turn, next()) {
          const bool ends = block + 1 == of.end;
          full[s].await(round);
          await_turn_of(group);
          begin_products();
          products(c, stages + s * kStageBytes, group);
          commit_products();
          if (group == 0 || !ends || !is_last) pass_turn_to(1 - group);
          send_scales(scales_of(turn + 1), ends ? then : of, ends ? then.first : block + 1, warp, lane);
          await_own_copies<1>();
          __syncwarp();
          FragmentC by[kLines / 8];
          unscale(by, scales_of(turn), lane);
          await_products<0>();
          pin(c);
          if (lane == 0) empty[s].arrive();
#pragma unroll
          for (int i = 0; i < kLines / 8; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[i].x[e] = fmaf(c[i].x[e], by[i].x[e], sum[i].x[e]);
        }
        if (in_pairs) {
          store<2>(sum, of, row, lane);
        } else {
          store<1>(sum, of, row, lane);
        }
        of = then;
      }
      await_own_copies<0>();  // the last are for nobody
    }
#endif
  }
};

/// Adds the pieces of k, in order.
struct AddSums {
  std::int64_t n, count;  // of a row, of the result
  int pieces;
  Finish finish;
  Global<const float> sums;  // (pieces, m, n)
  template <int N>
  __device__ void operator()(std::int64_t i, Width<N>) const {
    const Finish here = finish.from(i, i - quotient(i, n) * n);
    const Pack<float, N> of_c = here.read_c<N>(0), of_bias = here.read_bias<N>(0);
    Pack<float, N> sum = sums.load<N>(i);
    for (int piece = 1; piece < pieces; ++piece) {
      const Pack<float, N> more = sums.load<N>(piece * count + i);
#pragma unroll
      for (int e = 0; e < N; ++e) sum[e] += more[e];
    }
    here.write(0, sum, of_c, of_bias);
  }
};

}  // namespace

// What was compiled without wgmma is an empty kernel, which needs no registers to speak of.
bool PlanesGemm::is_here() {
  static const bool here = [] {
    if (attribute(kName, cudaDevAttrComputeCapabilityMajor) != 9) return false;
    cudaFuncAttributes kernel{};
    check(kName, cudaFuncGetAttributes(&kernel, run_grid<MultiplyTiles>));
    return kernel.numRegs > 64;
  }();
  return here;
}

// Counted in blocks of k of one tile, some 1.2 microseconds: rounds of tiles on all multiprocessors, each with two more
// for its beginning and end, and writing and reading the sums of pieces.
std::int64_t PlanesGemm::pieces_of(const Product& p) {
  const std::int64_t tiles = pieces(p.m, kLines) * pieces(p.n, kLines), blocks = pieces(p.k, kBlock);
  std::int64_t best = 1, least = 0;
  for (std::int64_t cut = 1; cut <= std::min<std::int64_t>(blocks, 32); ++cut) {
    const std::int64_t sums = cut > 1 ? 4 + cut * p.m * p.n / 400'000 : 0;
    const std::int64_t cost = pieces(tiles * cut, kMultiprocessors) * (pieces(blocks, cut) + 2) + sums;
    if (cut == 1 || cost < least) {
      best = cut;
      least = cost;
    }
  }
  return best;
}

// Microseconds on an H100: whole tiles at 180 TFLOP/s, packing (4 bytes read and written a number) at 2.7 TB/s and what
// two or three kernels take before and after that; cuBLAS at 47 TFLOP/s.
bool PlanesGemm::pays(const Product& p) {
  if (p.batch != 1 || p.k == 0) return false;
  const double tiles = double(pieces(p.m, kLines)) * double(pieces(p.n, kLines)) * double(pieces(p.k, kBlock));
  const double packing = 8 * double(p.k) * double(p.m + p.n) / 2.7e6;
  const double here = 10 + packing + 2 * tiles * kLines * kLines * kBlock / 180e6;
  return here < 6 + 2 * double(p.m) * double(p.n) * double(p.k) / 47e6;
}

void PlanesGemm::multiply(std::string_view op, const Product& p, std::int64_t cut) {
  const auto operand = [&](const float* x, std::int64_t lines, bool lie_behind) {
    return Operand{x, lines, p.k, lie_behind, p.k % 4 == 0 && is_aligned<4>(x), nullptr, nullptr};
  };
  PackOperands pack{operand(p.a, p.m, !p.transpose_a), operand(p.b, p.n, p.transpose_b)};
  const std::int64_t count_a = pack.a.pieces(), count = count_a + pack.b.pieces();
  const Tensor images = workspace({count * kImageBytes}, DType::boolean);
  const Tensor inverse = workspace({count * kLines}, DType::f32);
  pack.a.images = reinterpret_cast<unsigned char*>(images.raw());
  pack.b.images = pack.a.images + count_a * kImageBytes;
  pack.a.inverse = inverse.data<float>();
  pack.b.inverse = pack.a.inverse + count_a * kLines;
  launch(op, count, PackOperands::kThreads, pack.shared_bytes(), pack);
  const Finish finish{p.alpha, p.beta, p.bias != nullptr, p.c ? p.c : p.d, p.bias, p.d};
  const bool is_cut = cut > 1;
  const Tensor sums = is_cut ? workspace({cut, p.m, p.n}, DType::f32) : Tensor();
  MultiplyTiles kernel{};
  kernel.m = p.m;
  kernel.n = p.n;
  kernel.blocks = int(pack.a.blocks());
  kernel.rows = int(pieces(p.m, kLines));
  kernel.columns = int(pieces(p.n, kLines));
  kernel.pieces = int(cut);
  kernel.a = pack.a.images;
  kernel.b = pack.b.images;
  kernel.a_inverse = pack.a.inverse;
  kernel.b_inverse = pack.b.inverse;
  kernel.finish = is_cut ? Finish{1, 0, false, nullptr, nullptr, sums.data<float>()} : finish;
  kernel.in_pairs = kernel.finish.is_aligned<2>(p.n);
  static const int multiprocessors = attribute(kName, cudaDevAttrMultiProcessorCount);
  launch(op, std::min<std::int64_t>(kernel.items(), multiprocessors), MultiplyTiles::kThreads,
         MultiplyTiles::shared_bytes(), kernel);
  if (is_cut)
    for_each_pack<4>(op, p.m * p.n, finish.is_aligned<4>(p.n),
                     AddSums{p.n, p.m * p.n, int(cut), finish, sums.data<float>()});
}

}  // namespace sinkhorn::cuda
