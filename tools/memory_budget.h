// What a training step of a reversible model holds, tensor by tensor, counted before anything is allocated.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "autograd/dtype.h"
#include "tools/settings.h"

namespace sinkhorn {

struct MemoryLine {
  std::string what, shape;  // "queries", "(B, T, H, d) bf16"
  std::size_t bytes;        // as the pool hands them out
};

/// All that lives at the fullest moment of one part of a step.
struct MemoryPhase {
  std::string name;
  std::vector<MemoryLine> lines;
  std::size_t bytes() const;
};

/// The moments that can be the fullest: logits and loss, a feed-forward in backward, an attention in backward
/// (or a group of its heads).
struct MemoryBudget {
  std::vector<MemoryPhase> phases;
  const MemoryPhase& peak() const;
};

/// Of a model with so many parameters. Empty for models whose peak is not counted here: those that keep all
/// activations (not reversible), encoder-decoders, and models with product-key memories or Gumbel-Sinkhorn.
/// `packs_f32`: whether products of f32 pack their operands (cuda/planes_gemm.h); empty: as this device does.
std::optional<MemoryBudget> memory_budget(const ModelConfig& model, const TrainConfig& train, Device device,
                                          std::int64_t parameters, std::optional<bool> packs_f32 = {});

/// The lines of the peak, largest first, and the sums of the other phases, as text of several lines.
std::string to_table(const MemoryBudget& budget);

/// "4.29 GiB", "48.0 MiB" or "0.5 KiB".
std::string in_units(std::size_t bytes);

}  // namespace sinkhorn
