// The learning rate as a function of the step: a linear warm-up, then half a cosine.
#pragma once
#include <algorithm>
#include <cmath>
#include <numbers>

#include "tools/settings.h"

namespace sinkhorn {

/// The rate of step 1 .. steps: learning_rate at the end of the warm-up, min_learning_rate at the last step.
inline double learning_rate_at(const TrainConfig& train, std::int64_t step) {
  if (step < train.warmup_steps) return train.learning_rate * double(step) / double(train.warmup_steps);
  const auto rest = std::max<std::int64_t>(train.steps - train.warmup_steps, 1);
  const double done = std::clamp(double(step - train.warmup_steps) / double(rest), 0.0, 1.0);
  const double cosine = (1 + std::cos(std::numbers::pi * done)) / 2;
  return train.min_learning_rate + (train.learning_rate - train.min_learning_rate) * cosine;
}

}  // namespace sinkhorn
