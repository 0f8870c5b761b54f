// The search for leaks: clean models are clean, each planted leak is found where it is, and the program says so.
#include "tools/leak_check.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "autograd/gradcheck.h"
#include "tests/models/random_model.h"
#include "tests/tools/program.h"
#include "tools/planted_attention.h"

namespace sinkhorn {
namespace {

using testing::contains;
using testing::Outcome;
using testing::random_model;
using testing::run_program;

ModelConfig mixed(std::int64_t length = 32) {
  ModelConfig c;
  c.causal = true;
  c.num_tokens = 11;
  c.dim = 16;
  c.heads = 4;
  c.depth = 2;
  c.bucket_size = 8;
  c.max_seq_len = length;
  c.n_local_attn_heads = 1;  // then one sorting head, and two rotated ones
  return c;
}

LeakReport check(const ModelConfig& config, const std::string& plant, std::int64_t length, DType dtype = DType::f32) {
  const auto model = random_model(config, 3, dtype);
  if (!plant.empty()) model->stack().use_attention_twin(planted_attention(find_plant(plant)));
  return find_leaks(*model, length, 16, 5);
}

TEST(LeakCheck, FindsNothingInCausalModels) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16})
    for (int seed = 0; seed < testing::configurations(15, 200); ++seed) {
      testing::Dice dice(std::uint64_t(seed) + 50);
      const ModelConfig config = testing::random_config(dice);
      const auto model = random_model(config, std::uint64_t(seed), dtype);
      const std::int64_t length = std::max<std::int64_t>(2, 4 / config.bucket_size) * config.bucket_size;
      const LeakReport report = find_leaks(*model, length, 6, std::uint64_t(seed));
      EXPECT_FALSE(report.first || report.leaky > 0 || !report.moved.empty()) << testing::describe(config);
      EXPECT_EQ(report.trials, 6);
    }
}

TEST(LeakCheck, TheTwinWithoutAMistakeIsTheModel) {
  for (const bool simple : {false, true}) {
    ModelConfig config = mixed();
    config.use_simple_sort_net = simple;
    const auto model = random_model(config, 3, DType::f64);
    const Tensor ids = testing::random_ids(1, 2, 32, config.num_tokens);
    const Tensor want = (*model)(Scope{}, ids).value;
    model->stack().use_attention_twin(planted_attention(find_plant("none")));
    const Tensor twin = (*model)(Scope{}, ids).value;
    EXPECT_LE(relative_error(twin, want), 1e-12);
    model->stack().use_attention_twin(planted_attention(find_plant("no-triangle")));
    EXPECT_GT(relative_error((*model)(Scope{}, ids).value, want), 1e-3);
    model->stack().use_attention_twin({});
    EXPECT_TRUE(equal_bits((*model)(Scope{}, ids).value, want));
  }
  EXPECT_FALSE(check(mixed(), "none", 32).first);
}

TEST(LeakCheck, FindsEveryPlantedLeakInItsHeads) {
  for (const Plant& plant : plants()) {
    if (plant.mistake == Plant::Mistake::none) continue;
    const std::int64_t length = plant.needs_local ? 512 : 32;
    const LeakReport report = check(mixed(length), plant.name, length);
    ASSERT_TRUE(report.first) << plant.name;
    EXPECT_EQ(report.first->layer, 0) << plant.name;
    EXPECT_GE(report.first->head, plant.needs_sorting ? 1 : 0) << plant.name;
    if (plant.needs_local) {
      EXPECT_EQ(report.first->head, 0) << plant.name;
    }
    if (plant.mistake == Plant::Mistake::no_wrap_mask) {
      EXPECT_GE(report.first->head, 2) << "the rotated ones";
    }
    EXPECT_GT(report.first->input, report.first->position) << plant.name;
    EXPECT_GT(report.leaky, 0) << plant.name;
    EXPECT_GT(report.largest, 0) << plant.name;
    ASSERT_FALSE(report.moved.empty()) << plant.name;
    EXPECT_TRUE(std::ranges::binary_search(report.moved, report.largest_position)) << plant.name;
    EXPECT_TRUE(std::ranges::is_sorted(report.moved)) << plant.name;
  }
}

