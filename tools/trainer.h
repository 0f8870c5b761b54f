// Training one step at a time: a model, its optimizer state, and the step count; no files, no clock, no output.
#pragma once
#include <functional>
#include <map>
#include <optional>

#include "autograd/graph.h"
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

  /// One optimizer step on the mean of `accumulate` batches, `batch(micro_step)` each. Throws NonFinite, and nothing
  /// has changed, if the loss or the gradient norm is not finite: the message names the first op and the first
  /// parameter. On a GPU a step that is small enough is recorded when batches of its shapes come for the second time,
  /// and it and those after it are one launch, with equal results to the bit (`may_record`).
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
  void set_train_config(const TrainConfig& train) {
    recorded_.clear();  // rates and factors are part of a recording
    train_ = train;
  }
  /// Whether a step on such batches may become a graph: on a GPU, where launches would take a good part of its time (up
  /// to kMostRecordedFlops), and, with layer dropout, of a reversible model: in others the host chooses the layers.
  bool may_record(const Batch& batch) const;
  static constexpr double kMostRecordedFlops = 20e12;  // executed in a step; tens of milliseconds
  /// How many shapes have been recorded; there are no more than kMostRecordings, further ones stay plain launches.
  std::int64_t recordings() const;
  static constexpr std::size_t kMostRecordings = 16;
  SequenceModel& model() { return model_; }
  const SequenceModel& model() const { return model_; }
  FlatParameters& parameters() { return parameters_; }
  const FlatParameters& parameters() const { return parameters_; }
  /// The stream of all noise in training.
  std::uint64_t rng_key() const { return noise_.key(); }

 private:
  Scope scope_of(std::int64_t micro_step, Tape tape) const;
  /// Neither tape nor noise.
  Scope quiet_scope() const;
  /// Makes ready to compute in the precision that was asked for: parameters may have changed since.
  void set_precision();
  void allow_tf32() const;
  AdamW adam() const;
  /// All of a step on the device, from clean gradients to new parameters; `known_` gets what the host must know.
  void run_step(const std::function<Batch(std::int64_t micro_step)>& batch);
  /// The same as one launch of a graph, if that may be.
  void launch_step(const std::function<Batch(std::int64_t micro_step)>& batch);
  /// Forward and backward, gradients added to the flat buffer. Returns the loss (), where it was computed: to read it
  /// is to wait.
  Tensor add_gradients(const Batch& batch, const Scope& scope);
  [[noreturn]] void explain_non_finite(const std::function<Batch(std::int64_t)>& batch, double loss);

  ModelConfig model_config_;
  TrainConfig train_;
  Device device_;
  SequenceModel model_;
  FlatParameters parameters_;
  std::vector<ParameterGroup> groups_;
  Tensor noise_step_, device_noise_step_;  // the word that noise_ reads
  Rng noise_;
  Tensor numbers_;  // f64 (groups, 3): adamw_numbers of each group
  Tensor known_;    // f64 (accumulate + 1): the losses, and the square of the gradient norm
  std::int64_t steps_done_ = 0;

  struct Recorded {
    std::vector<Batch> batches;  // that the graph reads, of each micro-step
    std::optional<Graph> graph;
  };
  Arena arena_;
  std::map<std::vector<std::int64_t>, Recorded> recorded_;  // by the shapes of the batches
};

}  // namespace sinkhorn
