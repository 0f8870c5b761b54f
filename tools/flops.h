// How many floating-point operations a model costs, counted from its options: what utilisation is measured against.
#pragma once
#include "models/config.h"

namespace sinkhorn {

/// Multiply-adds of the matrix products in one forward pass. Nothing else is counted: no norm, softmax, Sinkhorn
/// iteration, embedding, or weighted sum of a memory's rows.
struct ForwardProducts {
  double layers = 0;   // of all blocks: projections, scores and values of attention, sort nets, feed-forwards, memories
  double scores = 0;   // the part of `layers` that is queries times keys in the fused attention
  double outside = 0;  // the projections around the stack, and the logits

  double total() const { return layers + outside; }
};

/// For ids (batch, length) and, where the model receives one, a context (batch, context_length, D). Lengths are those
/// of the tensors: whole buckets. Attention counts full tiles, masked or not, as the kernels compute them: a query
/// bucket times the n_top buckets it chose (or SortCut's) and its own one, 128 x 384 for bucket 128 and n_top 2; in a
/// local head times its own window and those beside it, 128 x 256 if causal.
ForwardProducts forward_products(const ModelConfig& config, double batch, double length, double context_length = 0);

/// Floating-point operations, two to a multiply-add.
struct StepFlops {
  double needed = 0;    // forward, and backward with twice as many
  double executed = 0;  // with what is computed again: all blocks if reversible, and in backward the attention's scores
};

/// One training step on `length` tokens a row, rounded up to whole buckets; an encoder (tools/sequence_model.h) reads
/// `source_length` more. With layer dropout, the expectation.
StepFlops training_flops(const ModelConfig& config, double batch, std::int64_t length, std::int64_t source_length = 0);

/// Generating one token of one row behind `context` others: the layers on that token alone.
double generation_flops(const ModelConfig& config, std::int64_t context);

/// The length of the tensors that hold `length` tokens.
std::int64_t padded_length(const ModelConfig& config, std::int64_t length);

}  // namespace sinkhorn
