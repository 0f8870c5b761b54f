#include <fmt/format.h>

#include <cmath>
#include <numeric>

#include "notebooks/kit/checks.h"
#include "notebooks/lessons/25_training/exercise.h"
#include "notebooks/lessons/25_training/text.h"

namespace sinkhorn::lesson {
namespace {

using lessons::lesson_25_training::bigram_entropy;
using lessons::lesson_25_training::Encoded;
using lessons::lesson_25_training::Grammar;
using lessons::lesson_25_training::windows;

constexpr std::int64_t kLength = 32;

// A causal model with two local and two sorting heads, and its parameters.
struct Student {
  explicit Student(std::int64_t vocabulary, Rng rng)
      : model({.num_tokens = vocabulary,
               .dim = 32,
               .depth = 2,
               .max_seq_len = kLength,
               .heads = 4,
               .bucket_size = 8,
               .causal = true,
               .n_local_attn_heads = 2},
              rng, DType::f32, {0.02, 0.02}),
        parameters(model) {}
  SinkhornTransformerLM model;
  FlatParameters parameters;
};

double draw(const Rng& rng, double low, double high) { return uniform(rng, {1}, low, high, DType::f64).item(); }

void check_schedule(lessons::Checks& checks, const Rng& rng) {
  Plan plan;
  plan.warmup = 10 + std::int64_t(rng.bits().word(0) % 20);
  plan.steps = plan.warmup + 2 * (20 + std::int64_t(rng.bits().word(1) % 50));
  plan.learning_rate = draw(rng.split(1), 0.1, 1);
  plan.min_learning_rate = plan.learning_rate * draw(rng.split(2), 0.05, 0.3);
  const std::int64_t middle = (plan.warmup + plan.steps) / 2, early = 1 + plan.warmup / 3, late = plan.steps - 7;
  const double peak = plan.learning_rate, low = plan.min_learning_rate;
  const auto at = [&](const std::string& name, std::int64_t step, double want) {
    checks.attempt(name, [&] { checks.near(name, learning_rate_at(plan, step), want, 1e-9); });
  };
  at("learning rate of the first step", 1, peak / double(plan.warmup));
  at("learning rate within the warm-up", early, peak * double(early) / double(plan.warmup));
  at("learning rate at the end of the warm-up", plan.warmup, peak);
  at("learning rate halfway down", middle, (peak + low) / 2);
  const double left = std::sin(7 * 3.14159265358979323846 / double(plan.steps - plan.warmup) / 2);
  at("learning rate seven steps before the end", late, low + (peak - low) * left * left);
  at("learning rate of the last step", plan.steps, low);
}

void check_clipping(lessons::Checks& checks, const Rng& rng) {
  const double clip = draw(rng.split(0), 0.5, 2), longer = clip * draw(rng.split(1), 1.5, 9);
  checks.attempt("clipping", [&] {
    checks.near("clipping: a long gradient becomes as long as allowed", longer * clip_scale(longer, clip), clip, 1e-5);
    checks.near("clipping: a short gradient stays as it is", clip_scale(clip / 3, clip), 1);
  });
}

// One tensor of all rows.
Tensor together(const std::vector<Tensor>& parts) {
  std::vector<std::int32_t> ids;
  for (const Tensor& part : parts)
    ids.insert(ids.end(), part.span<std::int32_t>().begin(), part.span<std::int32_t>().end());
  return Tensor::from(ids, {std::int64_t(ids.size()) / parts[0].shape()[1], parts[0].shape()[1]});
}

// Loss and gradient of one batch, into the student's gradients.
double reference_gradients(Student& student, const Tensor& ids) {
  student.parameters.zero_gradients();
  const Tape tape = Tape::record(true);
  const Var loss = autoregressive_loss(student.model, Scope{.tape = tape, .training = true}, ids).loss;
  tape.backward(loss);
  return loss.value.item();
}

void check_accumulation(lessons::Checks& checks, const Encoded& text, const Rng& rng) {
  const auto vocabulary = std::int64_t(text.vocabulary.size());
  Student mine(vocabulary, rng.split(0)), other(vocabulary, rng.split(0));
  std::vector<Tensor> parts;
  parts.reserve(3);
  for (std::uint32_t i = 0; i < 3; ++i) parts.push_back(windows(text.ids, 2, kLength, rng.split(10 + i)));
  const double want = reference_gradients(other, together(parts));
  const std::string name = "three micro-batches of 2 rows as one batch of 6";
  checks.attempt(name, [&] {
    mine.parameters.gradients.fill(draw(rng.split(1), 1, 2));  // what an earlier step left behind
    checks.near(name + ": loss", accumulate_gradients(mine.model, mine.parameters, parts), want, 1e-5);
    checks.near(name + ": gradients", mine.parameters.gradients, other.parameters.gradients, 1e-5);
    accumulate_gradients(mine.model, mine.parameters, parts);
    checks.near(name + ": gradients once more", mine.parameters.gradients, other.parameters.gradients, 1e-5);
  });
}

// A few steps against the same steps made of the library's parts.
void check_steps(lessons::Checks& checks, const Encoded& text, const Rng& rng, double clip_norm) {
  const auto vocabulary = std::int64_t(text.vocabulary.size());
  Plan plan;
  plan.steps = 5;
  plan.warmup = 2;
  plan.learning_rate = 3e-3;
  plan.min_learning_rate = 1e-3;
  plan.clip_norm = clip_norm;
  plan.micro_batches = 2;
  plan.adam = {.beta1 = 0.9, .beta2 = 0.99, .eps = 1e-3, .weight_decay = 0.1};
  const double rates[] = {1.5e-3, 3e-3, 2.5e-3, 1.5e-3, 1e-3};
  const auto batch = [&](std::int64_t step, std::int64_t micro) {
    return windows(text.ids, 2, kLength, rng.split(std::uint32_t(100 + 2 * step + micro)));
  };
  Student mine(vocabulary, rng.split(0)), other(vocabulary, rng.split(0));
  std::vector<double> want;
  const std::vector<ParameterGroup> groups = parameter_groups(other.parameters);
  for (std::int64_t step = 1; step <= plan.steps; ++step) {
    want.push_back(reference_gradients(other, together({batch(step, 0), batch(step, 1)})));
    const double norm = global_norm({other.parameters.gradients});
    adamw_step(plan.adam, step, rates[step - 1], other.parameters.values, other.parameters.gradients,
               other.parameters.first_moment, other.parameters.second_moment, groups.front().decayed,
               std::min(1.0, clip_norm / norm));
  }
  const std::string name = clip_norm < 1 ? "five steps, clipped" : "five steps, not clipped";
  checks.attempt(name, [&] {
    const std::vector<double> losses = train(mine.model, mine.parameters, plan, batch);
    checks.near(name + ": losses", Tensor::from(losses, {std::int64_t(losses.size())}),
                Tensor::from(want, {plan.steps}), 1e-5);
    checks.near(name + ": parameters", mine.parameters.values, other.parameters.values, 1e-5);
  });
}

void check_training(lessons::Checks& checks, const Encoded& text, const Rng& rng) {
  Plan plan;
  plan.steps = 200;
  plan.warmup = 20;
  plan.learning_rate = 1e-2;
  plan.min_learning_rate = 1e-3;
  plan.adam.beta2 = 0.99;
  const auto batch = [&](std::int64_t step, std::int64_t) {
    return windows(text.ids, 8, kLength, rng.split(std::uint32_t(100 + step)));
  };
  const std::string name = fmt::format("a run of {} steps", plan.steps);
  checks.attempt(name, [&] {
    const auto vocabulary = std::int64_t(text.vocabulary.size());
    Student student(vocabulary, rng.split(0)), twin(vocabulary, rng.split(0));
    const std::vector<double> losses = train(student.model, student.parameters, plan, batch);
    if (std::int64_t(losses.size()) != plan.steps)
      return checks.equal(name + ": losses returned", std::int64_t(losses.size()), plan.steps);
    const double last = std::accumulate(losses.end() - 20, losses.end(), 0.0) / 20;
    const double limit = 0.75 * bigram_entropy(text.ids);
    checks.that(name + ": the last losses are below three quarters of the bigram entropy", last <= limit,
                fmt::format("expected at most {:.3f}, got {:.3f}", limit, last));
    // What was returned is what the model does: on fresh windows, without a tape.
    const double now =
        autoregressive_loss(student.model, Scope{}, windows(text.ids, 32, kLength, rng.split(1))).loss.value.item();
    checks.that(name + ": the model's own loss afterwards is, too", now <= limit,
                fmt::format("expected at most {:.3f}, got {:.3f}", limit, now));
    plan.steps = 30;
    Student again(vocabulary, rng.split(0));
    train(twin.model, twin.parameters, plan, batch);
    train(again.model, again.parameters, plan, batch);
    checks.that("the same seed trains to the same bits", equal_bits(twin.parameters.values, again.parameters.values),
                "two runs of 30 steps ended in different parameters");
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  const std::vector<Rng> rounds = checks.rounds();
  const Encoded text(Grammar().text(20000, rounds[0].split(99)));
  for (const Rng& rng : rounds) {
    check_schedule(checks, rng.split(0));
    check_clipping(checks, rng.split(1));
    check_accumulation(checks, text, rng.split(2));
    check_steps(checks, text, rng.split(3), 0.2);
    check_steps(checks, text, rng.split(4), 1e3);
  }
  check_training(checks, text, rounds[0].split(5));
}

}  // namespace sinkhorn::lesson
