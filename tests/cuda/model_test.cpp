// Whole models on the device: the reference numbers, training and generation.
#include <gtest/gtest.h>

#include <limits>
#include <sstream>

#include "autograd/memory.h"
#include "autograd/pool.h"
#include "cuda/runtime.h"
#include "models/decoder.h"
#include "models/encoder_decoder.h"
#include "models/generate.h"
#include "nn/composed_attention.h"
#include "nn/sort_net.h"
#include "tests/autograd/expect.h"
#include "tests/cuda/agreement.h"
#include "tests/models/random_model.h"
#include "tests/shared.h"
#include "tools/checkpoint.h"
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
    model.heads = 4;
    model.n_local_attn_heads = 0;
    model.head_groups = reversible ? 2 : 1;
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

/// A model whose attention is of the kind that the GPU's own instructions take: heads of 64, buckets of 64; smaller
/// where it is emulated. Local, sorting and rotated heads.
ModelConfig wide_model(std::int64_t length) {
  ModelConfig model = tiny_model();
  const bool small = testing::is_emulated();
  model.heads = 4;
  model.n_local_attn_heads = 2;
  model.dim = 4 * (small ? 8 : 64);
  model.bucket_size = small ? 4 : 64;
  model.max_seq_len = length;
  return model;
}

Batch batch_of(const ModelConfig& model, std::int64_t rows, std::uint64_t seed = 1) {
  const Tensor ids = integers(Rng(seed), {rows, model.max_seq_len + 1}, std::int32_t(model.num_tokens));
  return {slice(Var(ids), 1, 0, model.max_seq_len).value, slice(Var(ids), 1, 1, model.max_seq_len + 1).value};
}

TEST(DeviceModel, MakesAStepOfWideHeadsInBf16) {
  SINKHORN_NEEDS_DEVICE();
  TrainConfig train;
  train.precision = "bf16";
  ModelConfig model = wide_model(testing::is_emulated() ? 16 : 256);
  model.attn_dropout = 0.1;
  const Batch batch = batch_of(model, 2);
  Trainer here(model, train), there(model, train, Device::cuda);
  for (int step = 0; step < 2; ++step) {
    const auto same = [&](std::int64_t) { return Batch(batch); };
    const StepResult cpu = here.step(same), cuda = there.step(same);
    EXPECT_NEAR(cpu.loss, cuda.loss, 0.01 * cpu.loss);
    EXPECT_NEAR(cpu.gradient_norm, cuda.gradient_norm, 0.05 * cpu.gradient_norm);
  }
}

// P1: what comes later changes no bit of what came before.
TEST(DeviceModel, NoOutputDependsOnTheFuture) {
  SINKHORN_NEEDS_DEVICE();
  const std::int64_t length = testing::is_emulated() ? 16 : 8192;
  const ModelConfig config = wide_model(length);
  struct Precision {
    const char* name;
    std::optional<DType> compute;
    bool tf32 = false;
  };
  for (const Precision& precision : {Precision{"f32", {}}, {"tf32", {}, true}, {"bf16", DType::bf16}}) {
    if (testing::is_emulated() && precision.tf32) continue;  // f32 there
    const testing::Tf32 tf32(precision.tf32);
    for (const bool simple : {false, true}) {
      ModelConfig kind = config;
      kind.use_simple_sort_net = simple;
      kind.attn_dropout = 0.1;
      const auto model = testing::random_model(kind, 3, DType::f32);
      move_to(Device::cuda, *model);
      const auto logits = [&](const Tensor& ids, bool training) {
        const Scope scope{.rng = Rng(5), .training = training, .compute = precision.compute};
        return (*model)(scope, ids.to(Device::cuda)).value.to(Device::cpu);
      };
      const Tensor ids = testing::random_ids(1, 1, length, kind.num_tokens);
      const std::vector<double> places =
          integers(Rng(9), {testing::is_emulated() ? 1 : 6}, std::int32_t(length - 1)).to_vector();
      std::vector<std::int64_t> changed{1, kind.bucket_size - 1, kind.bucket_size, length / 2, length - 1};
      for (double place : places) changed.push_back(1 + std::int64_t(place));
      for (const bool training : {false, true}) {
        const Tensor before = logits(ids, training);
        const std::size_t slot = before.bytes() / std::size_t(length);
        for (const std::int64_t j : changed) {
          Tensor other = ids.clone();
          for (std::int64_t i = j; i < length; ++i)  // all that comes later
            other.data<std::int32_t>()[i] = std::int32_t((other.data<std::int32_t>()[i] + 1 + i % 7) % kind.num_tokens);
          const Tensor after = logits(other, training);
          EXPECT_TRUE(std::equal(before.raw(), before.raw() + std::size_t(j) * slot, after.raw()))
              << "an output before " << j << " moves, simple sort net " << simple << ", " << precision.name;
          EXPECT_FALSE(std::equal(before.raw() + std::size_t(j) * slot, before.raw() + before.bytes(),
                                  after.raw() + std::size_t(j) * slot))
              << "nothing moves at all";
        }
      }
    }
  }
}

