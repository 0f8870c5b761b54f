// Attention with a leak put in on purpose: shows what a leak looks like, and that `leak-check` finds it.
#pragma once
#include <string>
#include <vector>

#include "nn/attention.h"

namespace sinkhorn {

/// A mistake that lets a causal model see later tokens.
struct Plant {
  enum class Mistake {
    none,
    local_positions_bf16,  // local heads compare positions that were rounded to bf16
    no_triangle,           // inside a query's own bucket later tokens are not masked
    choose_itself,         // a bucket may choose itself, so its first tokens see its last ones
    whole_bucket_routing,  // routing reads all queries of a bucket, not those up to its first
    no_wrap_mask,          // in the last bucket of rotated heads, the first tokens see what stands beside them
    softmax_before_mask    // masked scores are part of the softmax's sum
  };
  std::string name, purpose;
  Mistake mistake;
  bool needs_local, needs_sorting, needs_attention_sort;
};
const std::vector<Plant>& plants();
/// Throws UsageError naming the nearest plant for an unknown one.
const Plant& find_plant(const std::string& name);

/// The attention of a layer, composed from small ops, with this mistake. Takes whole buckets without padding. "none" is
/// composed_attention()'s function.
AttentionTwin planted_attention(const Plant& plant);

}  // namespace sinkhorn
