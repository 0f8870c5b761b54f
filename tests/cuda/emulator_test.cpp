// The emulated grid: what it computes, what it counts, and the mistakes that it finds in kernels.
#include "cuda/emulator/emulator.h"

#include <gtest/gtest.h>

#include "autograd/ops.h"
#include "cuda/emulator/array.h"
#include "cuda/reduce.h"
#include "cuda/runtime.h"
#include "tests/autograd/expect.h"

namespace sinkhorn {
namespace {

using cuda::for_each;
using cuda::Global;
using cuda::launch;
using cuda::Shared;
using cuda::Thread;
using emulator::KernelFault;
using testing::expect_error;

// A kernel given as a lambda of the thread, for one-line mistakes.
template <class Body>
struct Kernel {
  Body body;
  void operator()(Thread& t) const { body(t); }
};
template <class Body>
void run(std::int64_t blocks, int threads, std::size_t shared_bytes, Body body) {
  launch("planted", blocks, threads, shared_bytes, Kernel<Body>{body});
}

Tensor on_device(const std::vector<float>& values) {
  return Tensor::from(values, {std::int64_t(values.size())}).to(Device::cuda);
}

TEST(Emulator, RunsEveryThreadOfEveryBlock) {
  const Tensor y = Tensor::zeros({3 * 64}, DType::f32, Device::cuda);
  const Global<float> out(y.data<float>());
  run(3, 64, 0, [=](Thread& t) { out[t.block() * 64 + t.index()] = float(100 * t.block() + t.index()); });
  const std::vector<double> values = y.to_vector();
  for (int i = 0; i < 3 * 64; ++i) EXPECT_EQ(values[std::size_t(i)], 100 * (i / 64) + i % 64);
}

TEST(Emulator, CountsTheSectorsThatWarpsAskFor) {
  const emulator::Array<float> x(std::int64_t(32 * 32)), y(std::int64_t(32 * 32));
  const auto sectors = [&](auto&& run_kernel) {
    emulator::reset_counters();
    emulator::count_sectors(true);
    run_kernel();
    emulator::count_sectors(false);
    return emulator::counters().sectors;
  };
  const Global<float> in = x.on_device(), out = y.on_device();
  // 32 neighbours of 4 bytes are 4 sectors, whether read or written; a column of a 32 x 32 matrix is 32.
  EXPECT_EQ(sectors([&] { run(2, 64, 0, [=](Thread& t) { out[t.index()] = in[t.index()]; }); }), 2 * 2 * (4 + 4));
  EXPECT_EQ(sectors([&] { run(1, 32, 0, [=](Thread& t) { out[t.index()] = in[32 * t.index()]; }); }), 32 + 4);
  EXPECT_EQ(sectors([&] { run(1, 32, 0, [=](Thread& t) { out[t.index()] = in[0]; }); }), 1 + 4);
  EXPECT_EQ(sectors([&] { for_each("flat", 64, [=](std::int64_t i) { out[i] = in[i]; }); }), 2 * (4 + 4));
  EXPECT_EQ(sectors([&] { for_each("flat", 64, [=](std::int64_t i) { out[i] = in[16 * i % 1024]; }); }), 2 * (32 + 4));
  emulator::reset_counters();
  run(1, 32, 0, [=](Thread& t) { out[t.index()] = 1; });
  EXPECT_EQ(emulator::counters().sectors, 0) << "they are counted only when asked for";
}

TEST(Emulator, ArraysGoThereAndBackAndAreGuarded) {
  const emulator::Array<float> x(std::vector<float>{1, 2, 3});
  const Global<float> at = x.on_device();
  run(1, 32, 0, [=](Thread& t) {
    if (t.index() < 3) at[t.index()] = 2 * at[t.index()];
  });
  EXPECT_EQ(x.to_host(), std::vector<float>({2, 4, 6}));
  expect_error([&] { run(1, 32, 0, [=](Thread& t) { at[t.index()] = 0; }); }, {"of a buffer of 12 bytes"});
}

TEST(Emulator, ReducesOverWarpsAndBlocks) {
  const Tensor y = Tensor::zeros({2}, DType::f64, Device::cuda);
  const Global<double> out(y.data<double>());
  for (int threads : {32, 64, 256}) {
    run(1, threads, cuda::reducer_bytes<double>(), [=](Thread& t) {
      const cuda::BlockReducer<double> reduce(t);
      const double sum = reduce.sum(t.index()), largest = reduce.max(-t.index());
      if (t.index() == t.size() - 1) {
        out[0] = sum;
        out[1] = largest;
      }
    });
    EXPECT_EQ(y.to_vector(), std::vector<double>({threads * (threads - 1) / 2.0, 0}));
  }
}

TEST(Emulator, CountsWhatKernelsDo) {
  const Tensor x = on_device(std::vector<float>(64, 1)), y = Tensor::zeros({2}, DType::f32, Device::cuda);
  const Global<const float> in(x.data<float>());
  const Global<float> out(y.data<float>());
  emulator::reset_counters();
  run(2, 32, 128, [=](Thread& t) {
    const Shared<float> row = t.shared<float>(32);
    row[t.index()] = in[t.block() * 32 + t.index()];
    t.sync();
    const float other = row[31 - t.index()], sum = cuda::reduce_warp(t, other, cuda::Plus{});
    if (t.index() == 0) out[t.block()] = sum;
  });
  const emulator::Counters c = emulator::counters();
  EXPECT_EQ(c.launches, 1);
  EXPECT_EQ(c.blocks, 2);
  EXPECT_EQ(c.threads, 64);
  EXPECT_EQ(c.barriers, 2);
  EXPECT_EQ(c.shuffles, 2 * 5);
  EXPECT_EQ(c.global_reads.accesses, 64);
  EXPECT_EQ(c.global_reads.bytes, 256);
  EXPECT_EQ(c.global_writes.bytes, 8);
  EXPECT_EQ(c.shared_reads.accesses, 64);
  EXPECT_EQ(c.shared_writes.bytes, 256);
  EXPECT_EQ(y.to_vector(), std::vector<double>({32, 32}));
}

TEST(Emulator, FindsRacesInSharedMemory) {
  // a read of what a neighbour writes, without a barrier between them
  expect_error<KernelFault>(
      [] {
        run(1, 32, 128, [](Thread& t) {
          const Shared<float> s = t.shared<float>(32);
          s[t.index()] = 1;
          [[maybe_unused]] const float next = s[(t.index() + 1) % 32];
        });
      },
      {"planted", "block 0", "race"});
  // two threads write one word
  expect_error<KernelFault>([] { run(1, 32, 16, [](Thread& t) { t.shared<float>(1)[0] = 1; }); },
                            {"thread 1", "thread 0", "race"});
  // the same element rewritten before all have read it: the barrier at the end of a loop is missing
  expect_error<KernelFault>(
      [] {
        run(1, 64, 16, [](Thread& t) {
          const Shared<float> s = t.shared<float>(1);
          for (int k = 0; k < 2; ++k) {
            if (t.index() == 0) s[0] = float(k);
            t.sync();
            [[maybe_unused]] const float seen = s[0];
          }
        });
      },
      {"race"});
}

TEST(Emulator, FindsAccessesOutsideOfBuffers) {
  const Tensor x = on_device({1, 2, 3}), y = Tensor::zeros({3}, DType::f32, Device::cuda);
  const Global<const float> in(x.data<float>());
  const Global<float> out(y.data<float>());
  struct Copy {
    std::int64_t shift;
    Global<const float> x;
    Global<float> y;
    void operator()(std::int64_t i) const { y[i] = x[i + shift]; }
  };
  for_each("copy", 3, Copy{0, in, out});
  expect_error<KernelFault>(
      [&] {
        for_each("copy", 3, Copy{1, in, out});
      },
      {"copy", "index 2", "12 .. 15", "12 bytes"});
  expect_error<KernelFault>([&] { for_each("copy", 3, Copy{-1, in, out}); }, {"copy", "index 0", "-4 .. -1"});
  expect_error<KernelFault>([&] { for_each("copy", 4, Copy{-3, in + 3, out}); }, {"index 3"});
  expect_error<KernelFault>([] { run(1, 32, 16, [](Thread& t) { t.shared<float>(4)[t.index()] = 1; }); },
                            {"thread 4", "element 4 of 4"});
  expect_error<KernelFault>([] { run(1, 32, 16, [](Thread& t) { t.shared<float>(5); }); }, {"32 bytes", "16"});
}

// y = x in packs of four.
struct CopyPacks {
  std::int64_t from;
  Global<const float> x;
  Global<float> y;
  template <int N>
  void operator()(std::int64_t i, cuda::Width<N>) const {
    y.store(i, x.load<N>(from + i));
  }
};

TEST(Emulator, MovesPacksAndCountsThem) {
  const Tensor x = on_device({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), y = Tensor::zeros({10}, DType::f32, Device::cuda);
  const auto copied = [&](bool aligned) {
    emulator::reset_counters();
    cuda::for_each_pack<4>("copy", 10, aligned, CopyPacks{0, x.data<float>(), y.data<float>()});
    EXPECT_EQ(y.to_vector(), x.to_vector());
    y.fill(0);
    return emulator::counters().global_reads;
  };
  const emulator::Traffic packs = copied(true), singles = copied(false);
  EXPECT_EQ(packs.accesses, 2 + 2) << "two packs, and two elements at the end";
  EXPECT_EQ(singles.accesses, 10);
  EXPECT_EQ(packs.bytes, 40);
  EXPECT_EQ(singles.bytes, 40);
}

TEST(Emulator, FindsPacksThatLieAskewOrLeaveTheBuffer) {
  const Tensor x = on_device({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), y = Tensor::zeros({8}, DType::f32, Device::cuda);
  const auto copy = [&](std::int64_t from, std::int64_t count) {
    cuda::for_each_pack<4>("copy", count, true, CopyPacks{from, x.data<float>(), y.data<float>()});
  };
  expect_error<KernelFault>([&] { copy(1, 8); }, {"copy", "index 0", "byte 4 ", "no multiple of 16"});
  expect_error<KernelFault>([&] { copy(4, 8); }, {"copy", "index 1", "32 .. 47", "40 bytes"});
  EXPECT_TRUE(cuda::is_aligned<4>(x.data<float>(), x.data<float>() + 8));
  EXPECT_FALSE(cuda::is_aligned<4>(x.data<float>(), x.data<float>() + 2));
  EXPECT_TRUE(cuda::is_aligned<2>(x.data<float>() + 2));
}

TEST(Emulator, FindsHostMemoryGivenToAKernel) {
  const Tensor host = Tensor::zeros({3});
  expect_error<KernelFault>([&] { Global<float>(host.data<float>()); }, {"host memory", "to(cuda)"});
}

TEST(Emulator, FindsBarriersThatNotAllThreadsReach) {
  expect_error<KernelFault>(
      [] {
        run(1, 64, 0, [](Thread& t) {
          if (t.index() < 40) t.sync();
        });
      },
      {"planted", "thread 0 waits at the barrier", "thread 40 has ended"});
  expect_error<KernelFault>(
      [] {
        const auto elsewhere = [](const Thread& t) { t.sync(); };
        run(1, 32, 0, [=](Thread& t) {
          if (t.index() < 8)
            t.sync();
          else
            elsewhere(t);
        });
      },
      {"thread 8 waits at the barrier", "not all threads reach one barrier"});
  expect_error<KernelFault>(
      [] {
        run(1, 32, 0, [](Thread& t) {
          if (t.lane() != 3) t.shuffle_xor(1.0f, 1);
        });
      },
      {"waits for a shuffle", "thread 3 has ended"});
  expect_error<KernelFault>([] { run(1, 33, 0, [](Thread&) {}); }, {"33 threads", "multiple of 32"});
  // and goes on afterwards
  const Tensor x = on_device({1, 2, 3});
  EXPECT_EQ(softmax(x).value.to(Device::cpu).shape(), x.shape());
}

TEST(Emulator, StopsHostCodeThatTouchesTheDevice) {
  const Tensor x = on_device({1, 2, 3});
  EXPECT_DEATH(*x.data<float>() = 1, "");
  expect_error([&] { x.span<float>(); }, {"host", "cuda"});
}

}  // namespace
}  // namespace sinkhorn
