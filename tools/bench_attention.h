// How fast bucketed attention is by itself.
#pragma once
#include <string>

#include "tools/bench_cases.h"

namespace sinkhorn {

/// FLOP/s of the heads of one layer, counted over full tiles: for every head, local ones too, a bucket of queries by n
/// + 1 buckets of keys, two products forward and five backward, whatever causality, narrower windows and null blocks
/// leave of them. So it compares with attention that has no such structure, and is not what the tensor cores do.
struct AttentionSpeed {
  std::string name;  // of the case whose shape it is
  Device device = Device::cpu;
  std::string precision;
  double forward = 0;   // where nothing is recorded
  double recorded = 0;  // forward as in training, with what backward reads
  double backward = 0;  // of queries, keys, values, weights and nulls
};

/// Of a causal case, on random numbers, each bucket choosing among the nulls and the buckets before it; the medians.
AttentionSpeed measure_attention(const BenchCase& at, Device device);

}  // namespace sinkhorn
