// What a step is counted to hold, against the pool's peak.
#include "tools/memory_budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "autograd/pool.h"
#include "tools/bench_cases.h"
#include "tools/trainer.h"

namespace sinkhorn {
namespace {

struct Example {
  std::string name, precision = "f32";
  ModelConfig model;
  std::int64_t batch, length;
  Device device = Device::cpu;
};

ModelConfig model(std::int64_t dim, std::int64_t bucket, std::int64_t local) {
  ModelConfig m;
  m.num_tokens = 50;
  m.dim = dim;
  m.depth = 2;
  m.heads = 4;
  m.bucket_size = bucket;
  m.n_local_attn_heads = local;
  m.causal = m.reversible = true;
  return m;
}

std::vector<Example> examples() {
  ModelConfig narrow = model(32, 16, 2), gated = narrow, tall = model(8, 16, 2), simple = model(16, 16, 0),
              wordy = tall, grouped = narrow, grouped_simple = simple;
  narrow.emb_dim = 8;
  gated.ff_glu = true;
  tall.ff_glu = true;
  tall.ff_chunks = 2;
  simple.use_simple_sort_net = true;
  wordy.num_tokens = 1000;
  grouped.dim_head = 32;
  grouped.n_local_attn_heads = 0;
  grouped.head_groups = grouped_simple.head_groups = 2;
  return {{"projected embeddings", "f32", narrow, 2, 1024},
          {"in bf16", "bf16", narrow, 2, 1024},
          {"gated", "f32", gated, 1, 1024},
          {"gated in bf16", "bf16", gated, 1, 1024},
          {"all local", "f32", model(32, 16, 4), 1, 1024},
          {"in pieces of tokens", "f32", tall, 32, 1024},
          {"many tokens in the vocabulary", "f32", wordy, 4, 512},
          {"simple sort net", "f32", simple, 1, 2048},
          {"not whole buckets", "f32", wordy, 2, 500},
          {"heads in groups", "f32", grouped, 1, 1024},
          {"heads in groups, in bf16", "bf16", grouped, 1, 1024},
          {"heads in groups, simple sort net", "f32", grouped_simple, 1, 2048},
          {"heads in groups, emulated device", "f32", grouped, 1, 128, Device::cuda},
          {"emulated device", "f32", narrow, 1, 128, Device::cuda},
          {"emulated device, bf16", "bf16", narrow, 1, 128, Device::cuda}};
}

TEST(MemoryBudget, IsWithinATenthOfThePoolsPeak) {
  std::set<std::string> fullest;
  for (Example run : examples()) {
    TrainConfig train;
    train.precision = run.precision;
    train.batch_size = run.batch;
    train.seq_len = run.length;
    run.model.max_seq_len = run.length;
    const std::size_t before = Pool::of(run.device).stats().in_use;
    Trainer trainer(run.model, train, run.device);
    const Shape shape{run.batch, run.length};
    const std::int32_t end = std::int32_t(run.model.num_tokens);
    const std::size_t peak =
        trainer.measure({integers(Rng(1), shape, end), integers(Rng(2), shape, end)}).peak_bytes - before;
    const auto budget = memory_budget(run.model, train, run.device, trainer.parameters().count());
    ASSERT_TRUE(budget) << run.name;
    EXPECT_NEAR(double(budget->peak().bytes()), double(peak), 0.1 * double(peak)) << run.name << "\n"
                                                                                  << to_table(*budget);
    fullest.insert(budget->peak().name);
  }
  EXPECT_EQ(fullest.size(), 4u) << "each moment should be the fullest of some model";
}

// The published example at the lengths that a card of 80 GB must take (performance targets: 5 GiB at 204,800).
TEST(MemoryBudget, OfLongRows) {
  const auto gib_at = [](std::int64_t length, std::int64_t groups = 1) {
    const Settings settings = resolve(
        "", {{"preset", "long-204k"}, {"seq_len", std::to_string(length)}, {"head_groups", std::to_string(groups)}});
    const auto budget = memory_budget(settings.model, settings.train, Device::cuda, 25'000'000);
    return double(budget->peak().bytes()) / double(1 << 30);
  };
  EXPECT_LE(gib_at(204800), 5);
  EXPECT_LE(gib_at(4194304), 76);
  EXPECT_LE(gib_at(204800, 2), 3.4);
  EXPECT_LE(gib_at(4194304, 2), 57);
}

// What an H100 held at most in the benchmark's case E-B4-f32, with cuBLAS and with products that pack their operands.
TEST(MemoryBudget, CountsPackedOperands) {
  const auto& cases = bench_cases();
  const auto found = std::find_if(cases.begin(), cases.end(), [](const BenchCase& c) { return c.name == "E-B4-f32"; });
  ASSERT_NE(found, cases.end());
  TrainConfig train;
  train.precision = found->precision;
  train.batch_size = found->batch;
  train.seq_len = found->length;
  const auto gib = [&](bool packs) {
    const auto budget = memory_budget(found->model, train, Device::cuda, 25'000'000, packs);
    return double(budget->peak().bytes()) / double(1 << 30);
  };
  EXPECT_NEAR(gib(false), 0.98, 0.098);
  EXPECT_NEAR(gib(true), 1.14, 0.114);
}

TEST(MemoryBudget, SaysWhereItDoesNotCount) {
  TrainConfig train;
  ModelConfig kept = model(16, 16, 0), memories = kept;
  kept.reversible = false;
  memories.pkm_layers = {1};
  EXPECT_FALSE(memory_budget(kept, train, Device::cpu, 1));
  EXPECT_FALSE(memory_budget(memories, train, Device::cpu, 1));
}

TEST(MemoryBudget, TableNamesTheLargestFirst) {
  TrainConfig train;
  train.seq_len = 64;
  const std::string table = to_table(*memory_budget(model(16, 16, 0), train, Device::cpu, 100000));
  EXPECT_TRUE(table.starts_with("memory at the fullest moment of a step, ")) << table;
  EXPECT_LT(table.find("1.6 MiB  parameters, gradients, two moments"), table.find("residual pair")) << table;
  EXPECT_NE(table.find(" in all; "), std::string::npos) << table;
}

}  // namespace
}  // namespace sinkhorn
