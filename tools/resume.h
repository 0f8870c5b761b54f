// Going on with a run: which folder, and which settings where command line and checkpoint differ.
#pragma once
#include <string>

#include "tools/checkpoint.h"
#include "tools/settings.h"

namespace sinkhorn {

/// The checkpoint's settings, changed by those of `given` that the user set. Options that only say how long to go on,
/// what to show and where to compute may change; others of training only with --override; the model's never. Throws
/// UsageError with the differences.
Settings settings_to_resume(const Settings& given, const RunRecord& record, const std::string& checkpoint);

/// Whether a folder holds a checkpoint.
bool holds_run(const std::string& folder);
/// The first of `base`, `base`-2, `base`-3, ... that holds no run; the last that does (`base` if none does).
std::string fresh_folder(const std::string& base);
std::string latest_folder(const std::string& base);

}  // namespace sinkhorn
