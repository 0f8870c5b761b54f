// Tensor cores by the warp-wide instruction mma.m16n8k16 (compute capability 8.0 and up), and how its operands come
// from shared memory. Lane l of a warp has the row l / 4 and the columns 2 (l % 4) and one more of every 8 x 8 piece.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "autograd/dtype.h"

namespace sinkhorn::cuda {

/// A (16, 16), B (16, 8) in bf16 and C (16, 8) in f32, as one lane holds them: two numbers a register in A and B.
/// Pieces of A: rows 0-7 and 8-15 of columns 0-7, then of 8-15. Of B: rows 0-7, then 8-15. Of C: rows 0-7, then 8-15.
struct FragmentA {
  std::uint32_t x[4];
};
struct FragmentB {
  std::uint32_t x[2];
};
struct FragmentC {
  float x[4] = {};
};

/// c += a b
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

/// C (16, 8) twice, side by side, is A (16, 16) of the next product.
__device__ inline FragmentA to_a(const FragmentC& left, const FragmentC& right) {
  return {{pack(left.x[0], left.x[1]), pack(left.x[2], left.x[3]), pack(right.x[0], right.x[1]),
           pack(right.x[2], right.x[3])}};
}

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return std::uint32_t(__cvta_generic_to_shared(pointer));
}

/// A matrix of bf16 in shared memory, row by row. Eight elements between rows shift each by four banks, so that eight
/// rows' 16 bytes lie in 32 different ones.
template <int kColumns>
struct MmaTile {
  static constexpr int stride = kColumns + 8;
  bf16* memory;

  static constexpr int count(int rows) { return rows * stride; }
  __device__ bf16* at(int row, int column) const { return memory + row * stride + column; }
  __device__ MmaTile from(int row) const { return {at(row, 0)}; }

  /// A from rows `row` .. + 15 and columns `column` .. + 15.
  __device__ FragmentA a(int row, int column, int lane) const {
    FragmentA a;
    load(a.x, at(row + lane % 16, column + lane / 16 * 8));
    return a;
  }
  /// B and its right neighbour: the transposed rows `row` .. + 15 and columns `column` .. + 15.
  __device__ void b_of_rows(FragmentB (&b)[2], int row, int column, int lane) const {
    std::uint32_t x[4];
    load(x, at(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
    b[0] = {{x[0], x[1]}};
    b[1] = {{x[2], x[3]}};
  }
  /// B and its right neighbour as they stand: rows `row` .. + 15 and columns `column` .. + 15.
  __device__ void b_of_columns(FragmentB (&b)[2], int row, int column, int lane) const {
    std::uint32_t x[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(at(row + lane % 16, column + lane / 16 * 8)))
                 : "memory");
    b[0] = {{x[0], x[1]}};
    b[1] = {{x[2], x[3]}};
  }

 private:
  __device__ static void load(std::uint32_t (&x)[4], const bf16* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(from))
                 : "memory");
  }
};

/// Copies `kBytes` (4 or 16) to shared memory while the threads go on, or zeroes them if not `wanted`.
template <int kBytes>
__device__ void copy_async(void* shared, const void* global, bool wanted) {
  const int bytes = wanted ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}
/// Ends a group of copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most the last `kGroups` groups of this thread are on their way.
template <int kGroups>
__device__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

/// 2^x to two units in the last place; of -inf exactly 0.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace sinkhorn::cuda
