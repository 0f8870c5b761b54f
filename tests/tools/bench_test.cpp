// The benchmark: what it counts, that it times nothing wrong, and what it prints. Nothing here depends on how fast the
// machine is.
#include "tools/bench.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "cuda/timer.h"
#include "tests/cuda/agreement.h"
#include "tests/shared.h"
#include "tools/bench_check.h"
#include "tools/cli.h"
#include "tools/planted_attention.h"
#include "tools/read_file.h"
#include "tools/sequence_model.h"

namespace sinkhorn {
namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// --- operations ---------------------------------------------------------------------------------------------------

/// Multiply-adds of every matrix product on a tape: in forward, and of the flows that backward made.
struct Counted {
  double forward = 0, backward = 0;
};

class ProductCounter {
 public:
  explicit ProductCounter(const Tape& tape) : tape_(tape) {
    tape.watch([this](const TapeEvent& event) {
      if (event.op != "linear" && event.op != "linear_gelu" && event.op != "matmul" &&
          event.op != "linear_cross_entropy")
        return;
      if (event.kind == TapeEvent::Kind::value) products_.push_back(event.node);
      if (event.kind == TapeEvent::Kind::flow && event.input < 2) flows_.push_back(event.node);
    });
  }
  Counted count() const {
    const std::vector<NodeInfo> nodes = tape_.nodes();
    const auto multiply_adds = [&](int at) {
      const NodeInfo& node = nodes[std::size_t(at)];
      const Shape y = node.shape, a = nodes[std::size_t(node.inputs.at(0))].shape;
      if (y.rank() == 0)  // the loss, of (..., k) x (n, k) transposed
        return double(a.count() * nodes[std::size_t(node.inputs.at(1))].shape[0]);
      return double(a.count() * y[-1]);  // (..., m, k) x (..., k, n), or the first transposed
    };
    Counted counted;
    for (const int node : products_) counted.forward += multiply_adds(node);
    for (const int node : flows_) counted.backward += multiply_adds(node);
    return counted;
  }

