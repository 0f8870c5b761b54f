// Products of f32 by tensor cores, against f64 and beside cuBLAS. They need a GPU that has the instructions.
#include "cuda/planes_gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "autograd/ops.h"
#include "cuda/launch.h"
#include "tests/autograd/subjects.h"
#include "tests/cuda/agreement.h"

namespace sinkhorn {
namespace {

using cuda::PlanesGemm;
using testing::Guarded;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// D = alpha op(A) op(B) + beta C + bias on the host's side; matrices begin `offset` numbers behind a buffer's
/// beginning.
struct Problem {
  std::int64_t m, n, k;
  bool transpose_a = false, transpose_b = false;
  float alpha = 1, beta = 0;
  bool in_place = false, bias = false;
  std::int64_t offset = 0;

  Tensor a, b, c, of_columns;

  Problem(std::int64_t m, std::int64_t n, std::int64_t k, bool transpose_a = false, bool transpose_b = false)
      : m(m), n(n), k(k), transpose_a(transpose_a), transpose_b(transpose_b) {
    const auto drawn = [](std::uint64_t key, Shape shape) { return uniform(Rng(key), shape, -2, 2); };
    a = drawn(1, transpose_a ? Shape{k, m} : Shape{m, k});
    b = drawn(2, transpose_b ? Shape{n, k} : Shape{k, n});
    c = drawn(3, {m, n});
    of_columns = drawn(4, {n});
  }
  float& a_at(std::int64_t i, std::int64_t l) const {
    return a.span<float>()[std::size_t(transpose_a ? l * m + i : i * k + l)];
  }
  float& b_at(std::int64_t l, std::int64_t j) const {
    return b.span<float>()[std::size_t(transpose_b ? j * k + l : l * n + j)];
  }
  std::string name() const {
    return std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k) + (transpose_a ? ", A'" : "") +
           (transpose_b ? ", B'" : "") + ", beta " + std::to_string(beta) + (bias ? ", bias" : "") + ", offset " +
           std::to_string(offset);
  }

  /// By `pieces` of k; 0: by cuBLAS.
  Tensor result(std::int64_t pieces = 1) const {
    const auto there = [&](const Tensor& x) {
      const Tensor buffer({x.count() + offset}, DType::f32, Device::cuda);
      Tensor place = buffer.slice(offset, offset + x.count());
      place.assign(x.reshape({x.count()}));
      return place;
    };
    const Tensor of_a = there(a), of_b = there(b), of_c = there(c), with = there(of_columns);
    const Tensor d = in_place ? of_c : there(Tensor::full({m, n}, NAN));
    PlanesGemm::Product product{
        m, n, k, transpose_a, transpose_b, of_a.data<float>(), of_b.data<float>(), d.data<float>()};
    product.alpha = alpha;
    product.beta = beta;
    if (beta != 0 && !in_place) product.c = of_c.data<float>();
    if (bias) product.bias = with.data<float>();
    if (pieces > 0) {
      PlanesGemm::multiply("test", product, pieces);
    } else {
      cuda::library_gemm("test", product);
    }
    return d.reshape({m, n}).to(Device::cpu);
  }

  /// In f64: the result, and of every element the sum of the sizes of what is added.
  struct Exact {
    std::vector<double> result, size;
  };
  Exact exact() const {
    Exact exact{std::vector<double>(std::size_t(m * n)), std::vector<double>(std::size_t(m * n))};
    for (std::int64_t i = 0; i < m; ++i) {
      double* const results = &exact.result[std::size_t(i * n)];
      double* const sizes = &exact.size[std::size_t(i * n)];
      for (std::int64_t l = 0; l < k; ++l) {
        const double x = double(alpha) * a_at(i, l);
        for (std::int64_t j = 0; j < n; ++j) {
          const double term = x * b_at(l, j);
          results[j] += term;
          sizes[j] += std::abs(term);
        }
      }
      for (std::int64_t j = 0; j < n; ++j) {
        const double more = beta == 0 ? 0 : double(beta) * c.span<float>()[std::size_t(i * n + j)];
        const double with = bias ? of_columns.span<float>()[std::size_t(j)] : 0;
        results[j] += more + with;
        sizes[j] += std::abs(more) + std::abs(with);
      }
    }
    return exact;
  }
};

/// The largest error of an element over the sum of the sizes of its terms: f32's own unit is 6e-8, and sums in f32 may
/// lose one at each of k terms. Infinite where a number is none.
double worst(const Tensor& got, const Problem::Exact& exact) {
  double worst = 0;
  for (std::size_t i = 0; i < exact.result.size(); ++i) {
    const double error = std::abs(double(got.span<float>()[i]) - exact.result[i]);
    if (!std::isfinite(error)) return INFINITY;
    if (error > 0) worst = std::max(worst, error / exact.size[i]);
  }
  return worst;
}
double root_mean_square(const Tensor& got, const Problem::Exact& exact) {
  return std::sqrt(testing::squared_error(got.to(DType::f64), Tensor::from(exact.result, got.shape())));
}

// Two planes leave 2^-22 of a product, lo lo 2^-22, sums some units.
constexpr double kWorst = 1e-6;

class PlanesGemmOnTheDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    SINKHORN_NEEDS_DEVICE();
    if (!PlanesGemm::is_here()) GTEST_SKIP() << "no wgmma: the device is not of compute capability 9.0, or emulated";
  }
};

