// Tensors on the device: moves, the pool, what is refused, and training steps that ask the driver for nothing.
#include <gtest/gtest.h>

#include "autograd/ops.h"
#include "autograd/optimizer.h"
#include "autograd/pool.h"
#include "tests/autograd/expect.h"
#include "tests/cuda/agreement.h"

namespace sinkhorn {
namespace {

using testing::expect_error;

TEST(DeviceTensor, GoesThereAndBack) {
  SINKHORN_NEEDS_DEVICE();
  for (std::int64_t count : {0, 1, 1000, 5000000}) {  // the last in several pieces
    const Tensor x = count > 1000 ? Tensor::full({count}, 3, DType::i32) : uniform(Rng(1), {count}, -1, 1);
    if (count > 1000)
      for (std::int64_t i = 0; i < count; i += 997) x.data<std::int32_t>()[i] = std::int32_t(i);
    const Tensor there = x.to(Device::cuda);
    EXPECT_EQ(there.device(), Device::cuda);
    EXPECT_TRUE(equal_bits(there.to(Device::cpu), x));
    EXPECT_TRUE(equal_bits(there.clone(), x));
  }
  const Tensor x = Tensor::from<double>({1, 2, 3, 4}, {4}).to(Device::cuda);
  EXPECT_EQ(x.slice(1, 3).to_vector(), std::vector<double>({2, 3}));
  EXPECT_EQ(x.slice(2, 3).item(), 3);
  EXPECT_EQ(Tensor::full({3}, -2, DType::bf16, Device::cuda).to_vector(), std::vector<double>(3, -2));
  EXPECT_EQ(Tensor::zeros({2}, DType::boolean, Device::cuda).to_vector(), std::vector<double>(2, 0));
}

TEST(DeviceTensor, RefusesMixedDevicesAndTheHost) {
  SINKHORN_NEEDS_DEVICE();
  const Tensor here = Tensor::zeros({2, 3}), there = here.to(Device::cuda);
  expect_error([&] { add(here, there); }, {"add", "input 1", "cuda", "cpu"});
  expect_error([&] { there.span<float>(); }, {"host", "cuda"});
}

// One step through every kind of op.
void train_step(const Tensor& weights, const Tensor& m, const Tensor& v) {
  const auto there = [](Shape shape) { return uniform(Rng(1), shape, -1, 1).to(Device::cuda); };
  const Tape tape = Tape::record();
  const Var x = tape.leaf(there({4, 30, 64})), w = tape.leaf(weights);
  const Var gain = tape.leaf(there({64})), bias = tape.leaf(there({64}));
  Var y = layer_norm(linear(x, w, bias), gain, bias);
  y = dropout(gelu(y), 0.1, Rng(3)) * gain + cumulative_mean(x);
  y = rotate(concat({gated_gelu(y), slice(y, 2, 0, 32)}, 2), 1, 3);
  const Gradients gradients = tape.backward(mean(square(softmax(permute(y, {0, 2, 1})))));
  EXPECT_GT(global_norm({gradients.of(w)}), 0);
  adamw_step({}, 1, 1e-3, weights, gradients.of(w), m, v, {});
}

TEST(DevicePool, AsksForNothingFromTheSecondStepOn) {
  SINKHORN_NEEDS_DEVICE();
  const Tensor w = uniform(Rng(2), {64, 64}, -1, 1).to(Device::cuda);
  const Tensor m = Tensor::zeros({64, 64}, DType::f32, Device::cuda), v = m.clone();
  train_step(w, m, v);
  const PoolStats first = Pool::of(Device::cuda).stats();
  for (int step = 0; step < 5; ++step) train_step(w, m, v);
  EXPECT_EQ(Pool::of(Device::cuda).stats().system_allocations, first.system_allocations);
  EXPECT_EQ(Pool::of(Device::cuda).stats().in_use, first.in_use);
}

TEST(DevicePool, SaysWhatWasAskedWhenMemoryEnds) {
  SINKHORN_NEEDS_DEVICE();
  expect_error<OutOfMemory>([] { Tensor(Shape{1ll << 45}, DType::f32, Device::cuda); },
                            {"out of memory on device cuda", "in use", "lower batch_size"});
  EXPECT_EQ(Tensor::full({3}, 2, DType::f32, Device::cuda).to_vector()[2], 2);  // and goes on
}

TEST(DevicePool, SeesDamagedGuards) {
  SINKHORN_NEEDS_DEVICE();
  Pool& pool = Pool::of(Device::cuda);
  const std::size_t before = pool.stats().damaged;
  pool.guard(true);
  {
    const Tensor x(Shape{8}, DType::f32, Device::cuda);
    EXPECT_TRUE(std::isnan(x.to_vector()[0]));
    dispatch_device(x, [&](auto space) {
      kernels::CopyBlocks::forward(space, 1, 4, x.raw(), 4, x.raw() + x.bytes(), 4);  // NaN onto NaN: no damage
    });
    x.fill(1);
    dispatch_device(x,
                    [&](auto space) { kernels::CopyBlocks::forward(space, 1, 4, x.raw(), 4, x.raw() + x.bytes(), 4); });
  }
  pool.guard(false);
  EXPECT_EQ(pool.stats().damaged, before + 1);
}

TEST(DeviceOptimizer, StepsAndNormsAgreeWithTheCpu) {
  SINKHORN_NEEDS_DEVICE();
  for (DType dtype : {DType::f32, DType::f64}) {
    const auto drawn = [&](std::uint64_t key) { return uniform(Rng(key), {100003}, -1, 1, dtype); };
    const Tensor g = drawn(2), v0 = square(drawn(4)).value;
    const auto stepped = [&](Device device) {
      Tensor value = drawn(1).clone().to(device), m = drawn(3).clone().to(device), v = v0.clone().to(device);
      const std::vector<Range> decayed{{5, 70000}};
      adamw_step({0.9, 0.99, 1e-8, 0.1}, 3, 1e-2, value, g.to(device), m, v, decayed, 0.5);
      return Tensors{value, m, v, Tensor::full({}, global_norm({value, m}), DType::f64)};
    };
    const Tensors cpu = stepped(Device::cpu), cuda = stepped(Device::cuda);
    for (std::size_t i = 0; i < cpu.size(); ++i)
      EXPECT_LE(testing::squared_error(cuda[i], cpu[i]), testing::limit_of(dtype)) << i;
  }
}

}  // namespace
}  // namespace sinkhorn