// Kinds of training that ask the pool for different things.
std::vector<std::pair<ModelConfig, TrainConfig>> kinds_of_training() {
  std::vector<std::pair<ModelConfig, TrainConfig>> kinds(5, {tiny_model(), {}});
  kinds[1].second.precision = "bf16";
  kinds[1].first.attn_dropout = kinds[1].first.ff_dropout = kinds[1].first.emb_dropout = 0.1;
  kinds[2].first.reversible = false;
  kinds[2].first.use_simple_sort_net = true;
  kinds[2].first.ff_glu = true;
  kinds[3].second.encoder_decoder = true;
  kinds[3].second.accumulate = 2;
  kinds[4].second.encoder_decoder = true;
  kinds[4].first.non_permutative = false;  // of the encoder: Gumbel-Sinkhorn
  return kinds;
}

Batch any_batch(const ModelConfig& model, const TrainConfig& train, std::uint64_t seed) {
  Batch batch = batch_of(model, 2, seed);
  if (!train.encoder_decoder) return batch;
  Tensor mask = Tensor::full(batch.inputs.shape(), 1, DType::boolean);
  for (std::int64_t i = 0; i < 5; ++i) mask.data<bool>()[i] = false;
  batch.mask = batch.counted = mask;
  batch.source = {batch.inputs, mask};
  return batch;
}

// The first step of a shape is plain launches, the second is recorded, others are replayed.
TEST(DeviceModel, AStepAsAGraphHasTheBitsOfPlainLaunches) {
  SINKHORN_NEEDS_DEVICE();
  std::vector<std::pair<ModelConfig, TrainConfig>> kinds = kinds_of_training();
  if (testing::is_emulated())
    kinds = {kinds[1], kinds[3]};          // bf16 with every dropout, reversible; a pair, accumulating
  ModelConfig with_memory = tiny_model();  // whose values learn at a rate of their own
  with_memory.pkm_layers = {2};
  with_memory.pkm_num_keys = with_memory.pkm_topk = with_memory.pkm_dim_head = 4;
  with_memory.weight_tie = true;
  kinds.emplace_back(with_memory, TrainConfig{});
  for (const auto& kind : kinds) {
    const ModelConfig& model = kind.first;
    TrainConfig train = kind.second;
    train.steps = 6;
    train.clip_norm = 0.5;
    const auto next = [&](std::int64_t step) {
      return [&, step](std::int64_t micro) { return any_batch(model, train, std::uint64_t(10 * step + micro)); };
    };
    Trainer recorded(model, train, Device::cuda), plain(model, train, Device::cuda);
    for (int step = 0; step < 3; ++step) {
      const StepResult one = recorded.step(next(step));
      const testing::WithoutGraphs without;
      const StepResult other = plain.step(next(step));
      EXPECT_EQ(one.loss, other.loss) << "step " << step;
      EXPECT_EQ(one.gradient_norm, other.gradient_norm) << "step " << step;
      if (step != 1) continue;
      const Batch unseen = any_batch(model, train, 7);
      EXPECT_EQ(recorded.evaluate(unseen), plain.evaluate(unseen)) << "in the memory of the recorded step";
    }
    EXPECT_EQ(recorded.recordings(), 1);
    EXPECT_EQ(plain.recordings(), 0);
    for (const Tensor FlatParameters::*part :
         {&FlatParameters::values, &FlatParameters::first_moment, &FlatParameters::second_moment})
      EXPECT_TRUE(equal_bits(recorded.parameters().*part, plain.parameters().*part)) << train.precision;
  }
}

