#include "tools/gradcheck.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>

#include "autograd/gradcheck.h"
#include "models/fields.h"
#include "tools/device.h"

namespace sinkhorn {
namespace {

std::vector<OpCheck> selected(const std::string& op) {
  std::vector<OpCheck> checks = all_op_checks();
  if (op.empty()) return checks;
  std::vector<std::string> names;
  names.reserve(checks.size());
  for (const OpCheck& check : checks) names.emplace_back(check.name);
  std::erase_if(checks, [&](const OpCheck& check) { return check.name != op; });
  if (checks.empty()) {
    const std::string near = nearest(op, names);
    fail<UsageError>("gradcheck: no op ", op, near.empty() ? "" : "; did you mean " + near + "?", "  (there are ",
                     fmt::format("{}", fmt::join(names, ", ")), ")");
  }
  return checks;
}

}  // namespace

int gradcheck(const GradcheckOptions& options, std::ostream& out) {
  const Device device = choose_device(options.device).device;
  bool all_passed = true;
  auto list = nlohmann::json::array();
  for (const OpCheck& check : selected(options.op)) {
    const std::vector<CaseResult> results = check.run(device);
    double worst = 0;
    bool passed = true;
    std::string failures;
    for (const CaseResult& result : results) {
      worst = std::max(worst, result.report.worst);
      passed &= result.passed;
      if (!result.passed) failures += fmt::format("  {}: {}\n", result.label, result.report.where);
    }
    all_passed &= passed;
    if (options.json) {
      const nlohmann::json error = std::isfinite(worst) ? nlohmann::json(worst) : nlohmann::json("infinite");
      list.push_back(
          {{"op", check.name}, {"cases", results.size()}, {"worst_relative_error", error}, {"passed", passed}});
    } else {
      out << fmt::format("{:<18}{:>2} case{}  worst relative error {:.1e}  {}\n{}", check.name, results.size(),
                         results.size() == 1 ? " " : "s", worst, passed ? "ok" : "FAILED", failures);
    }
  }
  if (options.json) out << list.dump(2) << '\n';
  return all_passed ? 0 : 1;
}

}  // namespace sinkhorn
