// Wrong: each micro-batch starts from zero gradients, so only the last one counts.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "notebooks/lessons/25_training/exercise.h"

namespace sinkhorn::lesson {

double learning_rate_at(const Plan& plan, std::int64_t step) {
  if (step < plan.warmup) return plan.learning_rate * double(step) / double(plan.warmup);
  const double done = double(step - plan.warmup) / double(plan.steps - plan.warmup);
  const double cosine = (1 + std::cos(std::numbers::pi * done)) / 2;
  return plan.min_learning_rate + (plan.learning_rate - plan.min_learning_rate) * cosine;
}

double accumulate_gradients(const SinkhornTransformerLM& model, FlatParameters& parameters,
                            const std::vector<Tensor>& micro_batches) {
  const double share = 1 / double(micro_batches.size());
  double loss = 0;
  for (const Tensor& ids : micro_batches) {
    parameters.zero_gradients();
    const Tape tape = Tape::record(true);
    const Var part = autoregressive_loss(model, Scope{.tape = tape, .training = true}, ids).loss;
    tape.backward(part, Tensor::full(part.shape(), share));
    loss += share * part.value.item();
  }
  return loss;
}

double clip_scale(double norm, double clip_norm) { return std::min(1.0, clip_norm / (norm + 1e-6)); }

std::vector<double> train(const SinkhornTransformerLM& model, FlatParameters& parameters, const Plan& plan,
                          const std::function<Tensor(std::int64_t step, std::int64_t micro)>& batch) {
  std::vector<double> losses;
  const std::vector<ParameterGroup> groups = parameter_groups(parameters);
  for (std::int64_t step = 1; step <= plan.steps; ++step) {
    std::vector<Tensor> micro_batches;
    micro_batches.reserve(std::size_t(plan.micro_batches));
    for (std::int64_t micro = 0; micro < plan.micro_batches; ++micro) micro_batches.push_back(batch(step, micro));
    losses.push_back(accumulate_gradients(model, parameters, micro_batches));
    const double scale = clip_scale(global_norm({parameters.gradients}), plan.clip_norm);
    for (const ParameterGroup& group : groups) {
      const auto part = [&](const Tensor& flat) { return flat.slice(group.begin, group.end); };
      adamw_step(plan.adam, step, learning_rate_at(plan, step), part(parameters.values), part(parameters.gradients),
                 part(parameters.first_moment), part(parameters.second_moment), group.decayed, scale);
    }
  }
  return losses;
}

}  // namespace sinkhorn::lesson
