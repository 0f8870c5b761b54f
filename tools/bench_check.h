// Is what `sinkhorn bench` times right? A small model of the same kind, on the same device, against the CPU in f64.
#pragma once
#include <functional>

#include "models/language_model.h"
#include "tools/bench_cases.h"

namespace sinkhorn {

struct BenchCheck {
  double loss_error = 0;  // relative; 0 for generation
  double error = 0;       // the largest of a parameter's gradient, or of the logits that follow a text
  std::string where;      // the parameter with the largest error, or "logits"
  double limit = 0, loss_limit = 0;

  bool agrees() const { return loss_error <= loss_limit && error <= limit; }
  /// "the gradient of ... is off by 0.3, at most 0.0001 is rounding".
  std::string text() const;
};

/// Does something wrong to the model that is checked, a decoder if there are two: a check of this check.
using BenchTamper = std::function<void(SinkhornTransformerLM& model)>;

/// Training: loss and every gradient of the first step that the case's Trainer takes, dropout and all, with the
/// small_twin() of the case. An error is |got - want| / max(|want|, 0.01 of the largest such norm), norms of a
/// parameter's gradient in f64. Generation: logits token by token against those of the whole text at once.
/// f32 has to agree at the first draw of parameters. A lower precision is checked where f32 agrees: there rounding may
/// turn a pick of buckets over, which moves gradients by any amount, so it has to agree at one of several draws.
BenchCheck check_bench_case(const BenchCase& timed, Device device, const BenchTamper& tamper = {});

}  // namespace sinkhorn