// Layers that a step skips are parts of its graph, and a run that goes on elsewhere skips the same ones.
TEST(DeviceModel, AGraphLeavesOutTheLayersThatAStepSkips) {
  SINKHORN_NEEDS_DEVICE();
  ModelConfig alone = tiny_model();
  alone.depth = 3;
  alone.dim = 8;
  alone.heads = 4;
  alone.n_local_attn_heads = alone.head_groups = 2;
  alone.causal = false;
  alone.n_sortcut = 2;
  alone.ff_glu = alone.weight_tie = true;
  alone.layer_dropout = 0.5;
  alone.ff_dropout = alone.attn_layer_dropout = 0.1;
  alone.pkm_layers = {2};
  alone.pkm_num_keys = alone.pkm_topk = alone.pkm_dim_head = 4;
  ModelConfig pair = tiny_model();
  pair.dim = 8;
  pair.layer_dropout = 0.5;
  TrainConfig bf16, two;
  bf16.precision = "bf16";
  two.encoder_decoder = true;
  const int steps = testing::is_emulated() ? 4 : 8;
  for (const auto& kind : {std::pair(alone, bf16), std::pair(pair, two)}) {
    const ModelConfig& model = kind.first;
    TrainConfig train = kind.second;
    train.steps = steps;
    const auto next = [&](std::int64_t step) {
      return [&, step](std::int64_t micro) { return any_batch(model, train, std::uint64_t(10 * step + micro)); };
    };
    Trainer recorded(model, train, Device::cuda), plain(model, train, Device::cuda),
        resumed(model, train, Device::cuda), here(model, train);
    const Tensor FlatParameters::*const parts[] = {&FlatParameters::values, &FlatParameters::first_moment,
                                                   &FlatParameters::second_moment};
    for (int step = 0; step < steps; ++step) {
      if (step == steps - 2) {
        for (const auto part : parts) (resumed.parameters().*part).assign(plain.parameters().*part);
        resumed.set_steps_done(step);
      }
      const StepResult cpu = here.step(next(step)), cuda = recorded.step(next(step));
      const double loss = cuda.loss, rounding = train.precision == "bf16" ? 0.1 : 1e-4;
      EXPECT_NEAR(cpu.loss, loss, rounding * loss) << "step " << step;
      EXPECT_NEAR(cpu.gradient_norm, cuda.gradient_norm, rounding * cuda.gradient_norm) << "step " << step;
      EXPECT_TRUE(step < steps - 2 || resumed.step(next(step)).loss == loss) << "step " << step << ", resumed";
      const testing::WithoutGraphs without;
      EXPECT_EQ(plain.step(next(step)).loss, loss) << "step " << step;
    }
    EXPECT_EQ(recorded.recordings(), 1);
    EXPECT_EQ(resumed.recordings(), 1);
    EXPECT_EQ(plain.recordings(), 0);
    for (const auto part : parts) {
      EXPECT_TRUE(equal_bits(recorded.parameters().*part, plain.parameters().*part)) << train.precision;
      EXPECT_TRUE(equal_bits(recorded.parameters().*part, resumed.parameters().*part)) << train.precision;
    }
  }
}

TEST(DeviceModel, AStepAsAGraphThatIsNotFiniteChangesNothing) {
  SINKHORN_NEEDS_DEVICE();
  Trainer trainer(tiny_model(), {}, Device::cuda), spared(tiny_model(), {}, Device::cuda);
  const auto next = [&](std::uint64_t seed) {
    return [seed](std::int64_t) { return batch_of(tiny_model(), 2, seed); };
  };
  for (std::uint64_t step = 1; step < 4; ++step) trainer.step(next(step)), spared.step(next(step));
  EXPECT_EQ(trainer.recordings(), 1);
  const Tensor& norm = trainer.parameters().find("norm.weight")->parameter->value;
  const Tensor good = norm.clone();
  norm.slice(3, 4).fill(std::numeric_limits<double>::quiet_NaN());
  const FlatParameters& all = trainer.parameters();
  const Tensors before{all.values.clone(), all.first_moment.clone(), all.second_moment.clone()};
  testing::expect_error<NonFinite>([&] { trainer.step(next(4)); }, {"step 4", "loss", "layer_norm", "norm.weight"});
  EXPECT_TRUE(equal_bits(all.values, before[0]));
  EXPECT_TRUE(equal_bits(all.first_moment, before[1]));
  EXPECT_TRUE(equal_bits(all.second_moment, before[2]));
  norm.assign(good);
  EXPECT_EQ(trainer.step(next(4)).loss, spared.step(next(4)).loss);
  EXPECT_TRUE(equal_bits(all.values, spared.parameters().values));
}

