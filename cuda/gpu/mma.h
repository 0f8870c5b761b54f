// Tensor cores: products of the 64 rows that a group of four warps holds, 16 to a warp, and how operands lie in shared
// memory. Cards of compute capability 9.0 have an instruction for the whole group, wgmma, which reads shared memory by
// itself; the others (8.0 and up) do the same warp by warp, with ldmatrix and mma.m16n8k16. Either way a lane holds the
// same numbers: lane l of a warp has the row l / 4 and the columns 2 (l % 4) and one more of every 8 x 8 piece.
//
// Tensor cores multiply bf16. An f32 number is taken for a sum of planes of bf16: what rounding leaves, what it took,
// rounded in turn, and so on; two hold 16 bits, three all 24. A product of two such sums is the products of their
// planes, of which those too small to matter are left out: plane i of one side meets plane j of the other where i + j <
// planes. So 1 plane is one product, of bf16; 2 are three, finer than TF32; 3 are six, as good as f32. (Henry, Tang and
// Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations".)
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "autograd/dtype.h"

namespace sinkhorn::cuda {

inline constexpr int kRowsOfWarp = 16, kWarpsOfGroup = 4, kRowsOfGroup = kWarpsOfGroup * kRowsOfWarp;

/// A (16, 16), B (16, 8) in bf16 and C (16, 8) in f32, as one lane holds them: two numbers a register in A and B.
/// Pieces of A: rows 0-7 and 8-15 of columns 0-7, then of 8-15. Of B: rows 0-7, then 8-15. Of C: rows 0-7, then 8-15.
struct FragmentA {
  std::uint32_t x[4];
};
struct FragmentB {
  std::uint32_t x[2];
};
struct FragmentC {
  float x[4];
};

/// c += a b, by one warp
__device__ inline void mma(FragmentC& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c.x[0]), "+f"(c.x[1]), "+f"(c.x[2]), "+f"(c.x[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
}

/// Two f32, rounded to bf16, in one register; the first in its lower half.
__device__ inline std::uint32_t pack(float low, float high) {
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

__device__ inline float lower_half(std::uint32_t word) { return __uint_as_float(word << 16); }
__device__ inline float upper_half(std::uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

/// The planes of two numbers, each plane packed.
template <int kPlanes>
__device__ void split(std::uint32_t (&planes)[kPlanes], float low, float high) {
#pragma unroll
  for (int i = 0; i < kPlanes; ++i) {
    planes[i] = pack(low, high);
    low -= lower_half(planes[i]);
    high -= upper_half(planes[i]);
  }
}
/// C (16, 8 kPieces) is A of the next product, 16 columns a fragment.
template <int kPlanes, int kPieces>
__device__ void split(FragmentA (&a)[kPlanes][kPieces / 2], const FragmentC (&c)[kPieces]) {
#pragma unroll
  for (int k = 0; k < kPieces / 2; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const x = &c[2 * k + i / 2].x[i % 2 * 2];
      std::uint32_t planes[kPlanes];
      split(planes, x[0], x[1]);
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) a[plane][k].x[i] = planes[plane];
    }
}

/// Some pieces that lie side by side.
template <int kPart, int kPieces>
__device__ FragmentC (&part_of(FragmentC (&c)[kPieces], int first))[kPart] {
  return reinterpret_cast<FragmentC(&)[kPart]>(c[first]);
}

/// A number that is the same in all lanes of a warp, so that the compiler knows it, too.
__device__ inline int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return std::uint32_t(__cvta_generic_to_shared(pointer));
}

/// A matrix in planes of bf16 in shared memory, 32, 64 or 128 columns. Eight rows lie together, plane by plane, and of
/// a plane 64 columns before the other 64. The 16 bytes of a row are shuffled, each row of eight in its own way, so
/// that eight rows' same columns lie in 32 different banks; it is the order that wgmma knows as a swizzle of 64 or 128
/// bytes. The memory begins at a multiple of 1,024 bytes.
template <int kColumns, int kPlanes = 1>
struct MmaTile {
  static_assert(kColumns == 32 || kColumns == 64 || kColumns == 128);
  static constexpr int kWidth = kColumns, kDepth = kPlanes;
  static constexpr int kPanel = kColumns < 64 ? kColumns : 64;  // columns that lie together
  bf16* memory;

  static constexpr int count(int rows) { return rows * kColumns * kPlanes; }
  /// Columns up to the next multiple of 8 follow in memory.
  __device__ bf16* at(int row, int column, int plane = 0) const {
    const int shuffled = kPanel == 64 ? row % 8 : row / 2 % 4;
    if constexpr (count(1) == kPanel) return memory + row * kPanel + (column ^ shuffled * 8);
    const int panel = plane * (kColumns / kPanel) + column / kPanel;
    return memory + row / 8 * count(8) + panel * 8 * kPanel + row % 8 * kPanel + (column % kPanel ^ shuffled * 8);
  }
  /// The sum of the planes.
  __device__ float number(int row, int column) const {
    float sum = float(*at(row, column, kPlanes - 1));
#pragma unroll
    for (int plane = kPlanes - 2; plane >= 0; --plane) sum += float(*at(row, column, plane));
    return sum;
  }
  __device__ MmaTile from(int row) const { return {memory + count(row)}; }  // row: a multiple of 8

  /// A from rows `row` .. + 15 and columns `column` .. + 15.
  __device__ FragmentA a(int row, int column, int plane, int lane) const {
    FragmentA a;
    load(a.x, at(row + lane % 16, column + lane / 16 * 8, plane));
    return a;
  }
  /// The other way round: rows `row` .. + 15 and columns `column` .. + 15 from A.
  __device__ void put(int row, int column, int lane, const FragmentA& a) const {
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     shared_address(at(row + lane % 16, column + lane / 16 * 8))),
                 "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3])
                 : "memory");
#else
#pragma unroll
    for (int i = 0; i < 4; ++i)
      *reinterpret_cast<std::uint32_t*>(at(row + i % 2 * 8 + lane / 4, column + i / 2 * 8 + lane % 4 * 2)) = a.x[i];
#endif
  }
  /// B and its right neighbour: the transposed rows `row` .. + 15 and columns `column` .. + 15.
  __device__ void b_of_rows(FragmentB (&b)[2], int row, int column, int plane, int lane) const {
    std::uint32_t x[4];
    load(x, at(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8, plane));
    b[0] = {{x[0], x[1]}};
    b[1] = {{x[2], x[3]}};
  }
  /// B and its right neighbour as they stand: rows `row` .. + 15 and columns `column` .. + 15.
  __device__ void b_of_columns(FragmentB (&b)[2], int row, int column, int plane, int lane) const {
    std::uint32_t x[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(at(row + lane % 16, column + lane / 16 * 8, plane)))
                 : "memory");
    b[0] = {{x[0], x[1]}};
    b[1] = {{x[2], x[3]}};
  }
  /// What wgmma wants to hear of 64 columns: address, distance of every eighth row, and kind of swizzle. The address of
  /// those of the first row, and by how much it grows to a row, a multiple of 8, a column, a multiple of 16, and a
  /// plane.
  __device__ std::uint32_t address() const { return (shared_address(memory) & 0x3ffff) / 16 | 1 << 16; }
  static constexpr std::uint32_t apart(int row, int column, int plane) {
    const int panel = plane * (kColumns / kPanel) + column / kPanel;
    return std::uint32_t(count(row) + panel * 8 * kPanel + column % kPanel) * sizeof(bf16) / 16;
  }
  __device__ static std::uint64_t descriptor(std::uint32_t address) {
    constexpr std::uint64_t eight_rows = count(8) * sizeof(bf16), swizzle = kPanel == 64 ? 1 : 2;
    return swizzle << 62 | eight_rows / 16 << 32 | address;
  }

 private:
  __device__ static void load(std::uint32_t (&x)[4], const bf16* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(from))
                 : "memory");
  }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SINKHORN_HAS_WGMMA
