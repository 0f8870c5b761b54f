// Products where TF32 is allowed, against f64.
#include <gtest/gtest.h>

#include "autograd/ops.h"
#include "cuda/blas.h"
#include "tests/cuda/agreement.h"

namespace sinkhorn {
namespace {

struct Extents {
  std::int64_t m, n, k;
};

// D = 0.5 op(A) op(B) + C + bias. Long sums of many rows have their second operand turned before.
TEST(OnTheDevice, Tf32ProductsAgreeHoweverTheirOperandsLie) {
  SINKHORN_NEEDS_DEVICE();
  if (testing::is_emulated()) GTEST_SKIP() << "f32 on the emulated grid";
  const testing::Tf32 allowed(true);
  for (const Extents& e : {Extents{512, 40, 96}, {400, 24, 100}, {513, 7, 33}, {64, 48, 96}, {512, 96, 40}})
    for (const bool transpose_a : {false, true})
      for (const bool transpose_b : {false, true}) {
        const auto draw = [](std::uint64_t key, const Shape& shape) { return uniform(Rng(key), shape, -1, 1); };
        const Tensor a = draw(1, transpose_a ? Shape{e.k, e.m} : Shape{e.m, e.k});
        const Tensor b = draw(2, transpose_b ? Shape{e.n, e.k} : Shape{e.k, e.n});
        const Tensor c = draw(3, {e.m, e.n}), bias = draw(4, {e.n});
        const auto turned = [](const Tensor& x, bool is) {
          const Tensor exact = x.to(DType::f64);
          return is ? permute(exact, {1, 0}).value : exact;
        };
        const Tensor exact =
            add(add(scale(matmul(turned(a, transpose_a), turned(b, transpose_b)), 0.5), c.to(DType::f64)),
                bias.to(DType::f64))
                .value;
        const testing::Guarded guarded;
        const Tensor of_a = a.to(Device::cuda), of_b = b.to(Device::cuda), of_bias = bias.to(Device::cuda);
        const auto product = [&] {
          const Tensor d = c.to(Device::cuda);
          cuda::Gemm<float, float> gemm{
              e.m,  e.n, e.k, transpose_a, transpose_b, of_a.data<float>(), of_b.data<float>(), d.data<float>(),
              0.5f, 1};
          gemm.bias = of_bias.data<float>();
          cuda::gemm("test", gemm);
          return d.to(Device::cpu);
        };
        const Tensor got = product();
        EXPECT_LE(testing::squared_error(got, exact), 1e-6)
            << e.m << " x " << e.n << " x " << e.k << ", transposed: " << transpose_a << transpose_b;
        EXPECT_TRUE(equal_bits(got, product())) << "two runs differ";
      }
}

}  // namespace
}  // namespace sinkhorn