TEST(DeviceModel, RecordsWhatIsTheSameInEveryStepAlone) {
  SINKHORN_NEEDS_DEVICE();
  const auto recordings = [](const ModelConfig& model, const TrainConfig& train, auto rows_of) {
    Trainer trainer(model, train, Device::cuda);
    for (std::uint64_t step = 0; step < 6; ++step)
      trainer.step([&](std::int64_t) { return batch_of(model, rows_of(step), step); });
    return trainer.recordings();
  };
  ModelConfig model = tiny_model();
  model.depth = 1;
  EXPECT_EQ(recordings(model, {}, [](std::uint64_t step) { return 1 + std::int64_t(step % 2); }), 2) << "one a shape";
  EXPECT_EQ(recordings(model, {}, [](std::uint64_t step) { return 1 + std::int64_t(step); }), 0) << "each seen once";
  model.layer_dropout = 0.1;
  EXPECT_EQ(recordings(model, {}, [](std::uint64_t) { return 1; }), 1);
  model.reversible = false;
  EXPECT_EQ(recordings(model, {}, [](std::uint64_t) { return 1; }), 0) << "the host chooses layers";
  Trainer trainer(tiny_model(), {}, Device::cuda);
  EXPECT_TRUE(trainer.may_record(batch_of(tiny_model(), 2)));
  TrainConfig long_step;
  long_step.accumulate = 1000000000;
  EXPECT_FALSE(Trainer(tiny_model(), long_step, Device::cuda).may_record(batch_of(tiny_model(), 2)))
      << "launches are a small part of its time";
}

TEST(DevicePool, AsksForNothingFromTheSecondTrainingStepOn) {
  SINKHORN_NEEDS_DEVICE();
  const auto asked = [] { return Pool::of(Device::cuda).stats().system_allocations; };
  for (const auto& kind : kinds_of_training()) {
    const ModelConfig& model = kind.first;
    const TrainConfig& train = kind.second;
    Pool::of(Device::cuda).release();
    Trainer trainer(model, train, Device::cuda);
    std::uint64_t seed = 0;
    const auto next = [&](std::int64_t) { return any_batch(model, train, ++seed); };
    const std::size_t before = asked();
    trainer.step(next);
    const std::size_t first = asked();
    EXPECT_GT(first, before);
    for (int step = 0; step < (testing::is_emulated() ? 2 : 5); ++step) trainer.step(next);
    EXPECT_EQ(asked(), first) << "precision " << train.precision << ", encoder-decoder " << train.encoder_decoder;
  }
}

TEST(DevicePool, AsksForNothingInTheSecondGeneration) {
  SINKHORN_NEEDS_DEVICE();
  ModelConfig config = tiny_model();
  SinkhornTransformerLM model(config, Rng(3));
  move_to(Device::cuda, model);
  Pool::of(Device::cuda).release();
  const auto asked = [] { return Pool::of(Device::cuda).stats().system_allocations; };
  const std::vector<std::vector<std::int32_t>> prompts{{1, 2, 3}, {4, 5, 6, 7, 8}};
  generate(model, prompts, 14, {}, Rng(5));  // beyond the longest sequence
  const std::size_t first = asked();
  EXPECT_GT(first, 0u);
  for (std::uint64_t key = 6; key < 9; ++key) generate(model, prompts, 14, {}, Rng(key));
  EXPECT_EQ(asked(), first);
}

