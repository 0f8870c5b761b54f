#include "tools/bench_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <new>

#include "autograd/parallel.h"
#include "autograd/pool.h"
#include "cuda/blas.h"
#include "cuda/device.h"
#include "cuda/host_clock.h"
#include "cuda/runtime.h"
#include "cuda/timer.h"
#include "models/generate.h"

namespace sinkhorn {
namespace {

constexpr std::int64_t kWarmupSteps = 3;
constexpr std::int64_t kTokensInSample = 16;  // of generation

std::optional<std::size_t> driver_bytes(Device device) {
  const cuda::Probe probe = device == Device::cuda ? cuda::probe() : cuda::Probe{};
  if (probe.devices.empty() || probe.devices[0].free_memory == 0) return std::nullopt;
  return probe.devices[0].memory - probe.devices[0].free_memory;
}

void say(const BenchSettings& settings, const BenchCase& at, const std::string& doing) {
  if (settings.progress) settings.progress(at.name + ": " + doing);
}

/// Stands around the timed part: how long threads waited in it for a processor, as a share of its wall time.
class WaitShare {
 public:
  WaitShare() : waited_(waited_for_processor()) { clock_.start(); }
  double share() const { return (waited_for_processor() - waited_) / (1e6 * clock_.stop() * double(threads())); }

 private:
  double waited_;
  cuda::HostClock clock_;
};

std::string too_slow(const BenchSettings& settings, std::size_t samples, const char* what) {
  return fmt::format("{} samples, since {} takes more than {:g} s", samples, what, settings.slow_step_ms / 1000);
}

void time_training(BenchResult& result, Device device, const BenchSettings& settings) {
  const BenchCase& at = result.at;
  Trainer trainer(at.model, bench_training(at), device);
  const Batch batch = bench_batch(at);
  cuda::Timer timer(device);
  double milliseconds = 0;
  const auto step = [&] {
    timer.start();
    result.last_loss = trainer.step([&](std::int64_t) { return Batch(batch); }).loss;
    milliseconds = timer.stop();
    if (trainer.steps_done() == 1) result.first_loss = result.last_loss;
  };
  result.parameters = trainer.parameters().count();
  result.tokens = at.batch * at.length;
  result.flops = training_flops(at.model, double(at.batch), at.length, at.source_length);

  say(settings, at, "warming up");
  const auto is_slow = [&] { return milliseconds > settings.slow_step_ms; };
  do step();
  while (++result.warmup_steps < (is_slow() ? 2 : kWarmupSteps));  // the second one finds the pool filled
  const std::int64_t steps = is_slow() ? std::min(settings.slow_steps, settings.steps) : settings.steps;
  if (steps < settings.steps) result.note = too_slow(settings, std::size_t(steps), "a step");

  say(settings, at, fmt::format("timing {} steps", steps));
  Pool::of(device).reset_peak();
  const WaitShare wait;
  const double waited_before = cuda::waits().milliseconds;
  cuda::HostClock clock;
  clock.start();
  for (std::int64_t i = 0; i < steps; ++i) {
    step();
    result.milliseconds.push_back(milliseconds);
  }
  result.host_ms = (clock.stop() - (cuda::waits().milliseconds - waited_before)) / double(steps);
  result.waited = wait.share();
}

void time_generation(BenchResult& result, Device device, const BenchSettings& settings) {
  const BenchCase& at = result.at;
  SinkhornTransformerLM model(at.model, Rng(1), bench_dtype(at.precision), {0.02, 0.02});
  move_to(device, model);
  if (device == Device::cuda) cuda::allow_tf32(at.precision == "tf32");
  for (const Parameter* parameter : parameters_of(model)) result.parameters += parameter->value.count();
  result.tokens = kTokensInSample * at.batch;
  result.warmup_steps = 1;
  const double operations = double(result.tokens) * generation_flops(at.model, at.length);
  result.flops = {operations, operations};

  // All samples fit behind the context: where the text is full, it is read anew.
  const std::int64_t room = (at.model.max_length() - at.length) / kTokensInSample - result.warmup_steps;
  if (room < 1) fail("bench: ", at.name, ": max_seq_len ", at.model.max_seq_len, " leaves no room behind the context");
  std::int64_t samples = std::min(settings.steps, room);
  if (samples < settings.steps) result.note = fmt::format("{} samples, more do not fit behind the context", samples);
  const Tensor ids = integers(Rng(2), {at.length}, std::int32_t(at.model.num_tokens));
  const auto one = ids.span<std::int32_t>();
  const std::vector<std::vector<std::int32_t>> prompts(std::size_t(at.batch), {one.begin(), one.end()});
  say(settings, at, fmt::format("reading {} tokens, then timing {} samples of {}", at.length, samples, result.tokens));
  Pool::of(device).reset_peak();
  cuda::Timer timer(device);
  const WaitShare wait;
  std::int64_t made = 0;
  generate(model, prompts, kTokensInSample * (result.warmup_steps + samples), {}, Rng(3),
           [&](std::size_t, std::int32_t) {
             if (++made % result.tokens != 0) return true;
             if (made > result.tokens * result.warmup_steps) {
               result.milliseconds.push_back(timer.stop());
               if (result.milliseconds.size() == 1 && result.milliseconds[0] > settings.slow_step_ms &&
                   samples > settings.slow_steps) {
                 samples = settings.slow_steps;
                 result.note = too_slow(settings, std::size_t(samples), "each");
               }
             }
             timer.start();
             return std::int64_t(result.milliseconds.size()) < samples;
           });
  result.waited = wait.share();
}

}  // namespace

double quantile(std::vector<double> values, double part) {
  if (values.empty()) fail("quantile: of no values");
  std::sort(values.begin(), values.end());
  const double place = part * double(values.size() - 1);
  const std::size_t below = std::size_t(place), above = std::min(below + 1, values.size() - 1);
  return values[below] + (place - double(below)) * (values[above] - values[below]);
}

double BenchResult::median_ms() const { return quantile(milliseconds); }
double BenchResult::spread() const {
  return (quantile(milliseconds, 0.75) - quantile(milliseconds, 0.25)) / 2 / median_ms();
}

std::vector<std::string> BenchResult::doubts() const {
  std::vector<std::string> doubts;
  if (waited > 0.05)
    doubts.push_back(
        fmt::format("others use this machine: threads waited {:.0f} % of the time for a processor", 100 * waited));
  if (hfu_of_ceiling() > 1)
    doubts.push_back(
        "faster than the measured matrix products, which cannot be: the machine was busier when those ran");
  return doubts;
}

double waited_for_processor() {
  // /proc/PID/task/TID/schedstat: nanoseconds run, nanoseconds waited in the queue, turns
  double total = 0;
  std::error_code ignored;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", ignored)) {
    double ran = 0, waited = 0;
    if (std::ifstream file(task.path() / "schedstat"); file >> ran >> waited) total += waited;
  }
  return total;
}