// bf16 has 8 significant bits: from 256 on, a position that is no multiple of 2 (from 512 on, of 4) is rounded.
TEST(LeakCheck, RoundedPositionsLeakFrom256On) {
  const LeakReport report = check(mixed(512), "local-positions-bf16", 512);
  ASSERT_TRUE(report.first);
  EXPECT_EQ(float(bf16(float(report.first->position))), float(bf16(float(report.first->input))));
  for (const std::int64_t position : report.moved) EXPECT_GE(position, 255);
  EXPECT_FALSE(check(mixed(256), "local-positions-bf16", 256).first);
}

TEST(LeakCheck, NamesTheTokenTheHeadAndTheLayer) {
  // One bucket of four tokens, and a mistake in it alone: token 3 reaches 0 to 2, through unrotated and rotated heads.
  ModelConfig config = mixed(8);
  config.n_local_attn_heads = 0;
  const auto model = random_model(config, 3, DType::f32);
  // Only the second layer's head 1 (of 2 unrotated, 2 rotated ones) sees too much.
  std::int64_t calls = 0;
  const AttentionTwin clean = planted_attention(find_plant("none")),
                      leaky = planted_attention(find_plant("no-triangle"));
  model->stack().use_attention_twin([&](const SinkhornAttention& layer, const Scope& scope, const Var& q, const Var& kv,
                                        const AttentionMasks& masks) {
    Var good = clean(layer, scope, q, kv, masks);
    if (calls++ % 2 == 0) return good;
    const Var bad = leaky(layer, scope, q, kv, masks);
    return concat({slice(good, 2, 0, 1), slice(bad, 2, 1, 2), slice(good, 2, 2, 4)}, 2);
  });
  const LeakReport report = find_leaks(*model, 8, 12, 1);
  ASSERT_TRUE(report.first);
  EXPECT_EQ(report.first->layer, 1);
  EXPECT_EQ(report.first->head, 1);
  EXPECT_EQ(report.first->part, "");
}

TEST(LeakCheck, IsAFunctionOfItsSeed) {
  const LeakReport a = check(mixed(), "no-triangle", 32), b = check(mixed(), "no-triangle", 32);
  EXPECT_EQ(a.moved, b.moved);
  EXPECT_EQ(a.largest, b.largest);
  EXPECT_EQ(a.first->input, b.first->input);
}

class LeakCheckProgram : public ::testing::Test {
 protected:
  Outcome run(std::vector<std::string> words) const {
    words.insert(words.begin(), "leak-check");
    return run_program(place.path, words);
  }
  void expect_usage_error(const std::vector<std::string>& words, const std::vector<std::string>& parts) const {
    const Outcome got = run(words);
    EXPECT_EQ(got.code, 2) << got.out << got.err;
    EXPECT_EQ(std::count(got.err.begin(), got.err.end(), '\n'), 1) << got.err;
    for (const auto& part : parts) EXPECT_TRUE(contains(got.err, part)) << part << " is not in: " << got.err;
  }
  testing::TemporaryFolder place;
};