// Choices, noise, dropout and masks are made on the device: between the ids and the loss nothing crosses.
TEST(DeviceModel, CopiesNothingBetweenHostAndDeviceWithinAPass) {
  SINKHORN_NEEDS_DEVICE();
  const auto crossed = [] { return Memory::transfers().uploads + Memory::transfers().downloads; };
  for (auto [config, train] : kinds_of_training()) {
    for (const bool masked : {false, true}) {
      SequenceModel model(config, train.encoder_decoder, Rng(3));
      move_to(Device::cuda, model);
      Batch batch = any_batch(config, train, 1);
      if (masked) batch.mask = batch.counted = Draw(Rng(4)).mask(batch.inputs.shape());
      batch = batch.to(Device::cuda);
      Scope scope{.tape = Tape::record(true), .rng = Rng(7), .training = true};
      if (train.precision == "bf16") scope.compute = DType::bf16;
      const auto before = crossed();
      const Var loss = model.loss(scope, batch);
      scope.tape.backward(loss, Tensor::full({}, 1, DType::f32, Device::cuda));
      EXPECT_EQ(crossed(), before) << "precision " << train.precision << ", encoder-decoder " << train.encoder_decoder
                                   << ", masked " << masked;
    }
  }
  const auto before = crossed();
  Tensor::zeros({2}).to(Device::cuda).to(Device::cpu);
  EXPECT_EQ(crossed(), before + 2) << "the counter counts";
}

// Of the inside of a feed-forward a tape that lasts keeps the first product alone, and what backward makes again are
// the same bits, with dropout, too. A reversible chain goes back at once and keeps both.
TEST(OnTheDevice, FeedForwardKeepsWhatItCannotMakeAgain) {
  SINKHORN_NEEDS_DEVICE();
  const Tensor x = uniform(Rng(1), {40, 8}, -1, 1).to(Device::cuda),
               onto = uniform(Rng(2), {40, 8}, -1, 1).to(Device::cuda);
  for (const bool gated : {false, true}) {
    Initializer init(Rng(3), DType::f32);
    FeedForward layer(8, gated, 0.2, 1, init);
    move_to(Device::cuda, layer);
    const auto run = [&](bool undo) {
      const Tape tape = Tape::record();
      const Var in = tape.leaf(x);
      const Scope scope{.tape = tape, .rng = Rng(4), .training = true};
      const Var y = layer(scope, in, {.onto = onto, .undo = undo});
      const std::size_t kept = tape.nodes().back().kept_bytes;
      const Gradients gradients = tape.backward(y, onto);
      return std::tuple(kept, gradients.of(in), gradients.of(layer.w1.weight), gradients.of(layer.w2.weight));
    };
    const auto [kept, dx, dw1, dw2] = run(false);
    const auto [kept_at_once, dx_at_once, dw1_at_once, dw2_at_once] = run(true);
    EXPECT_EQ(kept_at_once - kept, 40u * 32 * sizeof(float));
    EXPECT_TRUE(equal_bits(dx, dx_at_once));
    EXPECT_TRUE(equal_bits(dw1, dw1_at_once));
    EXPECT_TRUE(equal_bits(dw2, dw2_at_once));
  }
}

TEST(OnTheDevice, ChoicesAndNoiseAreThoseOfTheCpu) {
  SINKHORN_NEEDS_DEVICE();
  Draw draw(Rng(3));
  for (const auto& [batch, heads, buckets, bucket, n_top] :
       {std::tuple<int, int, int, int, int>{1, 1, 1, 1, 1}, {2, 3, 5, 4, 2}, {3, 2, 7, 3, 3}, {2, 4, 33, 8, 2}}) {
    const Tensor mask = draw.mask({batch, buckets * bucket});
    for (const Tensor& given : {Tensor(), mask, Tensor::zeros(mask.shape(), DType::boolean)}) {
      const Tensor there = causal_choices(batch, heads, buckets, bucket, n_top, given, Device::cuda);
      EXPECT_EQ(there.device(), Device::cuda);
      EXPECT_TRUE(equal_bits(there, causal_choices(batch, heads, buckets, bucket, n_top, given)));
      EXPECT_TRUE(equal_bits(buckets_with_tokens(batch, buckets * bucket, bucket, given, Device::cuda),
                             buckets_with_tokens(batch, buckets * bucket, bucket, given)));
    }
  }
  const Rng stream = Rng(4).split(9);
  for (std::int64_t count : {0, 1, 5, 70003}) {
    const std::vector<double> f64 = gumbel(stream, {count}, DType::f64).to_vector(),
                              there = gumbel(stream, {count}, DType::f64, Device::cuda).to_vector();
    for (std::size_t i = 0; i < f64.size(); ++i) ASSERT_NEAR(there[i], f64[i], 1e-12) << i;
    for (DType dtype : {DType::f32, DType::bf16}) {
      const Tensor on_device = gumbel(stream, {count}, dtype, Device::cuda);
      EXPECT_LE(testing::squared_error(on_device, gumbel(stream, {count}, DType::f64)), testing::limit_of(dtype));
    }
  }
}

