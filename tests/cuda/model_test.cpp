// Whole models on the device: the reference numbers, training and generation.
#include <gtest/gtest.h>

#include <sstream>

#include "autograd/pool.h"
#include "cuda/runtime.h"
#include "models/encoder_decoder.h"
#include "models/generate.h"
#include "nn/composed_attention.h"
#include "tests/cuda/agreement.h"
#include "tests/shared.h"
#include "tools/parity.h"
#include "tools/trainer.h"

namespace sinkhorn {
namespace {

TEST(DeviceModel, AgreesWithTheReferenceNumbers) {
  SINKHORN_NEEDS_DEVICE();
  const auto shared = testing::shared_folder();
  if (!shared) GTEST_SKIP() << "no reference files";
  ParityOptions options;
  if (testing::is_emulated()) {  // one of each kind
    for (const char* name : {"ar_loss_masked", "causal_mask_left_top3", "encdec_context_sortcut_masked",
                             "lm_reversible_chunked", "lm_tied_pkm_two_layers", "plain_gumbel_sinkhorn"})
      options.paths.push_back(*shared / "fixtures" / (std::string(name) + ".safetensors"));
  } else {
    options.paths.push_back(*shared / "fixtures");
  }
  std::ostringstream out;
  EXPECT_EQ(parity_on(Device::cuda, options, out), 0) << out.str();
}

ModelConfig tiny_model() {
  ModelConfig model;
  model.num_tokens = 11;
  model.dim = 16;
  model.depth = 2;
  model.heads = 2;
  model.n_local_attn_heads = 1;
  model.bucket_size = 4;
  model.max_seq_len = 16;
  model.causal = true;
  model.reversible = true;
  return model;
}

TEST(DeviceModel, TrainsLikeTheCpu) {
  SINKHORN_NEEDS_DEVICE();
  TrainConfig train;
  train.steps = 4;
  train.accumulate = 2;
  const Tensor ids = integers(Rng(1), {2, 17}, 11);
  const Batch batch{slice(Var(ids), 1, 0, 16).value, slice(Var(ids), 1, 1, 17).value};
  const auto same = [&](std::int64_t) { return Batch(batch); };
  Trainer here(tiny_model(), train), there(tiny_model(), train, Device::cuda), again(tiny_model(), train, Device::cuda);
  for (int step = 0; step < 3; ++step) {
    const StepResult cpu = here.step(same);
    const StepResult cuda = there.step(same);
    again.step(same);
    EXPECT_NEAR(cpu.loss, cuda.loss, 1e-5 * cpu.loss);
    EXPECT_NEAR(cpu.gradient_norm, cuda.gradient_norm, 1e-4 * cpu.gradient_norm);
  }
  EXPECT_TRUE(equal_bits(there.parameters().values, again.parameters().values)) << "two runs differ";
  EXPECT_NEAR(here.evaluate(batch), there.evaluate(batch), 1e-4);
}

// The host runs ahead of the device but for one look at loss and norm, and memory goes round.
TEST(DeviceModel, AStepWaitsOnceAndAsksTheDriverForNothing) {
  SINKHORN_NEEDS_DEVICE();
  for (const bool reversible : {false, true}) {
    ModelConfig model = tiny_model();
    model.reversible = reversible;
    model.ff_chunks = 3;
    TrainConfig train;
    train.steps = 9;
    train.accumulate = 2;
    train.precision = "bf16";
    Trainer trainer(model, train, Device::cuda);
    const Tensor ids = integers(Rng(1), {2, 17}, 11);
    const Batch batch{slice(Var(ids), 1, 0, 16).value, slice(Var(ids), 1, 1, 17).value};
    const auto step = [&] { trainer.step([&](std::int64_t) { return Batch(batch); }); };
    step();
    const PoolStats first = Pool::of(Device::cuda).stats();
    for (int i = 0; i < 3; ++i) {
      const std::int64_t before = cuda::waits().count;
      step();
      EXPECT_EQ(cuda::waits().count - before, 1);
    }
    EXPECT_EQ(Pool::of(Device::cuda).stats().system_allocations, first.system_allocations);
    EXPECT_EQ(Pool::of(Device::cuda).stats().in_use, first.in_use);
  }
}

TEST(DeviceModel, TrainsInEveryPrecisionLikeTheCpu) {
  SINKHORN_NEEDS_DEVICE();
  for (const char* precision : {"tf32", "bf16"}) {
    TrainConfig train;
    train.precision = precision;
    const Tensor ids = integers(Rng(1), {2, 17}, 11);
    const Batch batch{slice(Var(ids), 1, 0, 16).value, slice(Var(ids), 1, 1, 17).value};
    const auto same = [&](std::int64_t) { return Batch(batch); };
    Trainer here(tiny_model(), train), there(tiny_model(), train, Device::cuda),
        again(tiny_model(), train, Device::cuda);
    for (int step = 0; step < 3; ++step) {
      const StepResult cpu = here.step(same), cuda = there.step(same);
      again.step(same);
      EXPECT_NEAR(cpu.loss, cuda.loss, 0.01 * cpu.loss) << precision;
      EXPECT_NEAR(cpu.gradient_norm, cuda.gradient_norm, 0.05 * cpu.gradient_norm) << precision;
    }
    EXPECT_TRUE(equal_bits(there.parameters().values, again.parameters().values)) << precision << ": two runs differ";
  }
}

// Beyond the longest sequence, so that rows are taken up anew; and with both sort nets.
TEST(DeviceModel, GeneratesWhatTheCpuDoes) {
  SINKHORN_NEEDS_DEVICE();
  const std::vector<std::vector<std::int32_t>> prompts{{1, 2, 3}, {4, 5, 6, 7, 8, 9, 10, 1, 2, 3}};
  for (bool simple : {false, true}) {
    ModelConfig config = tiny_model();
    config.heads = 4;
    config.use_simple_sort_net = simple;
    SinkhornTransformerLM here(config, Rng(3), DType::f64), there(config, Rng(3), DType::f64);
    move_to(Device::cuda, there);
    EXPECT_EQ(generate(here, prompts, 14, {}, Rng(5)), generate(there, prompts, 14, {}, Rng(5)));
  }
}

TEST(DeviceModel, AnswersWhatTheCpuDoes) {
  SINKHORN_NEEDS_DEVICE();
  const EncoderDecoderConfig config = encoder_and_decoder(tiny_model());
  EncoderDecoder here(config, Rng(3), DType::f64), there(config, Rng(3), DType::f64);
  move_to(Device::cuda, there.encoder());
  move_to(Device::cuda, there.decoder());
  const std::vector<std::vector<std::int32_t>> sources{{1, 2, 3, 4, 5, 6}, {7, 8}}, starts{{1}, {1, 2}};
  EXPECT_EQ(generate(here, sources, starts, 9, {}, Rng(5)), generate(there, sources, starts, 9, {}, Rng(5)));
}

}  // namespace
}  // namespace sinkhorn