TEST_F(LeakCheckProgram, IsCleanOnAPresetAFileAndACheckpoint) {
  for (const char* dtype : {"f32", "bf16", "f64"}) {
    const Outcome preset = run({"--preset", "cpu-small", "--dtype", dtype, "--trials", "4"});
    EXPECT_EQ(preset.code, 0) << preset.out << preset.err;
    EXPECT_TRUE(contains(preset.out, "preset cpu-small: 820,0")) << preset.out;
    EXPECT_TRUE(contains(preset.out, "clean     no logit and no head of 4 layers x 4 heads moved")) << preset.out;
  }
  std::ofstream(place.path / "model.toml") << "[model]\nuse_rezero = true\nreversible = true\ndepth = 2\n";
  const Outcome file = run({"--config", "model.toml", "--trials", "4"});
  EXPECT_EQ(file.code, 0) << file.out << file.err;
  EXPECT_TRUE(contains(file.out, "model.toml: ")) << file.out;
  const Outcome rezero = run({"--config", "model.toml", "--trials", "4", "--plant", "no-triangle"});
  EXPECT_EQ(rezero.code, 1) << rezero.out;
  EXPECT_TRUE(contains(rezero.out, "logits    moved at")) << "scales of 0 would hide it: " << rezero.out;

  std::ofstream(place.path / "text.txt") << std::string(2000, 'a') + std::string(500, 'b');
  const Outcome trained = run_program(place.path, {"train",    "--data",
                                                   "text.txt", "--dim",
                                                   "8",        "--depth",
                                                   "1",        "--heads",
                                                   "2",        "--n-local-attn-heads",
                                                   "1",        "--bucket-size",
                                                   "8",        "--seq-len",
                                                   "16",       "--batch-size",
                                                   "1",        "--steps",
                                                   "1",        "--eval-batches",
                                                   "1",        "--sample-length",
                                                   "0",        "--out",
                                                   "run"});
  ASSERT_EQ(trained.code, 0) << trained.err;
  for (const char* dtype : {"f32", "bf16"}) {
    const Outcome checkpoint = run({"--checkpoint", "run", "--dtype", dtype});
    EXPECT_EQ(checkpoint.code, 0) << checkpoint.out << checkpoint.err;
    EXPECT_TRUE(contains(checkpoint.out, "run/best.safetensors: ")) << checkpoint.out;
    EXPECT_TRUE(contains(checkpoint.out, "16 trials of 16 tokens")) << checkpoint.out;
  }
  EXPECT_EQ(run({"--checkpoint", "run", "--plant", "softmax-before-mask"}).code, 1);
}

TEST_F(LeakCheckProgram, ContextsNeedNotFillTheirBuckets) {
  std::ofstream(place.path / "model.toml") << "[model]\ncontext_bucket_size = 5\n";
  const Outcome got = run({"--preset", "add-one", "--config", "model.toml", "--trials", "2"});
  EXPECT_EQ(got.code, 0) << got.out << got.err;
}

TEST_F(LeakCheckProgram, ShowsAPlantedLeak) {
  const Outcome got = run({"--seq-len", "512", "--plant", "local-positions-bf16"});
  EXPECT_EQ(got.code, 1) << got.err;
  EXPECT_EQ(got.err, "");
  for (const char* part : {"planted   local-positions-bf16: ", "LEAK      in ",
                           "first     layer 1 of 4, head 1 of 4 (local)", "logits    moved at ", "the most by "})
    EXPECT_TRUE(contains(got.out, part)) << part << " is not in:\n" << got.out;
}

TEST_F(LeakCheckProgram, RefusesWhatItCannotCheck) {
  expect_usage_error({"--plant", "no-triangel"}, {"did you mean no-triangle?", "known: none, local-positions-bf16"});
  expect_usage_error({"--preset", "tiny"}, {"tiny"});
  expect_usage_error({"--preset", "cpu-small", "--checkpoint", "x"}, {"--checkpoint excludes"});
  expect_usage_error({"--seq-len", "100"}, {"100 is not a multiple of bucket_size 16"});
  expect_usage_error({"--trials", "0"}, {"trials"});
  expect_usage_error({"--dtype", "f16"}, {"f16"});
  expect_usage_error({"--plant", "local-positions-bf16"}, {"up to position 256"});
  std::ofstream(place.path / "model.toml") << "[model]\nn_local_attn_heads = 4\n";
  expect_usage_error({"--config", "model.toml", "--plant", "no-triangle"}, {"the model has none"});
  std::ofstream(place.path / "model.toml") << "[model]\nn_local_attn_heads = 0\nuse_simple_sort_net = true\n";
  expect_usage_error({"--config", "model.toml", "--plant", "choose-itself"}, {"attention sort net"});
  expect_usage_error({"--config", "model.toml", "--plant", "local-positions-bf16"}, {"the model has none"});
  const Outcome missing = run({"--checkpoint", "nowhere"});
  EXPECT_EQ(missing.code, 3) << missing.err;
}

}  // namespace
}  // namespace sinkhorn