 private:
  Tape tape_;
  std::vector<int> products_, flows_;
};

/// A model of small ops that keeps all activations, so that every product it makes is on the tape.
Counted counted_products(const ModelConfig& config, std::int64_t batch, std::int64_t length, std::int64_t context) {
  SinkhornTransformerLM model(config);
  model.stack().use_composed_attention(true);
  model.stack().keep_activations(true);
  const Scope scope{.tape = Tape::record()};
  const ProductCounter counter(scope.tape);
  AttentionContext around;
  if (context > 0) around.context = scope.tape.leaf(normal(Rng(3), {batch, context, config.dim}, 0, 1));
  const Tensor ids = integers(Rng(1), {batch, length}, std::int32_t(config.num_tokens));
  scope.tape.backward(config.return_embeddings ? sum(model(scope, ids, around))
                                               : next_token_loss(model, scope, ids, ids, {}, around).loss);
  return counter.count();
}

ModelConfig small_model() {
  return {.num_tokens = 13,
          .dim = 24,
          .depth = 2,
          .max_seq_len = 48,
          .heads = 4,
          .dim_head = 5,
          .bucket_size = 8,
          .causal = true,
          .emb_dim = 10,
          .n_local_attn_heads = 2,
          .n_top_buckets = 2};
}

TEST(Flops, AreTheProductsThatRun) {
  struct Point {
    std::string name;
    std::function<void(ModelConfig&)> change;
    std::int64_t context = 0;
  };
  const auto both_ways = [](ModelConfig& c) { c.causal = false; };
  const std::vector<Point> points = {
      {"causal", [](ModelConfig&) {}},
      {"reversible", [](ModelConfig& c) { c.reversible = true, c.ff_chunks = 3; }},
      {"no local heads, no projections", [](ModelConfig& c) { c.n_local_attn_heads = 0, c.emb_dim = {}; }},
      {"local heads alone", [](ModelConfig& c) { c.n_local_attn_heads = 4; }},
      {"gated, tied", [](ModelConfig& c) { c.ff_glu = c.weight_tie = true; }},
      {"many picks", [](ModelConfig& c) { c.n_top_buckets = 9; }},
      {"simple sort net", [](ModelConfig& c) { c.use_simple_sort_net = true; }},
      {"memory", [](ModelConfig& c) { c.pkm_layers = {2}, c.pkm_num_keys = 7, c.pkm_dim_head = 6, c.pkm_topk = 3; }},
      {"embeddings", [](ModelConfig& c) { c.return_embeddings = true; }},
      {"both ways", both_ways},
      {"both ways, many picks", [](ModelConfig& c) { c.causal = false, c.n_top_buckets = 9; }},
      {"key buckets of another size", [](ModelConfig& c) { c.causal = false, c.kv_bucket_size = 4; }},
      {"SortCut", [](ModelConfig& c) { c.causal = false, c.n_sortcut = 3; }},
      {"SortCut, simple", [](ModelConfig& c) { c.causal = false, c.n_sortcut = 3, c.use_simple_sort_net = true; }},
      {"Gumbel-Sinkhorn", [](ModelConfig& c) { c.causal = c.non_permutative = false; }},
      {"Gumbel-Sinkhorn and SortCut", [](ModelConfig& c) { c.causal = c.non_permutative = false, c.n_sortcut = 3; }},
      {"context", [](ModelConfig& c) { c.receives_context = true; }, 24},
      {"context, SortCut", [](ModelConfig& c) { c.receives_context = true, c.context_n_sortcut = 2; }, 24},
      {"context, bare",
       [](ModelConfig& c) {
         c.receives_context = true, c.context_kv_projection = false, c.dim_head = {}, c.context_bucket_size = 4;
       },
       24},
  };
  for (const Point& point : points) {
    ModelConfig config = small_model();
    point.change(config);
    const Counted counted = counted_products(config, 3, 48, point.context);
    const ForwardProducts formula = forward_products(config, 3, 48, double(point.context));
    EXPECT_EQ(formula.total(), counted.forward) << point.name;
    EXPECT_EQ(2 * formula.total(), counted.backward) << point.name;
    EXPECT_LT(formula.scores, formula.layers) << point.name;
  }
}

TEST(Flops, ReversibleLayersRunTwice) {
  for (const bool reversible : {false, true}) {
    ModelConfig config = small_model();
    config.reversible = reversible;
    int sublayers = 0;
    const Observer observer = [&](std::string_view what, const Tensor&) { sublayers += what == "sublayer"; };
    const SinkhornTransformerLM model(config);
    const Scope scope{.tape = Tape::record(), .observer = &observer};
    scope.tape.backward(sum(model(scope, integers(Rng(1), {1, 48}, 13))));
    EXPECT_EQ(sublayers, 2 * config.depth * (reversible ? 2 : 1));

    const ForwardProducts forward = forward_products(config, 1, 48);
    const StepFlops step = training_flops(config, 1, 48);
    EXPECT_EQ(step.needed, 6 * forward.total());
    EXPECT_EQ(step.executed - step.needed, 2 * (forward.scores + (reversible ? forward.layers : 0)));
  }
}

TEST(Flops, OfTheEnwik8ModelAreAsCountedByHand) {
  const BenchCase at = find_bench_cases("E-B4")[0];
  const double tokens = double(at.batch * at.length);
  const StepFlops step = training_flops(at.model, double(at.batch), at.length);
  // A layer and token: 12 x 512^2 multiply-adds of projections and feed-forward; 4 heads of 256 and 4 of 384 slots, 64
  // wide, twice; 32 scores of a bucket for 4 heads.
  const double layer = 12 * 512 * 512 + 2 * 4 * (256 + 384) * 64 + 4 * 32 * 64 / 128.0;
  const double outside = 2 * 128 * 512 + 128 * 256;
  EXPECT_DOUBLE_EQ(step.needed / tokens, 6 * (8 * layer + outside));
  EXPECT_NEAR(step.executed / tokens, 226e6, 0.01 * 226e6);
  EXPECT_NEAR(training_flops(find_bench_cases("cpu")[0].model, 8, 512).needed / (8 * 512), 5.4e6, 0.3e6);
}

TEST(Flops, LengthsAreWholeBuckets) {
  const ModelConfig config = small_model();
  EXPECT_EQ(padded_length(config, 33), 40);
  EXPECT_EQ(training_flops(config, 1, 33).needed, training_flops(config, 1, 40).needed);
  ModelConfig simple = config;
  simple.causal = false;
  simple.use_simple_sort_net = true;
  EXPECT_EQ(padded_length(simple, 8), 48);
}

TEST(Flops, LayerDropoutLeavesOutItsShare) {
  ModelConfig config = small_model();
  const double all = forward_products(config, 1, 48).layers;
  config.layer_dropout = 0.25;
  EXPECT_DOUBLE_EQ(forward_products(config, 1, 48).layers, 0.75 * all);
}

TEST(Flops, AnEncoderAddsItsOwn) {
  ModelConfig config = small_model();
  config.emb_dim = {};
  const auto [encoder, decoder] = encoder_and_decoder(config);
  const double alone = 6 * (forward_products(encoder, 2, 24).total() + forward_products(decoder, 2, 48, 24).total());
  EXPECT_EQ(training_flops(config, 2, 48, 24).needed, alone);
}

TEST(Flops, ATokenOfGenerationIsOneOfTheForward) {
  ModelConfig config = small_model();
  config.n_local_attn_heads = 4;  // no sort net, whose share of a token depends on the length
  EXPECT_DOUBLE_EQ(generation_flops(config, 47), 2 * forward_products(config, 1, 48).total() / 48);
}

// --- cases --------------------------------------------------------------------------------------------------------

TEST(BenchCases, AreNamedOnceAndValid) {
  std::set<std::string> names;
  for (const BenchCase& at : bench_cases()) {
    EXPECT_TRUE(names.insert(at.name).second) << at.name;
    for (const BenchCase& each : {at, small_twin(at)}) {
      if (each.has_encoder()) {
        EXPECT_NO_THROW(validate(encoder_and_decoder(each.model))) << at.name;
      } else {
        EXPECT_NO_THROW(validate(each.model)) << at.name;
      }
      EXPECT_LE(each.length, each.model.max_length()) << at.name;
    }
  }
  for (const char* name :
       {"E-B4",       "E-B16",      "E-B16-kept",     "E-B4-f32",        "E-B4-tf32",   "R",         "R-kept",
        "E-T1024",    "E-T2048",    "E-T8192",        "E-T65536",        "E-T204800",   "E-T409600", "E-T819200",
        "E-T1638400", "E-T4194304", "generation-512", "generation-8000", "readme-full", "cpu"})
    EXPECT_TRUE(names.contains(name)) << name;
}

TEST(BenchCases, HaveTheSizesTheyAreKnownBy) {
  EXPECT_NEAR(find_bench_cases("R")[0].model.least_parameters(), 182e6, 1e6);
  EXPECT_NEAR(find_bench_cases("cpu")[0].model.least_parameters(), 0.83e6, 0.005e6);
  for (const char* name : {"E-T1024", "E-T2048"}) {
    const BenchCase at = find_bench_cases(name)[0];
    EXPECT_EQ(at.batch * at.length, 65536) << name;
  }
}

TEST(BenchCases, SortCutOfACausalPairIsItsEncoders) {
  const auto [encoder, decoder] = encoder_and_decoder(find_bench_cases("examples-encoder-decoder")[0].model);
  EXPECT_EQ(encoder.n_sortcut, 2);
  EXPECT_EQ(decoder.n_sortcut, 0);
  EXPECT_EQ(decoder.context_n_sortcut, 2);
}

TEST(BenchCases, AreFoundByNameAndByGroup) {
  EXPECT_EQ(find_bench_cases("R").size(), 1u);
  EXPECT_EQ(find_bench_cases("generation").size(), 3u);
  EXPECT_EQ(find_bench_cases("examples").size(), 2u);
  try {
    find_bench_cases("E-B5");
    FAIL() << "a case that does not exist was found";
  } catch (const UsageError& error) {
    EXPECT_TRUE(contains(error.what(), "did you mean E-B4?")) << error.what();
  }
}

// --- right before fast --------------------------------------------------------------------------------------------

TEST(BenchCheck, EveryCaseAgreesOnTheCpu) {
  for (const BenchCase& at : bench_cases()) {
    const BenchCheck check = check_bench_case(at, Device::cpu);
    EXPECT_TRUE(check.agrees()) << at.name << ": " << check.text();
    EXPECT_GT(check.error, 0) << at.name << ": f64 is not that close";
  }
}

TEST(DeviceBench, AgreesAndTimes) {
  SINKHORN_NEEDS_DEVICE();
  for (const char* name : {"E-B4", "generation-512", "readme-full"}) {
    const BenchCheck check = check_bench_case(find_bench_cases(name)[0], Device::cuda);
    EXPECT_TRUE(check.agrees()) << name << ": " << check.text();
  }
  MatmulCeiling ceiling(32);
  BenchSettings settings;
  settings.steps = 2;
  const BenchResult result = run_bench_case(small_twin(find_bench_cases("E-B4")[0]), Device::cuda, ceiling, settings);
  EXPECT_EQ(result.outcome, BenchOutcome::measured) << result.note;
  EXPECT_EQ(result.milliseconds.size(), 2u);
  EXPECT_GT(result.median_ms(), 0);
  EXPECT_GT(result.pool_bytes, 0u);
  EXPECT_EQ(result.driver_bytes.has_value(), !testing::is_emulated());
}

AttentionTwin planted(const char* name, double factor = 1) {
  return [attend = planted_attention(find_plant(name)), factor](
             const SinkhornAttention& layer, const Scope& scope, const Var& q, const Var& kv,
             const AttentionMasks& masks) { return scale(attend(layer, scope, q, kv, masks), factor); };
}

BenchCase tiny_training() {
  BenchCase at = small_twin(find_bench_cases("cpu")[0]);
  at.name = "tiny";
  return at;
}

TEST(BenchCheck, RefusesToTimeWhatIsWrong) {
  MatmulCeiling ceiling(16);
  BenchSettings settings;
  settings.steps = 1;
  const auto run_with = [&](const BenchCase& at, const BenchTamper& tamper) {
    settings.tamper = tamper;
    return run_bench_case(at, Device::cpu, ceiling, settings);
  };
  const auto attention = [](const AttentionTwin& twin) {
    return [twin](SinkhornTransformerLM& model) { model.stack().use_attention_twin(twin); };
  };
  const BenchTamper norms = [](SinkhornTransformerLM& model) {
    for_each_parameter(model, [](const std::string& name, Parameter& parameter) {
      if (name == "norm.weight") parameter.value.fill(1.05);
    });
  };
  BenchCase generating = small_twin(find_bench_cases("cpu-generation")[0]);
  generating.model.max_seq_len = 96;
  EXPECT_EQ(run_with(tiny_training(), attention(planted("none"))).outcome, BenchOutcome::measured)
      << "other ops, same numbers";
  EXPECT_EQ(run_with(generating, {}).outcome, BenchOutcome::measured);
  for (const BenchResult& result :
       {run_with(tiny_training(), attention(planted("none", 1.05))), run_with(tiny_training(), norms),
        run_with(tiny_training(), attention(planted("no-triangle"))), run_with(generating, norms)}) {
    EXPECT_EQ(result.outcome, BenchOutcome::disagrees);
    EXPECT_TRUE(result.milliseconds.empty());
    EXPECT_TRUE(contains(result.note, " off by ")) << result.note;
    EXPECT_EQ(exit_code_of({result}), 1);
  }
}

// Right in f32, wrong in bf16 alone.
TEST(BenchCheck, LowerPrecisionHasToAgreeToo) {
  BenchCase mixed = tiny_training();
  mixed.precision = "bf16";
  EXPECT_TRUE(check_bench_case(mixed, Device::cpu).agrees());
  const BenchCheck check = check_bench_case(mixed, Device::cpu, [](SinkhornTransformerLM& model) {
    model.stack().use_attention_twin([](const SinkhornAttention& layer, const Scope& scope, const Var& q, const Var& kv,
                                        const AttentionMasks& masks) {
      return q.value.dtype() == DType::bf16 ? q : planted("none")(layer, scope, q, kv, masks);
    });
  });
  EXPECT_FALSE(check.agrees());
  EXPECT_GT(check.limit, 1e-3) << "it was bf16 that did not agree";
}

TEST(BenchCheck, NanDoesNotPass) {
  BenchCheck check;
  check.limit = check.loss_limit = 1;
  EXPECT_TRUE(check.agrees());
  check.error = NAN;
  EXPECT_FALSE(check.agrees());
  check.error = 0;
  check.loss_error = NAN;
  EXPECT_FALSE(check.agrees());
  EXPECT_TRUE(contains(check.text(), "the loss"));
}

// --- timing -------------------------------------------------------------------------------------------------------

TEST(Bench, QuantilesLieBetweenTheirNeighbours) {
  EXPECT_EQ(quantile({3, 1, 2}), 2);
  EXPECT_EQ(quantile({4, 1, 3, 2}), 2.5);
  EXPECT_EQ(quantile({5, 1, 2, 4, 3}, 0.25), 2);
  EXPECT_EQ(quantile({7}, 0.75), 7);
  EXPECT_THROW(quantile({}), Error);
}

TEST(Bench, FiguresFollowFromSamples) {
  BenchResult r;
  r.milliseconds = {20, 10, 30, 40, 50};
  r.tokens = 60;
  r.flops = {6e9, 9e9};
  r.peak = 1e12;
  r.ceiling = 5e11;
  EXPECT_EQ(r.median_ms(), 30);
  EXPECT_DOUBLE_EQ(r.spread(), 10 / 30.0);
  EXPECT_DOUBLE_EQ(r.tokens_per_second(), 2000);
  EXPECT_DOUBLE_EQ(r.mfu(), 0.2);
  EXPECT_DOUBLE_EQ(r.hfu(), 0.3);
  EXPECT_DOUBLE_EQ(r.mfu_of_ceiling(), 0.4);
  EXPECT_DOUBLE_EQ(r.hfu_of_ceiling(), 0.6);
}

TEST(Bench, TakesTheStepsItWasAskedFor) {
  MatmulCeiling ceiling(16);
  BenchSettings settings;
  settings.steps = 4;
  std::vector<std::string> said;
  settings.progress = [&](const std::string& doing) { said.push_back(doing); };
  settings.slow_step_ms = 1e9;
  const BenchCase at = tiny_training();
  const BenchResult result = run_bench_case(at, Device::cpu, ceiling, settings);
  EXPECT_EQ(result.outcome, BenchOutcome::measured);
  EXPECT_EQ(result.milliseconds.size(), 4u);
  EXPECT_EQ(result.warmup_steps, 3);
  EXPECT_EQ(result.tokens, at.batch * at.length);
  EXPECT_TRUE(std::isfinite(result.last_loss));
  EXPECT_LT(result.last_loss, result.first_loss) << "seven steps on one batch";
  EXPECT_EQ(result.peak, result.ceiling);
  EXPECT_EQ(result.flops.needed, training_flops(at.model, double(at.batch), at.length).needed);
  EXPECT_GE(result.pool_bytes, std::size_t(result.parameters) * 16);  // values, gradients and both moments
  EXPECT_FALSE(result.driver_bytes);
  EXPECT_TRUE(result.note.empty()) << result.note;
  ASSERT_EQ(said.size(), 3u);
  EXPECT_EQ(said[2], "tiny: timing 4 steps");

  settings.slow_step_ms = 0;  // every step is slow
  const BenchResult slow = run_bench_case(at, Device::cpu, ceiling, settings);
  EXPECT_EQ(slow.milliseconds.size(), 3u);
  EXPECT_EQ(slow.warmup_steps, 2);
  EXPECT_TRUE(contains(slow.note, "3 samples")) << slow.note;
  EXPECT_EQ(ceiling.figures().size(), 1u) << "measured once";
}

TEST(Bench, TimesAttentionByItself) {
  BenchCase at = small_twin(find_bench_cases("E-B16")[0]);
  EXPECT_TRUE(find_bench_cases("E-B16")[0].attention_alone);
  const AttentionSpeed speed = measure_attention(at, Device::cpu);
  EXPECT_EQ(speed.name, at.name);
  EXPECT_EQ(speed.precision, "bf16");
  for (const double each : {speed.forward, speed.recorded, speed.backward}) {
    EXPECT_GT(each, 1e3);
    EXPECT_LT(each, 1e15);
  }
}

TEST(Bench, GeneratesBehindItsContext) {
  MatmulCeiling ceiling(16);
  BenchSettings settings;
  settings.steps = 2;
  settings.slow_step_ms = 1e9;
  BenchCase at = small_twin(find_bench_cases("cpu-generation")[0]);
  at.model.max_seq_len = 96;
  at.length = 40;
  const BenchResult result = run_bench_case(at, Device::cpu, ceiling, settings);
  EXPECT_EQ(result.outcome, BenchOutcome::measured) << result.note;
  EXPECT_EQ(result.milliseconds.size(), 2u);
  EXPECT_EQ(result.tokens, 16);
  settings.steps = 100;
  const BenchResult full = run_bench_case(at, Device::cpu, ceiling, settings);
  EXPECT_EQ(full.milliseconds.size(), 2u) << "(96 - 40) / 16 = 3, of which the first warms up";
  EXPECT_TRUE(contains(full.note, "2 samples")) << full.note;
}

TEST(Bench, TheTimerRunsOnEveryDevice) {
  for (const Device device : {Device::cpu, Device::cuda}) {
    if (device == Device::cuda && !cuda::is_usable()) continue;
    cuda::Timer timer(device);
    timer.start();
    const Tensor x = Tensor::full({64}, 1, DType::f32, device);
    EXPECT_GE(timer.stop(), 0);
  }
}

TEST(Bench, RunningOutOfMemoryIsAnOutcome) {
  MatmulCeiling ceiling(16);
  BenchCase at = tiny_training();
  const BenchCase fits = at;
  BenchResult other = run_bench_case(fits, Device::cpu, ceiling, {.steps = 1});
  at.model.dim = 1 << 20;
  at.model.depth = 512;
  // The small twin of this one fits.
  const BenchResult result = run_bench_case(at, Device::cpu, ceiling, {.steps = 1});
  EXPECT_EQ(result.outcome, BenchOutcome::out_of_memory);
  EXPECT_TRUE(contains(result.note, "out of memory")) << result.note;
  EXPECT_EQ(exit_code_of({result}), 4);
  EXPECT_EQ(exit_code_of({result, other}), 0) << "the rest goes on";
  const std::string table = bench_table({.machine = {}, .results = {other, result}});
  EXPECT_TRUE(contains(table, "out of memory")) << table;
}

TEST(Bench, ExitCodesSayWhatWentWrong) {
  BenchResult good, wrong, runaway;
  wrong.outcome = BenchOutcome::disagrees;
  runaway.outcome = BenchOutcome::non_finite;
  EXPECT_EQ(exit_code_of({good, good}), 0);
  EXPECT_EQ(exit_code_of({good, wrong}), 1);
  EXPECT_EQ(exit_code_of({runaway}), 5);
  EXPECT_EQ(exit_code_of({good, runaway}), 1);
}

// --- reports ------------------------------------------------------------------------------------------------------

BenchResult made_up(const std::string& name, double ms, const std::string& precision = "bf16") {
  BenchResult r;
  r.at = find_bench_cases(name)[0];
  r.at.precision = precision;
  r.milliseconds = {ms, ms * 1.5, ms * 0.5};
  r.tokens = 1000;
  r.flops = {1e9, 2e9};
  r.peak = 989e12;
  r.ceiling = 700e12;
  r.pool_bytes = std::size_t(3) << 29;
  r.first_loss = 5;
  r.last_loss = 4;
  return r;
}

BenchReport made_up_report() {
  BenchResult full = made_up("R", 1);
  full.outcome = BenchOutcome::out_of_memory;
  full.milliseconds.clear();
  full.note = "memory: 99 GiB asked for";
  return {{"Some GPU", "13.0", "13.0", "2026-02-03T04:05:06Z", "0123456789ab", "GNU 12", 2},
          {{Device::cuda, "bf16", 8192, 7e14}},
          {{"E-B16", Device::cuda, "bf16", 3e14, 2.5e14, 2.25e14}},
          {made_up("E-B4", 10), made_up("E-B16", 4), full},
          {}};
}

TEST(BenchReport, JsonHoldsAllAndIsReadBack) {
  const BenchReport report = made_up_report();
  const nlohmann::json json = nlohmann::json::parse(bench_json(report));
  EXPECT_EQ(json["device"], "Some GPU");
  EXPECT_EQ(json["commit"], "0123456789ab");
  EXPECT_EQ(json["matmul"][0]["flops_per_second"], 7e14);
  EXPECT_EQ(json["attention"][0]["backward_flops_per_second"], 2.25e14);
  EXPECT_TRUE(contains(bench_markdown(report),
                       "attention of E-B16 by itself on cuda, bf16, over full tiles: 300 "
                       "TFLOP/s forward, 250 as training records it, 225 backward"));
  EXPECT_EQ(json["cases"][0]["samples_ms"], (std::vector<double>{10, 15, 5}));
  EXPECT_EQ(json["cases"][0]["median_ms"], 10);
  EXPECT_EQ(json["cases"][0]["pool_peak_bytes"], std::size_t(3) << 29);
  EXPECT_TRUE(json["cases"][0]["gpu_bytes_in_use"].is_null());
  EXPECT_EQ(json["cases"][2]["outcome"], "out of memory");
  EXPECT_FALSE(json["cases"][2].contains("median_ms"));

  const EarlierBench earlier = earlier_bench_from_json(bench_json(report), "old.json");
  EXPECT_EQ(earlier.device, "Some GPU");
  EXPECT_EQ(earlier.date, "2026-02-03T04:05:06Z");
  ASSERT_EQ(earlier.cases.size(), 2u);
  EXPECT_DOUBLE_EQ(earlier.cases.at("E-B4").tokens_per_second, 1e5);
}

TEST(BenchReport, ComparesSpeedCaseByCase) {
  const EarlierBench earlier = earlier_bench_from_json(bench_json(made_up_report()), "old.json");
  EXPECT_DOUBLE_EQ(*speed_ratio(made_up("E-B4", 5), earlier), 2);
  EXPECT_DOUBLE_EQ(*speed_ratio(made_up("E-B16", 16), earlier), 0.25);
  EXPECT_FALSE(speed_ratio(made_up("E-B4", 5, "f32"), earlier)) << "another precision";
  EXPECT_FALSE(speed_ratio(made_up("cpu", 5), earlier)) << "not there";
  EXPECT_FALSE(speed_ratio(made_up("R", 5), earlier)) << "ran out of memory then";

  BenchReport now = made_up_report();
  now.results = {made_up("E-B4", 5), made_up("E-B16", 16, "f32"), made_up("cpu", 5)};
  const std::string same = bench_table(now, earlier);
  EXPECT_TRUE(contains(same, "2.00x")) << same;
  EXPECT_TRUE(contains(same, "was bf16")) << same;
  EXPECT_FALSE(contains(same, "warning")) << same;
  now.machine.device = "Other GPU";
  EXPECT_TRUE(contains(bench_table(now, earlier), "warning: that was another device (Some GPU)"));
}

TEST(BenchReport, TableAndMarkdownShowWhatWasMeasured) {
  BenchReport report = made_up_report();
  report.skipped = {"E-T1024"};
  const std::string table = bench_table(report);
  for (const char* part : {"Some GPU", "commit 0123456789ab", "100,000", "10.0", "1.50", "0.0/0.0", "out of memory",
                           "R: memory: 99 GiB asked for", "skipped, since they need a GPU: E-T1024",
                           "matmul on cuda, bf16 8192^3: 700 TFLOP/s", "989 TFLOP/s"})
    EXPECT_TRUE(contains(table, part)) << part << "\n" << table;

  report.results[0].at.others = {10000, 50000};
  const std::string page = bench_markdown(report);
  EXPECT_TRUE(contains(page, " 10,000 (10x) | 50,000 (2x) |")) << page;
  EXPECT_TRUE(contains(page, "- package: tokens a second of sinkhorn_transformer 0.11.4")) << page;
  std::istringstream lines(page);
  std::string line;
  std::getline(lines, line);
  EXPECT_TRUE(line.starts_with("Some GPU, 2026-02-03, commit 0123456789ab; ")) << line;
  int rows = 0;
  std::set<std::ptrdiff_t> bars;
  while (std::getline(lines, line)) {
    if (!line.starts_with("|")) continue;
    ++rows;
    bars.insert(std::count(line.begin(), line.end(), '|'));
  }
  EXPECT_EQ(rows, 5);
  EXPECT_EQ(bars.size(), 1u) << "every row has as many columns";
}

TEST(BenchReport, KnowsTheCommitOfSourcesWithoutGit) {
  const testing::TemporaryFolder place;
  EXPECT_EQ(commit_of(place.path), "unknown");
  const auto noted = [&](const std::string& text) {
    std::ofstream(place.path / ".commit") << text << "\n";
    return commit_of(place.path);
  };
  EXPECT_EQ(noted("$Format:%h$"), "unknown") << "in a checkout, the file says no more";
  EXPECT_EQ(noted("0123456789ab"), "0123456789ab") << "git archive writes it";
}

TEST(BenchReport, ATableGoesBetweenAPagesMarks) {
  const std::string page = "# Page\n<!-- bench -->\nold\n<!-- /bench -->\nend\n";
  const std::string once = page_with_table(page, "new\n", "page.md");
  EXPECT_EQ(once, "# Page\n<!-- bench -->\n\nnew\n\n<!-- /bench -->\nend\n");
  EXPECT_EQ(page_with_table(once, "new\n", "page.md"), once) << "and again";
  const std::vector<std::string> pages{"# Page\n", "<!-- /bench -->\n<!-- bench -->\n", page + page};
  for (const std::string& wrong : pages) EXPECT_THROW(page_with_table(wrong, "new\n", "page.md"), DataError) << wrong;
}

TEST(BenchReport, SaysWhatMakesFiguresDoubtful) {
  BenchReport report = made_up_report();
  EXPECT_TRUE(report.results[0].doubts().empty());
  EXPECT_FALSE(contains(bench_table(report), "warning"));
  report.results[0].waited = 0.4;
  report.results[1].ceiling = 1e11;  // 2e9 operations in 4 ms are 5e11
  EXPECT_TRUE(contains(bench_table(report), "E-B4: warning: others use this machine: threads waited 40 %"));
  EXPECT_TRUE(contains(bench_markdown(report), "E-B16: warning: faster than the measured matrix products"));
  const nlohmann::json json = nlohmann::json::parse(bench_json(report));
  EXPECT_EQ(json["cases"][0]["waited_for_processor"], 0.4);
  EXPECT_EQ(json["cases"][0]["doubts"].size(), 1u);
  EXPECT_EQ(json["cases"][1]["doubts"].size(), 1u);
}

TEST(Bench, WaitingForAProcessorIsCountedInAll) {
  const double before = waited_for_processor();
  EXPECT_GE(before, 0);
  EXPECT_GE(waited_for_processor(), before);
}

TEST(BenchReport, BadFilesAreDataErrors) {
  const std::string good = bench_json(made_up_report());
  std::string no_device = good, no_speed = good;
  no_device.replace(no_device.find("\"device\""), 8, "\"devyce\"");
  no_speed.replace(no_speed.find("\"tokens_per_second\": "), 21, "\"tokens_per_second\": -");
  for (const std::string& text : {std::string("{"), std::string("[]"), std::string("{}"), std::string("\"x\""),
                                  std::string("{\"format\": 1}"), no_device, no_speed}) {
    try {
      earlier_bench_from_json(text, "old.json");
      ADD_FAILURE() << "taken: " << text.substr(0, 60);
    } catch (const DataError& error) {
      EXPECT_TRUE(contains(error.what(), "--compare: old.json")) << error.what();
    }
  }
}

// --- the command --------------------------------------------------------------------------------------------------

struct Outcome {
  int code;
  std::string out, err;
};

Outcome bench_with(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "bench");
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  const int code = run(arguments);
  std::string out = ::testing::internal::GetCapturedStdout(), err = ::testing::internal::GetCapturedStderr();
  return {code, out, err};
}

