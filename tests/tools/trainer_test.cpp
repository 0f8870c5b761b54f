// Training steps: what a model learns, that equal steps give equal bits, and what happens when numbers run away.
#include "tools/trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "autograd/parallel.h"
#include "tools/schedule.h"

namespace sinkhorn {
namespace {

ModelConfig tiny_model() {
  ModelConfig model;
  model.num_tokens = 12;
  model.dim = 32;
  model.depth = 2;
  model.heads = 4;
  model.n_local_attn_heads = 2;
  model.bucket_size = 8;
  model.causal = true;
  model.max_seq_len = 32;
  return model;
}

TrainConfig quick_training() {
  TrainConfig train;
  train.steps = 100;
  train.warmup_steps = 10;
  train.learning_rate = 3e-3;
  train.min_learning_rate = 3e-4;
  train.embedding_init_std = 0.02;
  return train;
}

Batch random_batch(std::uint64_t seed, std::int64_t rows = 4) {
  return {integers(Rng(seed).split(1), {rows, 32}, 12), integers(Rng(seed).split(2), {rows, 32}, 12)};
}

StepResult step_on(Trainer& trainer, const Batch& batch) {
  return trainer.step([&](std::int64_t) { return batch; });
}

TEST(Schedule, WarmsUpLinearlyThenFollowsACosine) {
  TrainConfig train;
  train.learning_rate = 1;
  train.min_learning_rate = 0.1;
  train.warmup_steps = 10;
  train.steps = 110;
  EXPECT_DOUBLE_EQ(learning_rate_at(train, 1), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate_at(train, 5), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate_at(train, 10), 1);
  EXPECT_DOUBLE_EQ(learning_rate_at(train, 60), 0.55);
  EXPECT_NEAR(learning_rate_at(train, 35), 0.1 + 0.45 * (1 + std::sqrt(0.5)), 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate_at(train, 110), 0.1);
  train.warmup_steps = 0;
  EXPECT_NEAR(learning_rate_at(train, 1), 1, 1e-3);
  train.warmup_steps = 200;  // longer than the run
  EXPECT_DOUBLE_EQ(learning_rate_at(train, 110), 0.55);
}

TEST(Trainer, ParametersAreAtLeastAsManyAsTheConfigSays) {
  const std::vector<std::function<void(ModelConfig&)>> changes = {
      [](ModelConfig&) {},
      [](ModelConfig& c) { c.ff_glu = c.weight_tie = true; },
      [](ModelConfig& c) { c.emb_dim = 8, c.dim_head = 5; },
      [](ModelConfig& c) { c.use_simple_sort_net = c.use_rezero = true; },
      [](ModelConfig& c) { c.use_simple_sort_net = c.weight_tie = true, c.n_top_buckets = 5000; },
      [](ModelConfig& c) { c.use_rezero = c.weight_tie = true, c.depth = 3000; },
      [](ModelConfig& c) { c.reversible = true, c.depth = 5, c.max_seq_len = 1000; },
      [](ModelConfig& c) {
        c.depth = 3, c.pkm_layers = {1, 3, 1}, c.pkm_num_keys = 40, c.pkm_dim_head = 24;
      },
      [](ModelConfig& c) {
        c.weight_tie = true, c.depth = 4, c.pkm_layers = {1, 2}, c.pkm_num_keys = 3;
      },
      [](ModelConfig& c) {
        c.weight_tie = true, c.pkm_layers = {1, 2}, c.pkm_num_keys = 5;
      },
  };
  for (const auto& change : changes) {
    ModelConfig model = tiny_model();
    change(model);
    const auto count = double(Trainer(model, quick_training()).parameters().count());
    EXPECT_LE(model.least_parameters(), count);
    EXPECT_GE(model.least_parameters(), 0.9 * count);
  }
  ModelConfig huge = tiny_model();
  huge.dim = huge.depth = 1 << 30;
  EXPECT_THROW(Trainer(huge, quick_training()), OutOfMemory);
}

TEST(Trainer, OverfitsOneBatch) {
  TrainConfig train = quick_training();
  train.steps = 300;
  train.weight_decay = 0;
  Trainer trainer(tiny_model(), train);
  const Batch batch = random_batch(1, 2);
  EXPECT_GT(step_on(trainer, batch).loss, 2);
  while (trainer.steps_done() < train.steps) step_on(trainer, batch);
  EXPECT_LT(trainer.evaluate(batch), 0.01);
}

TEST(Trainer, LearnsInBf16WithMasterWeightsInF32) {
  TrainConfig train = quick_training();
  train.precision = "bf16";
  train.steps = 300;
  train.weight_decay = 0;
  Trainer trainer(tiny_model(), train), again(tiny_model(), train);
  const Batch batch = random_batch(1, 2);
  EXPECT_GT(step_on(trainer, batch).loss, 2);
  step_on(again, batch);
  EXPECT_TRUE(equal_bits(trainer.parameters().values, again.parameters().values)) << "two runs differ";
  while (trainer.steps_done() < train.steps) step_on(trainer, batch);
  EXPECT_LT(trainer.evaluate(batch), 0.05);
  const Tensor& values = trainer.parameters().values;
  EXPECT_EQ(values.dtype(), DType::f32);
  EXPECT_FALSE(equal_bits(values, values.to(DType::bf16).to(DType::f32))) << "small steps would be lost";
  // To go on in another process takes the parameters, the moments and the step, as in f32.
  Trainer resumed(tiny_model(), train);
  for (Tensor FlatParameters::*kept :
       {&FlatParameters::values, &FlatParameters::first_moment, &FlatParameters::second_moment})
    (resumed.parameters().*kept).assign(trainer.parameters().*kept);
  resumed.set_steps_done(trainer.steps_done());
  EXPECT_EQ(step_on(resumed, batch).loss, step_on(trainer, batch).loss);
  EXPECT_TRUE(equal_bits(resumed.parameters().values, trainer.parameters().values));
}

TEST(Trainer, EqualBitsForAnyNumberOfThreads) {
  ModelConfig model = tiny_model();
  model.dim = 128;  // large enough that every op is cut into several chunks
  model.bucket_size = 32;
  model.max_seq_len = 128;
  model.attn_dropout = model.ff_dropout = model.emb_dropout = 0.1;
  const auto state_after_steps = [&](int count) {
    const int before = threads();
    set_threads(count);
    Trainer trainer(model, quick_training());
    for (std::uint32_t i = 0; i < 3; ++i)
      step_on(trainer, {integers(Rng(1).split(i), {8, 128}, 12), integers(Rng(2).split(i), {8, 128}, 12)});
    set_threads(before);
    const FlatParameters& all = trainer.parameters();
    return Tensors{all.values.clone(), all.first_moment.clone(), all.second_moment.clone()};
  };
  const Tensors one = state_after_steps(1);
  for (const int count : {2, 4})
    for (std::size_t i = 0; const Tensor& tensor : state_after_steps(count))
      EXPECT_TRUE(equal_bits(one[i++], tensor)) << count << " threads";
}

TEST(Trainer, NoiseIsAFunctionOfSeedAndStep) {
  ModelConfig model = tiny_model();
  model.ff_dropout = 0.5;
  const auto losses = [&](std::int64_t seed) {
    TrainConfig train = quick_training();
    train.seed = seed;
    train.learning_rate = train.min_learning_rate = 1e-30;  // only the noise changes
    Trainer trainer(model, train);
    const double first = step_on(trainer, random_batch(1)).loss;
    return std::pair(first, step_on(trainer, random_batch(1)).loss);
  };
  EXPECT_EQ(losses(1), losses(1));
  EXPECT_NE(losses(1), losses(2));
  EXPECT_NE(losses(1).first, losses(1).second);
}

TEST(Trainer, AccumulationAveragesBatches) {
  TrainConfig train = quick_training();
  Trainer whole(tiny_model(), train);
  const Batch large = random_batch(1, 4);
  train.accumulate = 2;
  Trainer parts(tiny_model(), train);
  const StepResult one = step_on(whole, large), two = parts.step([&](std::int64_t micro) {
    return Batch{large.inputs.slice(2 * micro, 2 * micro + 2), large.targets.slice(2 * micro, 2 * micro + 2)};
  });
  EXPECT_NEAR(one.loss, two.loss, 1e-6);
  EXPECT_NEAR(one.gradient_norm, two.gradient_norm, 1e-5);
}

TEST(Trainer, ClipsTheGlobalNorm) {
  TrainConfig train = quick_training();
  train.clip_norm = 0.01;
  Trainer trainer(tiny_model(), train);
  const StepResult result = step_on(trainer, random_batch(1));
  ASSERT_GT(result.gradient_norm, 0.1);
  double squares = 0;
  for (const double moment : trainer.parameters().first_moment.to_vector()) squares += moment * moment;
  EXPECT_NEAR(std::sqrt(squares), (1 - train.beta1) * train.clip_norm, 1e-5);
}

TEST(Trainer, NormsBiasesAndEmbeddingsDoNotDecay) {
  Trainer trainer(tiny_model(), quick_training());
  int decaying = 0;
  for (const auto& entry : trainer.parameters().entries()) {
    const bool weight = entry.name.ends_with("weight") && entry.parameter->value.shape().rank() > 1;
    EXPECT_EQ(entry.parameter->decays, weight && entry.name.find("emb") == std::string::npos) << entry.name;
    decaying += entry.parameter->decays;
  }
  EXPECT_GT(decaying, 8);
}

TEST(Trainer, WeightDecayPullsMatricesTowardsZero) {
  TrainConfig train = quick_training();
  train.warmup_steps = 0;
  train.weight_decay = 0;
  Trainer plain(tiny_model(), train);
  train.weight_decay = 10;
  Trainer decayed(tiny_model(), train);
  const std::vector<double> start = plain.parameters().values.to_vector();
  const StepResult result = step_on(plain, random_batch(1));
  step_on(decayed, random_batch(1));
  const std::vector<double> without = plain.parameters().values.to_vector(),
                            with = decayed.parameters().values.to_vector();
  for (const auto& entry : plain.parameters().entries())
    for (auto i = std::size_t(entry.begin); i < std::size_t(entry.end); ++i) {
      const double expected = entry.parameter->decays ? result.learning_rate * 10 * start[i] : 0;
      ASSERT_NEAR(without[i] - with[i], expected, 1e-6) << entry.name;
    }
}

TEST(Trainer, MemoryValuesLearnAtTheirOwnRate) {
  ModelConfig model = tiny_model();
  model.pkm_layers = {2};
  model.pkm_num_keys = 4;
  model.pkm_topk = model.pkm_dim_head = 4;
  TrainConfig train = quick_training();
  train.weight_decay = 10;  // and that values do not decay
  const auto changes_at = [&](double rate, double pkm_rate) {
    train.learning_rate = rate;
    train.min_learning_rate = rate / 10;
    train.pkm_learning_rate = pkm_rate;
    Trainer trainer(model, train);
    const std::vector<double> before = trainer.parameters().values.to_vector();
    const double reported = step_on(trainer, random_batch(1)).learning_rate;
    EXPECT_DOUBLE_EQ(reported, rate / 10) << "the first of ten steps of warm-up";
    std::pair<double, double> largest;  // change of memory values, and of all else
    const std::vector<double> after = trainer.parameters().values.to_vector();
    for (const auto& entry : trainer.parameters().entries())
      for (auto i = std::size_t(entry.begin); i < std::size_t(entry.end); ++i) {
        double& most = entry.name.ends_with("values.weight") ? largest.first : largest.second;
        most = std::max(most, std::abs(after[i] - before[i]));
      }
    return largest;
  };
  // The first step of Adam moves what has a gradient by the learning rate.
  EXPECT_NEAR(changes_at(1e-20, 0.02).first, 0.002, 1e-5);
  EXPECT_LE(changes_at(1e-20, 0.02).second, 1e-20);
  EXPECT_LE(changes_at(0.01, 1e-20).first, 1e-20);
  EXPECT_GE(changes_at(0.01, 1e-20).second, 0.001);
}

TEST(Trainer, ANonFiniteStepNamesItsOriginAndChangesNothing) {
  Trainer trainer(tiny_model(), quick_training());
  step_on(trainer, random_batch(1));
  const auto* entry = trainer.parameters().find("norm.weight");
  ASSERT_NE(entry, nullptr);
  entry->parameter->value.data<float>()[3] = std::numeric_limits<float>::quiet_NaN();
  const Tensor before = trainer.parameters().values.clone();
  try {
    step_on(trainer, random_batch(2));
    FAIL() << "a NaN went unnoticed";
  } catch (const NonFinite& error) {
    const std::string message = error.what();
    for (const char* part : {"step 2", "loss", "layer_norm", "norm.weight"})
      EXPECT_NE(message.find(part), std::string::npos) << part << " is not in: " << message;
  }
  EXPECT_TRUE(equal_bits(before, trainer.parameters().values));
  EXPECT_EQ(trainer.steps_done(), 1);
}

TEST(Trainer, MeasuringLeavesNoTrace) {
  Trainer measured(tiny_model(), quick_training()), plain(tiny_model(), quick_training());
  const Trainer::Cost cost = measured.measure(random_batch(9));
  EXPECT_GT(cost.milliseconds, 0);
  EXPECT_GT(cost.peak_bytes, measured.parameters().values.bytes());
  step_on(measured, random_batch(1));
  step_on(plain, random_batch(1));
  EXPECT_TRUE(equal_bits(measured.parameters().values, plain.parameters().values));
}

}  // namespace
}  // namespace sinkhorn
