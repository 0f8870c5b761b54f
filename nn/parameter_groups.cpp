#include "nn/parameter_groups.h"

namespace sinkhorn {

std::vector<ParameterGroup> parameter_groups(const FlatParameters& parameters) {
  std::vector<ParameterGroup> groups;
  for (const FlatParameters::Entry& entry : parameters.entries()) {
    const bool is_memory = entry.parameter->is_memory;
    if (groups.empty() || groups.back().is_memory != is_memory)
      groups.push_back({entry.begin, entry.end, is_memory, {}});
    ParameterGroup& group = groups.back();
    group.end = entry.end;
    if (entry.parameter->decays) group.decayed.push_back({entry.begin - group.begin, entry.end - group.begin});
  }
  return groups;
}

}  // namespace sinkhorn