void expect_refusal(int code, const std::vector<std::string>& arguments, const std::string& part) {
  const Outcome outcome = bench_with(arguments);
  EXPECT_EQ(outcome.code, code) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, part)) << outcome.err;
}

TEST(BenchCommand, SaysWhatItCannotDo) {
  expect_refusal(2, {"--case", "E-B5"}, "unknown case \"E-B5\"; did you mean E-B4?");
  expect_refusal(2, {"--case", "nothing-like-it"}, "--list shows them");
  expect_refusal(2, {"--steps", "0"}, "--steps");
  expect_refusal(2, {"--precision", "f16"}, "--precision");
  expect_refusal(2, {"--device", "tpu"}, "--device");
  expect_refusal(6, {"--device", "cpu", "--case", "E-B4"}, "case E-B4 needs a GPU, and --device cpu was asked for");
  expect_refusal(3, {"--case", "cpu", "--compare", "/nonexistent.json"}, "/nonexistent.json");
  const testing::TemporaryFolder place;
  const std::string path = place.path / "old.json";
  std::ofstream(path) << "no JSON";
  expect_refusal(3, {"--case", "cpu", "--compare", path}, "is no JSON");
  if (testing::is_emulated()) {
    expect_refusal(6, {"--case", "E-B4"}, "case E-B4 needs a GPU, and no GPU: ");
    expect_refusal(6, {"--device", "cuda"}, "--device cuda: no GPU");
  }
}