#endif

#ifdef SINKHORN_HAS_WGMMA
// c (64, n) = a (64, 16) b (16, n), n = 32 or 64, added to what c was if `adds`; the numbers in c are there after
// await_products. A and B are tiles' rows, B transposed.
__device__ inline void wgmma(FragmentC (&c)[8], std::uint64_t a, std::uint64_t b, int adds) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, 0, 0; }"
      : "+f"(c[0].x[0]), "+f"(c[0].x[1]), "+f"(c[0].x[2]), "+f"(c[0].x[3]), "+f"(c[1].x[0]), "+f"(c[1].x[1]),
        "+f"(c[1].x[2]), "+f"(c[1].x[3]), "+f"(c[2].x[0]), "+f"(c[2].x[1]), "+f"(c[2].x[2]), "+f"(c[2].x[3]),
        "+f"(c[3].x[0]), "+f"(c[3].x[1]), "+f"(c[3].x[2]), "+f"(c[3].x[3]), "+f"(c[4].x[0]), "+f"(c[4].x[1]),
        "+f"(c[4].x[2]), "+f"(c[4].x[3]), "+f"(c[5].x[0]), "+f"(c[5].x[1]), "+f"(c[5].x[2]), "+f"(c[5].x[3]),
        "+f"(c[6].x[0]), "+f"(c[6].x[1]), "+f"(c[6].x[2]), "+f"(c[6].x[3]), "+f"(c[7].x[0]), "+f"(c[7].x[1]),
        "+f"(c[7].x[2]), "+f"(c[7].x[3])
      : "l"(a), "l"(b), "r"(adds)
      : "memory");
}
__device__ inline void wgmma(FragmentC (&c)[4], std::uint64_t a, std::uint64_t b, int adds) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15}, "
      "%16, %17, p, 1, 1, 0, 0; }"
      : "+f"(c[0].x[0]), "+f"(c[0].x[1]), "+f"(c[0].x[2]), "+f"(c[0].x[3]), "+f"(c[1].x[0]), "+f"(c[1].x[1]),
        "+f"(c[1].x[2]), "+f"(c[1].x[3]), "+f"(c[2].x[0]), "+f"(c[2].x[1]), "+f"(c[2].x[2]), "+f"(c[2].x[3]),
        "+f"(c[3].x[0]), "+f"(c[3].x[1]), "+f"(c[3].x[2]), "+f"(c[3].x[3])
      : "l"(a), "l"(b), "r"(adds)
      : "memory");
}
// The same, A in registers, B a tile's rows as they stand.
__device__ inline void wgmma(FragmentC (&c)[8], const FragmentA& a, std::uint64_t b, int adds) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1; }"
      : "+f"(c[0].x[0]), "+f"(c[0].x[1]), "+f"(c[0].x[2]), "+f"(c[0].x[3]), "+f"(c[1].x[0]), "+f"(c[1].x[1]),
        "+f"(c[1].x[2]), "+f"(c[1].x[3]), "+f"(c[2].x[0]), "+f"(c[2].x[1]), "+f"(c[2].x[2]), "+f"(c[2].x[3]),
        "+f"(c[3].x[0]), "+f"(c[3].x[1]), "+f"(c[3].x[2]), "+f"(c[3].x[3]), "+f"(c[4].x[0]), "+f"(c[4].x[1]),
        "+f"(c[4].x[2]), "+f"(c[4].x[3]), "+f"(c[5].x[0]), "+f"(c[5].x[1]), "+f"(c[5].x[2]), "+f"(c[5].x[3]),
        "+f"(c[6].x[0]), "+f"(c[6].x[1]), "+f"(c[6].x[2]), "+f"(c[6].x[3]), "+f"(c[7].x[0]), "+f"(c[7].x[1]),
        "+f"(c[7].x[2]), "+f"(c[7].x[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b), "r"(adds)
      : "memory");
}
__device__ inline void wgmma(FragmentC (&c)[4], const FragmentA& a, std::uint64_t b, int adds) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, p, 1, 1, 1; }"
      : "+f"(c[0].x[0]), "+f"(c[0].x[1]), "+f"(c[0].x[2]), "+f"(c[0].x[3]), "+f"(c[1].x[0]), "+f"(c[1].x[1]),
        "+f"(c[1].x[2]), "+f"(c[1].x[3]), "+f"(c[2].x[0]), "+f"(c[2].x[1]), "+f"(c[2].x[2]), "+f"(c[2].x[3]),
        "+f"(c[3].x[0]), "+f"(c[3].x[1]), "+f"(c[3].x[2]), "+f"(c[3].x[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b), "r"(adds)
      : "memory");
}
// The same of f16, c (64, 128), both operands tiles' rows.
__device__ inline void wgmma_f16(FragmentC (&c)[16], std::uint64_t a, std::uint64_t b, int adds) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
      "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
      "%62, %63}, "
      "%64, %65, p, 1, 1, 0, 0; }"
      : "+f"(c[0].x[0]), "+f"(c[0].x[1]), "+f"(c[0].x[2]), "+f"(c[0].x[3]), "+f"(c[1].x[0]), "+f"(c[1].x[1]),
        "+f"(c[1].x[2]), "+f"(c[1].x[3]), "+f"(c[2].x[0]), "+f"(c[2].x[1]), "+f"(c[2].x[2]), "+f"(c[2].x[3]),
        "+f"(c[3].x[0]), "+f"(c[3].x[1]), "+f"(c[3].x[2]), "+f"(c[3].x[3]), "+f"(c[4].x[0]), "+f"(c[4].x[1]),
        "+f"(c[4].x[2]), "+f"(c[4].x[3]), "+f"(c[5].x[0]), "+f"(c[5].x[1]), "+f"(c[5].x[2]), "+f"(c[5].x[3]),
        "+f"(c[6].x[0]), "+f"(c[6].x[1]), "+f"(c[6].x[2]), "+f"(c[6].x[3]), "+f"(c[7].x[0]), "+f"(c[7].x[1]),
        "+f"(c[7].x[2]), "+f"(c[7].x[3]), "+f"(c[8].x[0]), "+f"(c[8].x[1]), "+f"(c[8].x[2]), "+f"(c[8].x[3]),
        "+f"(c[9].x[0]), "+f"(c[9].x[1]), "+f"(c[9].x[2]), "+f"(c[9].x[3]), "+f"(c[10].x[0]), "+f"(c[10].x[1]),
        "+f"(c[10].x[2]), "+f"(c[10].x[3]), "+f"(c[11].x[0]), "+f"(c[11].x[1]), "+f"(c[11].x[2]), "+f"(c[11].x[3]),
        "+f"(c[12].x[0]), "+f"(c[12].x[1]), "+f"(c[12].x[2]), "+f"(c[12].x[3]), "+f"(c[13].x[0]), "+f"(c[13].x[1]),
        "+f"(c[13].x[2]), "+f"(c[13].x[3]), "+f"(c[14].x[0]), "+f"(c[14].x[1]), "+f"(c[14].x[2]), "+f"(c[14].x[3]),
        "+f"(c[15].x[0]), "+f"(c[15].x[1]), "+f"(c[15].x[2]), "+f"(c[15].x[3])
      : "l"(a), "l"(b), "r"(adds)
      : "memory");
}
#endif

