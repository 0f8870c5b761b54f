// What a model of the published package computes otherwise here, because a defect of the package is corrected.
#pragma once
#include <string>
#include <vector>

#include "models/config.h"

namespace sinkhorn {

/// One sentence for each corrected defect that changes the function of a model with these options, trained in the
/// package. `half`: it ran in f16 or bf16.
std::vector<std::string> corrected_defects(const ModelConfig& config, bool half);

}  // namespace sinkhorn
