// Cross-entropy with ignored positions, its gradient, and bits per character: what the exercise is to write.
#pragma once
#include "autograd/tensor.h"

namespace sinkhorn::lesson {

struct Loss {
  double loss = 0;
  std::int64_t count = 0;  // of positions that count
};
/// For logits f64 (positions, V) and targets i32 (positions): the mean of -log softmax(logits of a position)[target],
/// over the positions whose target is not `ignore`; 0 if there is none. `ignore` may be negative, or an id like others.
/// Throws an Error if a target that counts is not one of 0 ... V-1.
Loss cross_entropy(const Tensor& logits, const Tensor& targets, std::int32_t ignore);

/// The gradient of logits, of their shape, if the loss counts dloss.
Tensor cross_entropy_backward(const Tensor& logits, const Tensor& targets, std::int32_t ignore, double dloss);

/// What a mean loss in nats over `tokens` tokens, which stand for `characters` characters, is in bits per character.
double bits_per_character(double loss, std::int64_t tokens, std::int64_t characters);

}  // namespace sinkhorn::lesson