// What a checkpoint holds suffices on the same device, to the bit, and on the other.
TEST(DeviceModel, GoesOnFromACheckpointOnEitherDevice) {
  SINKHORN_NEEDS_DEVICE();
  const testing::TemporaryFolder folder;
  ModelConfig model = tiny_model();
  TrainConfig train;
  train.steps = 8;
  train.preset = "cpu-small";  // as every run has one
  const auto next = [&](std::int64_t step) {
    return [&model, step](std::int64_t) { return batch_of(model, 2, std::uint64_t(step)); };
  };
  for (const Device from : {Device::cuda, Device::cpu}) {
    Trainer first(model, train, from);
    for (int step = 1; step <= 4; ++step) first.step(next(step));
    RunRecord record;
    record.model = model;
    record.train = train;
    record.tokenizer = Tokenizer::characters("abcdefghijk");
    record.step = first.steps_done();
    const std::filesystem::path path = folder.path / "checkpoint.safetensors";
    safetensors::write(path, to_metadata(record, first.rng_key(), ""), checkpoint_items(first));
    const safetensors::File file = safetensors::read(path);
    Trainer same(model, train, from), other(model, train, from == Device::cpu ? Device::cuda : Device::cpu);
    load_checkpoint(file, read_record(file), same);
    load_checkpoint(file, read_record(file), other);
    for (int step = 5; step <= 8; ++step) {
      const StepResult went_on = first.step(next(step)), resumed = same.step(next(step)),
                       moved = other.step(next(step));
      EXPECT_EQ(went_on.loss, resumed.loss);
      EXPECT_NEAR(went_on.loss, moved.loss, 1e-4 * went_on.loss) << "step " << step;
    }
    EXPECT_TRUE(equal_bits(first.parameters().values, same.parameters().values));
    EXPECT_TRUE(equal_bits(first.parameters().second_moment, same.parameters().second_moment));
    std::filesystem::remove(path);
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

// Three rows of unequal lengths grow across the borders of their buckets, all or some of them in a step.
TEST(DeviceModel, ATokenAsAGraphHasTheBitsOfPlainLaunches) {
  SINKHORN_NEEDS_DEVICE();
  for (const bool with_context : {false, true}) {
    ModelConfig config = tiny_model();
    config.heads = 4;
    config.receives_context = with_context;
    SinkhornTransformerLM model(config, Rng(3));
    move_to(Device::cuda, model);
    AttentionContext around;
    if (with_context) around.context = uniform(Rng(4), {3, 6, config.dim}, -1, 1).to(Device::cuda);
    const auto logits = [&] {
      IncrementalDecoder decoder(model, 3, 0, around);
      const std::vector<std::vector<std::int32_t>> all{{1}, {4, 5, 6}, {7, 8, 9, 10, 1}};
      Tensors made{decoder.prefill(std::vector<std::int32_t>{0, 1, 2}, all)};
      for (std::int32_t i = 0; i < 10; ++i) {
        const std::vector<std::int32_t> rows = i % 3 == 1 ? std::vector<std::int32_t>{2, 0} : std::vector{0, 1, 2};
        const std::int64_t before = Memory::transfers().uploads;
        made.push_back(decoder.step(rows, std::vector<std::int32_t>(rows.size(), i)));
        EXPECT_EQ(Memory::transfers().uploads - before, 1) << "all that is new comes in one copy";
      }
      return made;
    };
    const Tensors recorded = logits();
    const testing::WithoutGraphs plain;
    for (std::size_t i = 0; const Tensor& of_step : logits()) {
      EXPECT_TRUE(equal_bits(recorded[i], of_step)) << "step " << i << ", context " << with_context;
      ++i;
    }
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