DType bench_dtype(const std::string& precision) { return precision == "bf16" ? DType::bf16 : DType::f32; }

TrainConfig bench_training(const BenchCase& at) {
  TrainConfig train;
  train.precision = at.precision;
  train.encoder_decoder = at.has_encoder();
  train.batch_size = at.batch;
  train.seq_len = at.length;
  train.steps = 1000000;  // more than are taken: the rate stays what it is
  train.warmup_steps = 0;
  train.learning_rate = 2e-4;
  train.embedding_init_std = 0.02;
  return train;
}

Batch bench_batch(const BenchCase& at) {
  const auto ids = [&](std::uint64_t seed, std::int64_t length) {
    return integers(Rng(seed), {at.batch, length}, std::int32_t(at.model.num_tokens));
  };
  Batch batch{ids(1, at.length), ids(2, at.length)};
  if (at.has_encoder()) batch.source.ids = ids(3, at.source_length);
  return batch;
}

double MatmulCeiling::measure(Device device, const std::string& precision) {
  for (const Figure& known : figures_)
    if (known.device == device && known.precision == precision) return known.flops_per_second;
  const std::int64_t edge = edge_ > 0 ? edge_ : device == Device::cuda ? 8192 : 1024;
  if (device == Device::cuda) cuda::allow_tf32(precision == "tf32");
  const Tensor a = uniform(Rng(1), {edge, edge}, -1, 1, bench_dtype(precision)).to(device);
  cuda::Timer timer(device);
  std::vector<double> milliseconds;
  constexpr int warmup = 3, timed = 20;
  for (int i = 0; i < warmup + timed; ++i) {
    timer.start();
    matmul(a, a);
    const double ms = timer.stop();
    if (i >= warmup) milliseconds.push_back(ms);
  }
  const double operations = 2 * std::pow(double(edge), 3);
  figures_.push_back({device, precision, edge, 1000 * operations / quantile(milliseconds, 0)});
  return figures_.back().flops_per_second;
}

BenchResult run_bench_case(const BenchCase& at, Device device, MatmulCeiling& ceiling, const BenchSettings& settings) {
  BenchResult result;
  result.at = at;
  Pool& pool = Pool::of(device);
  const auto ends = [&](BenchOutcome outcome, const std::string& why) {
    result.outcome = outcome;
    result.note = why;
    result.milliseconds.clear();
  };
  try {
    say(settings, at, "checking a small model of its kind against the CPU in f64");
    const BenchCheck check = check_bench_case(at, device, settings.tamper);
    if (!check.agrees()) {
      ends(BenchOutcome::disagrees, "not timed: in a small model of its kind " + check.text());
      return result;
    }
    result.ceiling = ceiling.measure(device, at.precision);
    result.peak = settings.peak_flops_per_second.value_or(result.ceiling);
    pool.release();
    at.kind == BenchCase::Kind::training ? time_training(result, device, settings)
                                         : time_generation(result, device, settings);
    result.pool_bytes = pool.stats().peak;
    result.driver_bytes = driver_bytes(device);
  } catch (const OutOfMemory& error) {
    ends(BenchOutcome::out_of_memory, error.what());
  } catch (const std::bad_alloc&) {
    ends(BenchOutcome::out_of_memory, "out of memory");
  } catch (const NonFinite& error) {
    ends(BenchOutcome::non_finite, error.what());
  }
  pool.release();
  return result;
}

}  // namespace sinkhorn
