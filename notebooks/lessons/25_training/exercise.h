// The training loop of the library's language model: what the exercise is to write.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "autograd/optimizer.h"
#include "models/language_model.h"
#include "nn/parameter_groups.h"

namespace sinkhorn::lesson {

/// What a run is given.
struct Plan {
  std::int64_t steps = 0, warmup = 0;               // warmup < steps
  double learning_rate = 0, min_learning_rate = 0;  // at the end of the warm-up, and at the last step
  double clip_norm = 1;                             // longest gradient that reaches the optimizer
  std::int64_t micro_batches = 1;                   // of each step
  AdamW adam = {};
};

/// The rate of step 1 .. steps: rises in a straight line to learning_rate at step `warmup`, then follows half a cosine
/// to min_learning_rate at step `steps`.
double learning_rate_at(const Plan& plan, std::int64_t step);

/// Makes parameters.gradients the gradient of the mean loss of all micro-batches, whatever was in there before, and
/// returns that loss in nats. A micro-batch is ids i32 (B, T + 1), all of one shape; its loss is autoregressive_loss.
/// The model has no dropout: its Scope needs a tape, and training = true.
double accumulate_gradients(const SinkhornTransformerLM& model, FlatParameters& parameters,
                            const std::vector<Tensor>& micro_batches);

/// What the gradient is multiplied with so that its norm is at most clip_norm; 1 if it is already.
double clip_scale(double norm, double clip_norm);

/// Trains for plan.steps steps with AdamW, `batch(step, micro)` being the micro-batches of step 1, 2, ...; weight decay
/// acts where parameter_groups(parameters) says. Returns the loss of each step.
std::vector<double> train(const SinkhornTransformerLM& model, FlatParameters& parameters, const Plan& plan,
                          const std::function<Tensor(std::int64_t step, std::int64_t micro)>& batch);

}  // namespace sinkhorn::lesson