/// The compiler shall think that c changes here: what it does with c stays on its side.
template <int kPieces>
__device__ void pin(FragmentC (&c)[kPieces]) {
#pragma unroll
  for (FragmentC& piece : c)
#pragma unroll
    for (float& x : piece.x) asm volatile("" : "+f"(x)::"memory");
}

/// Before the first product whose operands or results in registers were touched since the last.
__device__ inline void begin_products() {
#ifdef SINKHORN_HAS_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
/// Ends a group of products.
__device__ inline void commit_products() {
#ifdef SINKHORN_HAS_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/// Waits until at most the last `kGroups` groups are at work.
template <int kGroups>
__device__ void await_products() {
#ifdef SINKHORN_HAS_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
#endif
}

/// Calls f(i, j) for the planes that meet, those of the smallest products first.
template <int kPlanes, class F>
__device__ void for_planes(F f) {
#pragma unroll
  for (int sum = kPlanes - 1; sum >= 0; --sum)
#pragma unroll
    for (int i = 0; i <= sum; ++i) f(i, sum - i);
}

/// c (64, 8 kPieces) = a (64, d) times the transposed rows `row` .. of a tile. All four warps of a group call it
/// together, between begin_products and await_products; the rows of A are the first 64 of a tile.
template <int d, int kPlanes, int kPieces>
__device__ void multiply_rows(FragmentC (&c)[kPieces], const MmaTile<d, kPlanes>& a, const MmaTile<d, kPlanes>& tile,
                              int row, int lane) {
#ifdef SINKHORN_HAS_WGMMA
  bool adds = false;
  for_planes<kPlanes>([&](int i, int j) {
#pragma unroll
    for (int k = 0; k < d; k += 16) {
      wgmma(c, a.descriptor(a.address() + a.apart(0, k, i)), tile.descriptor(tile.address() + tile.apart(row, k, j)),
            adds);
      adds = true;
    }
  });
#else
  const int first = int(threadIdx.x) / 32 % kWarpsOfGroup * kRowsOfWarp;
#pragma unroll
  for (FragmentC& piece : c) piece = {};
  for_planes<kPlanes>([&](int i, int j) {
#pragma unroll
    for (int k = 0; k < d; k += 16) {
      const FragmentA a_k = a.a(first, k, i, lane);
#pragma unroll
      for (int n = 0; n < kPieces / 2; ++n) {
        FragmentB b[2];
        tile.b_of_rows(b, row + n * 16, k, j, lane);
        mma(c[2 * n], a_k, b[0]);
        mma(c[2 * n + 1], a_k, b[1]);
      }
    }
  });
#endif
}

// c (64, 8 kPieces) = or += p (64, 16 kSteps) times the rows `row` .. of as many columns of a tile, from `column`.
template <int d, int kPlanes, int kSteps, int kPieces>
__device__ void multiply_columns(FragmentC (&c)[kPieces], bool adds, const FragmentA (&p)[kPlanes][kSteps],
                                 const MmaTile<d, kPlanes>& tile, int row, int column, int lane) {
#ifndef SINKHORN_HAS_WGMMA
#pragma unroll
  for (FragmentC& piece : c)
    if (!adds) piece = {};
#endif
  for_planes<kPlanes>([&](int i, int j) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#ifdef SINKHORN_HAS_WGMMA
      wgmma(c, p[i][k], tile.descriptor(tile.address() + tile.apart(row + k * 16, column, j)), adds);
      adds = true;
#else
#pragma unroll
      for (int n = 0; n < kPieces / 2; ++n) {
        FragmentB b[2];
        tile.b_of_columns(b, row + k * 16, column + n * 16, j, lane);
        mma(c[2 * n], p[i][k], b[0]);
        mma(c[2 * n + 1], p[i][k], b[1]);
      }
#endif
    }
  });
}
/// c (64, d) += p (64, 16 kSteps) times the rows `row` .. of a tile. Tensor cores cut off what does not fit into a sum,
/// always towards zero, once in every product: too much for f32, whose sums of a few products are added to c by
/// ordinary arithmetic, so that this does not end before they are there.
template <int d, int kPlanes, int kSteps>
__device__ void add_columns(FragmentC (&c)[d / 8], const FragmentA (&p)[kPlanes][kSteps],
                            const MmaTile<d, kPlanes>& tile, int row, int lane) {
  constexpr int panel = MmaTile<d, kPlanes>::kPanel;
#pragma unroll
  for (int column = 0; column < d; column += panel) {
    FragmentC(&sum)[panel / 8] = part_of<panel / 8>(c, column / 8);
    if constexpr (kPlanes < 3) {
      multiply_columns(sum, true, p, tile, row, column, lane);
    } else {
      FragmentC apart[panel / 8];
      begin_products();
      multiply_columns(apart, false, p, tile, row, column, lane);
      commit_products();
      await_products<0>();
      pin(apart);
#pragma unroll
      for (int n = 0; n < panel / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[n].x[e] += apart[n].x[e];
    }
  }
}

/// Copies `kBytes` (8 or 16) to shared memory while the threads go on, or zeroes them if not `wanted`.
template <int kBytes>
__device__ void copy_async(void* shared, const void* global, bool wanted) {
  const int bytes = wanted ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}
/// Ends a group of copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Lets wgmma see what this thread has written to shared memory.
__device__ inline void show_to_products() {
#ifdef SINKHORN_HAS_WGMMA
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
/// Waits until at most the last `kGroups` groups of this thread are on their way.
template <int kGroups>
__device__ void await_own_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}
/// The same, and lets wgmma see the others.
template <int kGroups>
__device__ void await_copies() {
  await_own_copies<kGroups>();
  show_to_products();
}

/// 2^x to two units in the last place; of -inf exactly 0.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace sinkhorn::cuda