TEST_F(PlanesGemmOnTheDevice, EveryWayToLieAndEveryEndAgreesWithF64) {
  constexpr std::int64_t sizes[][3] = {{128, 128, 64}, {1, 1, 1},       {1, 130, 65},
                                       {129, 2, 63},   {200, 257, 130}, {67, 260, 580}};
  const Guarded guarded;
  int round = 0;
  for (const auto& [m, n, k] : sizes)
    for (const bool transpose_a : {false, true})
      for (const bool transpose_b : {false, true}) {
        Problem problem(m, n, k, transpose_a, transpose_b);
        // These change from one problem to the next, so that each meets each size.
        problem.alpha = round % 2 == 0 ? 1 : -0.5f;
        problem.beta = round % 3 == 0 ? 0 : round % 3 == 1 ? 1 : 0.25f;
        problem.in_place = round % 4 >= 2;
        problem.bias = round % 5 >= 2;
        problem.offset = std::int64_t(round % 7 % 4);
        ++round;
        const Problem::Exact exact = problem.exact();
        for (const std::int64_t pieces : {1, 3}) {
          if (pieces > cuda::pieces(k, 64)) continue;
          EXPECT_LE(worst(problem.result(pieces), exact), kWorst) << problem.name() << " in " << pieces << " pieces";
        }
      }
}

TEST_F(PlanesGemmOnTheDevice, ErrorsAreThoseOfSumsInF32) {
  for (const bool positive : {false, true})
    for (const std::int64_t k : {64, 512, 4096}) {
      Problem problem(130, 140, k, false, true);
      if (positive)
        for (const Tensor& x : {problem.a, problem.b})
          for (float& number : x.span<float>()) number = std::abs(number);
      const Problem::Exact exact = problem.exact();
      const double library = root_mean_square(problem.result(0), exact);
      for (const std::int64_t pieces : {std::int64_t(1), std::min<std::int64_t>(k / 64, 4)}) {
        const double here = root_mean_square(problem.result(pieces), exact);
        std::printf("k %lld%s in %lld pieces: error %.2g, cuBLAS %.2g\n", static_cast<long long>(k),
                    positive ? ", positive" : "", static_cast<long long>(pieces), here, library);
        // What tensor cores cut off adds up where all has one sign, but within 64 of k alone.
        EXPECT_LE(here, std::max(1.5 * library, positive ? 3.5e-7 : 1.5e-7)) << problem.name();
      }
    }
}

TEST_F(PlanesGemmOnTheDevice, LinesOfAnySizeKeepTheirPrecision) {
  Problem problem(140, 150, 200, false, true);
  for (std::int64_t i = 0; i < problem.m; ++i)
    for (std::int64_t l = 0; l < problem.k; ++l) problem.a_at(i, l) *= std::exp2(float(i % 121 - 60));
  for (std::int64_t j = 0; j < problem.n; ++j)
    for (std::int64_t l = 0; l < problem.k; ++l) problem.b_at(l, j) *= std::exp2(float(j * 7 % 121 - 60));
  EXPECT_LE(worst(problem.result(), problem.exact()), kWorst);

  // Denormal and zero, and huge, against what makes them ordinary.
  Problem far(4, 3, 130);
  constexpr float rows[] = {0x1p-130f, 0, 0x1p118f, 1}, columns[] = {0x1p118f, 0x1p-120f, 1};
  for (std::int64_t l = 0; l < far.k; ++l) {
    for (std::int64_t i = 0; i < far.m; ++i) far.a_at(i, l) *= rows[i];
    for (std::int64_t j = 0; j < far.n; ++j) far.b_at(l, j) *= columns[j];
  }
  far.beta = 1;
  const Tensor got = far.result(), library = far.result(0);
  const Problem::Exact exact = far.exact();
  const auto at = [](const Tensor& x, std::int64_t i, std::int64_t j) {
    return x.span<float>()[std::size_t(i * 3 + j)];
  };
  for (std::int64_t i = 0; i < far.m; ++i)
    for (std::int64_t j = 0; j < far.n; ++j) {
      if (i == 2 && j == 0) {  // 2^236
        EXPECT_FALSE(std::isfinite(at(got, i, j)));
        EXPECT_FALSE(std::isfinite(at(library, i, j)));
        continue;
      }
      const std::size_t e = std::size_t(i * 3 + j);
      EXPECT_NEAR(at(got, i, j), exact.result[e], kWorst * exact.size[e]) << i << ", " << j;
    }
  for (std::int64_t j = 0; j < far.n; ++j) EXPECT_EQ(at(got, 1, j), far.c.span<float>()[std::size_t(3 + j)]);
}