TEST(BenchCommand, ListsItsCases) {
  const Outcome outcome = bench_with({"--list"});
  EXPECT_EQ(outcome.code, 0);
  for (const BenchCase& at : bench_cases()) EXPECT_TRUE(contains(outcome.out, at.name + " ")) << at.name;
  EXPECT_EQ(std::size_t(std::count(outcome.out.begin(), outcome.out.end(), '\n')), bench_cases().size());
}

TEST(BenchCommand, WritesWhatItCompares) {
  const testing::TemporaryFolder place;
  const std::string path = place.path / "run.json";
  const Outcome first = bench_with({"--case", "cpu-generation", "--steps", "1", "--json", path});
  EXPECT_EQ(first.code, 0) << first.err;
  EXPECT_TRUE(contains(first.out, "cpu-generation  f32")) << first.out;
  EXPECT_TRUE(contains(first.err, " tok/s\n")) << first.err;
  EXPECT_EQ(read_earlier_bench(path).cases.count("cpu-generation"), 1u);

  const Outcome second = bench_with({"--case", "cpu-generation", "--steps", "2", "--json", "-", "--compare", path});
  EXPECT_EQ(second.code, 0) << second.err;
  const nlohmann::json json = nlohmann::json::parse(second.out);
  EXPECT_EQ(json["cases"][0]["samples_ms"].size(), 2u);
  EXPECT_FALSE(json["cases"][0].contains("against"));

  const std::string page = place.path / "page.md";
  std::ofstream(page) << "# Page\n<!-- bench -->\n<!-- /bench -->\n";
  const Outcome third =
      bench_with({"--case", "cpu-generation", "--steps", "1", "--suite", "--compare", path, "--into", page});
  EXPECT_EQ(third.code, 0) << third.err;
  EXPECT_TRUE(contains(third.out, "| against |")) << third.out;
  EXPECT_TRUE(contains(third.out, "| cpu-generation: ")) << third.out;
  EXPECT_EQ(read_file(page, "test"),
            page_with_table("<!-- bench -->\n<!-- /bench -->\n", third.out, page).insert(0, "# Page\n"));

  const Outcome fourth = bench_with({"--case", "cpu-generation", "--steps", "1", "--into", path});
  EXPECT_EQ(fourth.code, 3) << "that is no page";
  EXPECT_FALSE(contains(fourth.err, "timing")) << "and it is said before the work: " << fourth.err;
}

}  // namespace
}  // namespace sinkhorn
