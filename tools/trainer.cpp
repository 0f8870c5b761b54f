#include "tools/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "autograd/pool.h"
#include "cuda/blas.h"
#include "tools/flops.h"
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

Tensors parts_of(const Batch& batch) {
  return {batch.inputs, batch.targets, batch.counted, batch.mask, batch.source.ids, batch.source.mask};
}

// Uninitialised tensors for a batch like this one.
Batch room_for(const Batch& batch, Device device) {
  const auto room = [device](const Tensor& x) { return x ? Tensor(x.shape(), x.dtype(), device) : x; };
  return {room(batch.inputs),
          room(batch.targets),
          room(batch.counted),
          room(batch.mask),
          {room(batch.source.ids), room(batch.source.mask)}};
}

// What tells batches apart for which the same work is recorded.
std::vector<std::int64_t> shapes_of(const std::vector<Batch>& batches) {
  std::vector<std::int64_t> shapes;
  for (const Batch& batch : batches)
    for (const Tensor& part : parts_of(batch)) {
      shapes.push_back(part ? part.shape().rank() : -1);
      shapes.insert(shapes.end(), part.shape().extents().begin(), part.shape().extents().end());
    }
  return shapes;
}

}  // namespace

Batch to_batch(const Windows& windows) {
  const Shape shape{windows.rows, windows.columns - 1};
  return {Tensor::from(windows.inputs(), shape), Tensor::from(windows.targets(), shape)};
}

Trainer::Trainer(const ModelConfig& model, const TrainConfig& train, Device device)
    : model_config_(model),
      train_(train),
      device_(device),
      model_(fitting(model, train, device), train.encoder_decoder, Rng(std::uint64_t(train.seed)).split(kInitStream),
             {train.embedding_init_std, train.embedding_init_std}),
      parameters_(moved(model_, device)),
      groups_(parameter_groups(parameters_)),
      noise_step_(Tensor::zeros({}, DType::i32)),
      device_noise_step_(device == Device::cpu ? Tensor() : noise_step_.to(device)),
      noise_(Rng(std::uint64_t(train.seed)).split(kNoiseStream).key(), noise_step_, device_noise_step_),
      numbers_({std::int64_t(groups_.size()), 3}, DType::f64, device),
      arena_(device) {}

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

AdamW Trainer::adam() const {
  return {.beta1 = train_.beta1, .beta2 = train_.beta2, .eps = train_.epsilon, .weight_decay = train_.weight_decay};
}

void Trainer::allow_tf32() const {
  if (device_ == Device::cuda) cuda::allow_tf32(train_.precision == "tf32");
}

void Trainer::set_precision() {
  allow_tf32();
  if (train_.precision == "bf16") parameters_.round();
}

Tensor Trainer::add_gradients(const Batch& batch, const Scope& scope) {
  const Var loss = model_.loss(scope, batch);
  scope.tape.backward(loss, Tensor::full(loss.shape(), 1 / double(train_.accumulate), DType::f32, device_));
  return loss.value;
}

StepResult Trainer::step(const std::function<Batch(std::int64_t)>& batch) {
  const std::int64_t step = steps_done_ + 1;
  StepResult result;
  result.learning_rate = learning_rate_at(train_, step);
  std::vector<double> numbers;
  for (const ParameterGroup& group : groups_) {
    const double rate =
        result.learning_rate * (group.is_memory ? train_.pkm_learning_rate / train_.learning_rate : 1.0);
    const std::array<double, 3> of_group = adamw_numbers(adam(), step, rate);
    numbers.insert(numbers.end(), of_group.begin(), of_group.end());
  }
  numbers_.assign(Tensor::from(numbers, numbers_.shape()));
  *noise_step_.data<std::int32_t>() = std::int32_t(step);
  if (device_noise_step_) device_noise_step_.assign(noise_step_);
  if (!known_ || known_.count() != train_.accumulate + 1) known_ = Tensor({train_.accumulate + 1}, DType::f64, device_);

  allow_tf32();
  launch_step(batch);
  const std::vector<double> known = known_.to_vector();  // waits, once
  for (std::int64_t micro = 0; micro < train_.accumulate; ++micro)
    result.loss += known[std::size_t(micro)] / double(train_.accumulate);
  result.gradient_norm = std::sqrt(known.back());
  if (!std::isfinite(result.loss) || !std::isfinite(result.gradient_norm)) explain_non_finite(batch, result.loss);
  steps_done_ = step;
  return result;
}

