// Training one step at a time: a model, its optimizer state, and the step count; no files, no clock, no output.
#pragma once
#include <functional>

#include "nn/parameter_groups.h"
#include "tools/batches.h"
#include "tools/sequence_model.h"
#include "tools/settings.h"

namespace sinkhorn {

Batch to_batch(const Windows& windows);

struct StepResult {
  double loss = 0;           // mean over the micro-steps, in nats
  double gradient_norm = 0;  // before clipping
  double learning_rate = 0;  // of all but the values of memories
};

/// State and result of every step are a function of configs, seed and batches, for any number of threads; to go on in
/// another process takes the parameters, both moments and the step.
class Trainer {
 public:
  /// `model` is complete (num_tokens, max_seq_len) and valid. Throws OutOfMemory, before anything is allocated, if
  /// parameters, gradients and moments cannot fit.
  Trainer(const ModelConfig& model, const TrainConfig& train, Device device = Device::cpu);
  Trainer(const Trainer&) = delete;

  /// One optimizer step on the mean of `accumulate` batches, `batch(micro_step)` each. Throws NonFinite, before
  /// anything has changed, if the loss or the gradient norm is not finite: the message names the first op and the first
  /// parameter.
  StepResult step(const std::function<Batch(std::int64_t micro_step)>& batch);
  /// Loss in nats, without dropout.
  double evaluate(const Batch& batch);
  /// Milliseconds and peak pool bytes of forward and backward on a batch; leaves no trace.
  struct Cost {
    double milliseconds;
    std::size_t peak_bytes;
  };
  Cost measure(const Batch& batch);

  std::int64_t steps_done() const { return steps_done_; }
  void set_steps_done(std::int64_t steps) { steps_done_ = steps; }
  void set_train_config(const TrainConfig& train) { train_ = train; }
  SequenceModel& model() { return model_; }
  const SequenceModel& model() const { return model_; }
  FlatParameters& parameters() { return parameters_; }
  const FlatParameters& parameters() const { return parameters_; }
  /// The stream of all noise in training.
  std::uint64_t rng_key() const { return noise_.key(); }

 private:
  /// The batch may lie on any device.
  Var forward(const Scope& scope, const Batch& batch) const;
  Scope scope_of(std::int64_t micro_step, Tape tape) const;
  /// Neither tape nor noise.
  Scope quiet_scope() const;
  /// Makes ready to compute in the precision that was asked for: parameters may have changed since.
  void set_precision();
  /// Forward and backward, gradients added to the flat buffer. Returns the loss (), where it was computed: to read it
  /// is to wait.
  Tensor add_gradients(const Batch& batch, const Scope& scope);
  [[noreturn]] void explain_non_finite(const std::function<Batch(std::int64_t)>& batch, double loss);

  TrainConfig train_;
  Device device_;
  SequenceModel model_;
  FlatParameters parameters_;
  std::vector<ParameterGroup> groups_;
  Tensor noise_step_;  // the word that noise_ reads
  Rng noise_;
  std::int64_t steps_done_ = 0;
};

}  // namespace sinkhorn