// What stands in a line with a huge number is still right to 2^-38 of it.
TEST_F(PlanesGemmOnTheDevice, AHugeNumberConcernsItsBlockAlone) {
  Problem problem(130, 130, 256, false, true);
  const Tensor before = problem.result();
  problem.a_at(77, 70) = 0x1p70f;
  const Tensor after = problem.result();
  for (std::int64_t i = 0; i < problem.m; ++i)
    EXPECT_EQ(equal_bits(before.slice(i, i + 1), after.slice(i, i + 1)), i != 77) << "row " << i;
  EXPECT_LE(worst(after, problem.exact()), kWorst);

  // Where the huge number meets zeros, the block's others are there to 2^-38 of it, and all else as ever.
  for (std::int64_t j = 0; j < problem.n; ++j) problem.b_at(70, j) = 0;
  problem.a_at(77, 70) = 0x1p20f;
  const Problem::Exact exact = problem.exact();
  const Tensor got = problem.result();
  for (std::int64_t j = 0; j < problem.n; ++j) {
    const std::size_t e = std::size_t(77 * problem.n + j);
    EXPECT_NEAR(got.span<float>()[e], exact.result[e], kWorst * exact.size[e] + 64 * 2 * 0x1p-18) << j;
  }
}

TEST_F(PlanesGemmOnTheDevice, WhatIsNoNumberIsNotHidden) {
  for (const bool transpose : {false, true}) {
    Problem problem(130, 131, 200, transpose, transpose);
    const Tensor before = problem.result();
    for (const float bad : {kInfinity, -kInfinity, NAN}) {
      Problem with(130, 131, 200, transpose, transpose);
      with.a_at(5, 150) = bad;
      with.b_at(3, 129) = bad;
      const Tensor after = with.result(), in_pieces = with.result(2);
      for (std::int64_t i = 0; i < with.m; ++i)
        for (std::int64_t j = 0; j < with.n; ++j) {
          const std::size_t e = std::size_t(i * with.n + j);
          if (i == 5 || j == 129) {
            EXPECT_FALSE(std::isfinite(after.span<float>()[e])) << i << ", " << j << " of " << bad;
            EXPECT_FALSE(std::isfinite(in_pieces.span<float>()[e])) << i << ", " << j << " of " << bad;
          } else {
            EXPECT_EQ(after.span<float>()[e], before.span<float>()[e]) << i << ", " << j << " of " << bad;
          }
        }
    }
  }
}

TEST_F(PlanesGemmOnTheDevice, ARowIsTheSameAloneAndInEveryRun) {
  const Problem problem(300, 384, 448, false, false);
  for (const std::int64_t pieces : {1, 5}) {
    const Tensor all = problem.result(pieces);
    EXPECT_TRUE(equal_bits(all, problem.result(pieces)));
    for (const std::int64_t i : {0, 131, 299}) {
      Problem alone = problem;
      alone.m = 1;
      alone.a = problem.a.slice(i, i + 1);
      alone.c = problem.c.slice(i, i + 1);
      EXPECT_TRUE(equal_bits(all.slice(i, i + 1), alone.result(pieces))) << "row " << i;
    }
    // Whatever the rows behind it hold.
    Problem other = problem;
    other.a = problem.a.clone();
    for (std::int64_t l = 0; l < other.k; ++l)
      for (std::int64_t i = 150; i < other.m; ++i) other.a_at(i, l) = i % 2 == 0 ? 1e30f : NAN;
    EXPECT_TRUE(equal_bits(all.slice(0, 150), other.result(pieces).slice(0, 150)));
  }
}

// More tiles than multiprocessors, so that blocks of threads go from one to the next, and through gemm itself.
TEST_F(PlanesGemmOnTheDevice, GemmTakesItWhereItPays) {
  Problem large(2200, 1300, 520, false, true);
  large.bias = true;
  PlanesGemm::Product product{large.m, large.n, large.k, false, true, nullptr, nullptr, nullptr};
  EXPECT_TRUE(PlanesGemm::pays(product));
  EXPECT_EQ(PlanesGemm::pieces_of(product), 1);
  const auto by_gemm = [&] {
    const Tensor a = large.a.to(Device::cuda), b = large.b.to(Device::cuda), with = large.of_columns.to(Device::cuda);
    const Tensor d({large.m, large.n}, DType::f32, Device::cuda);
    product.a = a.data<float>();
    product.b = b.data<float>();
    product.bias = with.data<float>();
    product.d = d.data<float>();
    cuda::gemm("test", product);
    return d.to(Device::cpu);
  };
  const Tensor here = large.result(), library = large.result(0);
  EXPECT_TRUE(equal_bits(by_gemm(), here));
  EXPECT_FALSE(equal_bits(here, library));
  EXPECT_LE(testing::squared_error(here, library), 1e-12);
  {
    const testing::Tf32 allowed(true);
    EXPECT_FALSE(equal_bits(by_gemm(), here));
  }

  product.batch = 2;
  EXPECT_FALSE(PlanesGemm::pays(product));
  EXPECT_FALSE(PlanesGemm::pays({256, 256, 256, false, false, nullptr, nullptr, nullptr}));
  // Gradients of weights have few tiles and long sums.
  EXPECT_GT(PlanesGemm::pieces_of({512, 512, 16384, true, false, nullptr, nullptr, nullptr}), 4);
}

}  // namespace
}  // namespace sinkhorn