void Trainer::run_step(const std::function<Batch(std::int64_t)>& batch) {
  parameters_.zero_gradients();
  set_precision();
  const auto keep = [&](std::int64_t at, const Tensor& number) {
    known_.slice(at, at + 1).assign(number.to(DType::f64).reshape({1}));
  };
  for (std::int64_t micro = 0; micro < train_.accumulate; ++micro)
    keep(micro, add_gradients(batch(micro), scope_of(micro, Tape::record(true))));
  keep(train_.accumulate, square_sum({parameters_.gradients}));
  const Tensor clip = clip_factor(known_, train_.clip_norm);
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    const auto part = [&](const Tensor& flat) { return flat.slice(groups_[i].begin, groups_[i].end); };
    adamw_step(adam(), numbers_.slice(std::int64_t(i), std::int64_t(i) + 1), part(parameters_.values),
               part(parameters_.gradients), part(parameters_.first_moment), part(parameters_.second_moment),
               groups_[i].decayed, 1, clip);
  }
}

// The first step of a shape runs plainly, as a graph demands, and makes the tensors that batches of this shape come to.
void Trainer::launch_step(const std::function<Batch(std::int64_t)>& batch) {
  std::vector<Batch> batches{batch(0)};
  if (!may_record(batches[0]))
    return run_step([&](std::int64_t micro) { return micro == 0 ? batches[0] : batch(micro); });
  for (std::int64_t micro = 1; micro < train_.accumulate; ++micro) batches.push_back(batch(micro));
  const std::vector<std::int64_t> shapes = shapes_of(batches);
  const bool is_first = !recorded_.contains(shapes);
  if (is_first && recorded_.size() == kMostRecordings)
    return run_step([&](std::int64_t micro) { return batches[std::size_t(micro)]; });
  Recorded& same = recorded_[shapes];
  for (std::size_t micro = 0; micro < batches.size(); ++micro) {
    if (is_first) same.batches.push_back(room_for(batches[micro], device_));
    const Tensors from = parts_of(batches[micro]), into = parts_of(same.batches[micro]);
    for (std::size_t i = 0; i < from.size(); ++i)
      if (from[i]) into[i].assign(from[i]);
  }
  const auto work = [this, &same] { run_step([&](std::int64_t micro) { return same.batches[std::size_t(micro)]; }); };
  if (is_first) return work();
  if (!same.graph) same.graph.emplace(arena_, work);
  same.graph->launch();
}

bool Trainer::may_record(const Batch& batch) const {
  if (device_ != Device::cuda || !Graph::are_enabled()) return false;
  if (model_config_.layer_dropout > 0 && !model_config_.reversible) return false;
  const Shape inputs = batch.inputs.shape();
  const std::int64_t source_length = batch.source.ids ? batch.source.ids.shape()[1] : 0;
  const StepFlops step = training_flops(model_config_, double(inputs[0]), inputs[1], source_length);
  return double(train_.accumulate) * step.executed <= kMostRecordedFlops;
}

std::int64_t Trainer::recordings() const {
  return std::count_if(recorded_.begin(), recorded_.end(), [](const auto& each) { return each.second.graph; });
}

// Between two launches the memory of the recorded steps is idle, and evaluation leaves nothing behind.
double Trainer::evaluate(const Batch& batch) {
  std::optional<Arena::Use> same_memory;
  if (recordings() > 0) same_memory.emplace(arena_);
  set_precision();
  return model_.loss(quiet_scope(), batch).value.item();
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
