#include "tools/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "autograd/pool.h"
#include "cuda/blas.h"
#include "tools/schedule.h"

namespace sinkhorn {
namespace {

constexpr std::uint32_t kInitStream = 1, kNoiseStream = 2;

const ModelConfig& fitting(const ModelConfig& model, const TrainConfig& train, Device device) {
  if (device != Device::cpu) return model;                    // there an allocation that fails says so at once
  constexpr double bytes = 4 * sizeof(float), gib = 1 << 30;  // value, gradient and both moments of a parameter
  const double needed = least_parameters(model, train.encoder_decoder) * bytes, available = double(available_memory());
  if (needed > available)
    fail<OutOfMemory>(
        fmt::format("out of memory: the parameters, gradients and moments of this model take at least "
                    "{:.1f} GiB, {:.1f} GiB are available; lower dim or depth, or set weight_tie",
                    needed / gib, available / gib));
  return model;
}

SequenceModel& moved(SequenceModel& model, Device device) {
  move_to(device, model);
  return model;
}

bool all_finite(const Tensor& x) {
  const Tensor here = x.to(DType::f32).to(Device::cpu);
  const auto numbers = here.span<float>();
  return std::all_of(numbers.begin(), numbers.end(), [](float v) { return std::isfinite(v); });
}

}  // namespace

Batch to_batch(const Windows& windows) {
  const Shape shape{windows.rows, windows.columns - 1};
  return {Tensor::from(windows.inputs(), shape), Tensor::from(windows.targets(), shape)};
}

Trainer::Trainer(const ModelConfig& model, const TrainConfig& train, Device device)
    : train_(train),
      device_(device),
      model_(fitting(model, train, device), train.encoder_decoder, Rng(std::uint64_t(train.seed)).split(kInitStream),
             {train.embedding_init_std, train.embedding_init_std}),
      parameters_(moved(model_, device)),
      groups_(parameter_groups(parameters_)),
      noise_step_(Tensor::zeros({}, DType::i32)),
      noise_(Rng(std::uint64_t(train.seed)).split(kNoiseStream).key(), noise_step_) {}

Var Trainer::forward(const Scope& scope, const Batch& batch) const {
  const Batch there = batch.to(device_);  // once, for the model too
  return cross_entropy(model_(scope, there), there.targets, there.counted).loss;
}

Scope Trainer::scope_of(std::int64_t micro_step, Tape tape) const {
  Scope scope = quiet_scope();
  scope.tape = std::move(tape);
  scope.rng = noise_.split(std::uint32_t(micro_step));
  scope.training = true;
  return scope;
}

Scope Trainer::quiet_scope() const {
  Scope scope;
  if (train_.precision == "bf16") scope.compute = DType::bf16;
  return scope;
}

void Trainer::set_precision() {
  if (device_ == Device::cuda) cuda::allow_tf32(train_.precision == "tf32");
  if (train_.precision == "bf16") parameters_.round();
}

Tensor Trainer::add_gradients(const Batch& batch, const Scope& scope) {
  const Var loss = forward(scope, batch);
  scope.tape.backward(loss, Tensor::full(loss.shape(), 1 / double(train_.accumulate), DType::f32, device_));
  return loss.value;
}

StepResult Trainer::step(const std::function<Batch(std::int64_t)>& batch) {
  const std::int64_t step = steps_done_ + 1;
  *noise_step_.data<std::int32_t>() = std::int32_t(step);
  parameters_.zero_gradients();
  set_precision();
  // All that the host must know of the step, so that it waits once: the losses, and the square of the gradient norm.
  const Tensor numbers({train_.accumulate + 1}, DType::f64, device_);
  const auto keep = [&](std::int64_t at, const Tensor& number) {
    numbers.slice(at, at + 1).assign(number.to(DType::f64).reshape({1}));
  };
  for (std::int64_t micro = 0; micro < train_.accumulate; ++micro)
    keep(micro, add_gradients(batch(micro), scope_of(micro, Tape::record(true))));
  keep(train_.accumulate, square_sum({parameters_.gradients}));
  const std::vector<double> known = numbers.to_vector();
  StepResult result;
  for (std::int64_t micro = 0; micro < train_.accumulate; ++micro)
    result.loss += known[std::size_t(micro)] / double(train_.accumulate);
  result.gradient_norm = std::sqrt(known.back());
  if (!std::isfinite(result.loss) || !std::isfinite(result.gradient_norm)) explain_non_finite(batch, result.loss);

  result.learning_rate = learning_rate_at(train_, step);
  const double clip = train_.clip_norm > 0 ? std::min(1.0, train_.clip_norm / (result.gradient_norm + 1e-6)) : 1.0;
  const AdamW adam{
      .beta1 = train_.beta1, .beta2 = train_.beta2, .eps = train_.epsilon, .weight_decay = train_.weight_decay};
  for (const ParameterGroup& group : groups_) {
    const auto part = [&](const Tensor& flat) { return flat.slice(group.begin, group.end); };
    const double rate =
        result.learning_rate * (group.is_memory ? train_.pkm_learning_rate / train_.learning_rate : 1.0);
    adamw_step(adam, step, rate, part(parameters_.values), part(parameters_.gradients), part(parameters_.first_moment),
               part(parameters_.second_moment), group.decayed, clip);
  }
  steps_done_ = step;
  return result;
}

double Trainer::evaluate(const Batch& batch) {
  set_precision();
  return forward(quiet_scope(), batch).value.item();
}

Trainer::Cost Trainer::measure(const Batch& batch) {
  using Clock = std::chrono::steady_clock;
  set_precision();
  Pool& pool = Pool::of(device_);
  pool.reset_peak();
  Cost cost{};
  // The first pass fills the pool, and is the slower one; a slow step is not worth a second.
  for (int pass = 0; pass < 2 && cost.milliseconds < 2000; ++pass) {
    const auto start = Clock::now();
    add_gradients(batch, scope_of(0, Tape::record(true))).item();  // waits
    cost.milliseconds = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  }
  cost.peak_bytes = pool.stats().peak;
  parameters_.zero_gradients();
  return cost;
}

void Trainer::explain_non_finite(const std::function<Batch(std::int64_t)>& batch, double loss) {
  // The step again, and every result looked at. A masked score may well be -infinity, so that only counts if nothing
  // else is wrong.
  std::string first_op, first_infinity;
  parameters_.zero_gradients();
  for (std::int64_t micro = 0; micro < train_.accumulate; ++micro) {
    const Tape tape = Tape::record(true);
    tape.watch([&](const TapeEvent& event) {
      const bool backward = event.kind == TapeEvent::Kind::flow;
      if (!backward && event.kind != TapeEvent::Kind::value) return;
      const Tensor& value = event.tensor;
      if (!first_op.empty() || !is_floating(value.dtype()) || all_finite(value)) return;
      const Tensor here = value.to(DType::f32).to(Device::cpu);
      const auto numbers = here.span<float>();
      const bool masked = std::none_of(numbers.begin(), numbers.end(), [](float v) {
        return std::isnan(v) || v == std::numeric_limits<float>::infinity();
      });
      std::string& first = masked ? first_infinity : first_op;
      if (first.empty()) first = std::string(event.op) + (backward ? " (backward)" : "");
    });
    add_gradients(batch(micro), scope_of(micro, tape));
  }
  if (first_op.empty()) first_op = first_infinity.empty() ? "the sum of the gradients" : first_infinity;
  std::string parameter;
  for (const auto& [what, flat] :
       {std::pair("", &parameters_.values), std::pair("the gradient of ", &parameters_.gradients)})
    for (const FlatParameters::Entry& e : parameters_.entries())
      if (parameter.empty() && !all_finite(flat->slice(e.begin, e.end))) parameter = what + e.name;
  fail<NonFinite>("step ", steps_done_ + 1, ": the ", std::isfinite(loss) ? "gradient" : "loss",
                  " is not finite; the first op to go wrong is ", first_op,
                  parameter.empty() ? "" : ", the first parameter " + parameter,
                  "; lower --learning-rate or raise --warmup-steps");
}

}  // namespace sinkhorn
