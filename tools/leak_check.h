// `sinkhorn leak-check`: changes later tokens and looks for earlier outputs that move.
#pragma once
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "models/encoder_decoder.h"
#include "tools/settings.h"

namespace sinkhorn {

/// Where a later token first comes through, in the order in which the model computes.
struct LeakSource {
  std::int64_t layer = 0;                // counted from 0
  bool cross = false;                    // in the layer's cross-attention block
  std::int64_t head = -1;                // counted from 0; -1: the move is first seen behind the heads
  std::string part;                      // "attention", "feed-forward" or "logits", where there is no head
  std::int64_t position = 0, input = 0;  // the output that moved, and the token that moved it
};

struct LeakReport {
  std::int64_t trials = 0, leaky = 0;
  std::optional<LeakSource> first;
  std::vector<std::int64_t> moved;  // positions whose logits moved in some trial, in order
  double largest = 0;               // change of a logit, and its position
  std::int64_t largest_position = 0;
};

/// `trials` times: random tokens (1, length), every token after some position changed to another one, and everything
/// up to that position compared bit for bit: the heads and sublayers of every layer, and the logits. The positions are
/// spread over the sequence. A decoder gets the same `context` (1, S, D) in every trial. A function of model, length,
/// trials, seed and context.
LeakReport find_leaks(const SinkhornTransformerLM& model, std::int64_t length, std::int64_t trials, std::uint64_t seed,
                      const Tensor& context = {});

struct LeakCheckOptions {
  std::string checkpoint, preset, config;
  std::int64_t seq_len = 0;  // 0: that of the preset, config or checkpoint
  std::int64_t trials = 16;
  std::string dtype = "f32";
  std::int64_t seed = 1;
  std::string plant;
  std::string device = "auto";
  std::int64_t threads = 0;
};
/// The table of options; its slots point into `options`.
Fields fields(LeakCheckOptions& options);

/// Prints what moved and where from. Returns 0 if nothing did, else 1; errors are thrown.
int leak_check(const LeakCheckOptions& options, std::ostream& out);

}  // namespace sinkhorn
