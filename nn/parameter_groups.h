// Which parameters the optimizer steps at which learning rate.
#pragma once
#include "autograd/optimizer.h"
#include "nn/flat_parameters.h"

namespace sinkhorn {

/// Elements begin .. end-1 of flat parameters, all memory values or none of them.
struct ParameterGroup {
  std::int64_t begin, end;
  bool is_memory;              // see Parameter
  std::vector<Range> decayed;  // which of them take weight decay, counted from `begin`
};

/// All parameters in their order, cut where memory values begin or end: every element is in exactly one group.
std::vector<ParameterGroup> parameter_groups(const FlatParameters& parameters);

}  // namespace sinkhorn
