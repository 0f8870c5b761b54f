#include "tools/gradcheck.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>

#include "autograd/microscope.h"
#include "models/fields.h"
#include "notebooks/kit/microscope_view.h"
#include "tools/device.h"
#include "tools/planted_gradients.h"

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

/// What is printed as one line: an op, or a plant.
struct Subject {
  std::string name;
  std::vector<CaseResult> results;

  bool passed() const {
    return std::all_of(results.begin(), results.end(), [](const CaseResult& result) { return result.passed; });
  }
  double worst() const {
    double worst = 0;
    for (const CaseResult& result : results) worst = std::max(worst, result.report.worst);
    return worst;
  }
};

nlohmann::json as_json(double x) { return std::isfinite(x) ? nlohmann::json(x) : nlohmann::json("infinite"); }

nlohmann::json as_json(const std::string& tensor, const std::vector<Finding>& findings) {
  auto list = nlohmann::json::array();
  for (const Finding& finding : findings)
    list.push_back({{"tensor", tensor.empty() ? nlohmann::json() : nlohmann::json(tensor)},
                    {"cause", name_of(finding.cause)},
                    {"evidence", finding.evidence},
                    {"fit", finding.fit}});
  return list;
}

/// A case that failed: where it is worst, and every finding of the microscope, the likeliest first.
nlohmann::json failure_json(const CaseResult& result) {
  const Diagnosis diagnosis = diagnose(result.report.gradients);
  const Finding* likely = diagnosis.likely();
  nlohmann::json findings = as_json("", diagnosis.findings);
  for (const WrongGradient& wrong : diagnosis.wrong)
    for (const nlohmann::json& finding : as_json(wrong.name, wrong.findings)) findings.push_back(finding);
  return {{"case", result.label},
          {"where", result.report.where},
          {"cause", likely != nullptr ? nlohmann::json(name_of(likely->cause)) : nlohmann::json()},
          {"evidence", likely != nullptr ? nlohmann::json(likely->evidence) : nlohmann::json()},
          {"findings", findings}};
}

nlohmann::json as_json(const Subject& subject) {
  auto failures = nlohmann::json::array();
  for (const CaseResult& result : subject.results)
    if (!result.passed) failures.push_back(failure_json(result));
  return {{"op", subject.name},
          {"cases", subject.results.size()},
          {"worst_relative_error", as_json(subject.worst())},
          {"passed", subject.passed()},
          {"failures", failures}};
}

void print(const Subject& subject, std::ostream& out) {
  out << fmt::format("{:<18}{:>2} case{}  worst relative error {:.1e}  {}\n", subject.name, subject.results.size(),
                     subject.results.size() == 1 ? " " : "s", subject.worst(), subject.passed() ? "ok" : "FAILED");
  const drawing::Style style = drawing::style_of_stdout();
  for (const CaseResult& result : subject.results) {
    if (result.passed) continue;
    out << drawing::wrap(style, fmt::format("{}: {}", result.label, result.report.where)) << '\n'
        << drawing::microscope_view(style, diagnose(result.report.gradients)) << '\n';
  }
}

int check_plant(const GradcheckOptions& options, std::ostream& out) {
  if (!options.op.empty())
    fail<UsageError>("gradcheck: --plant excludes --op; a plant brings its own function and gradient");
  const PlantedGradient& planted = find_planted_gradient(options.plant);
  const Subject subject{"planted " + planted.name, {check_case(planted.purpose, planted.problem_at)}};
  if (options.json)
    out << nlohmann::json::array({as_json(subject)}).dump(2) << '\n';
  else
    print(subject, out);
  return subject.passed() ? 0 : 1;
}

}  // namespace

int gradcheck(const GradcheckOptions& options, std::ostream& out) {
  if (!options.plant.empty()) return check_plant(options, out);
  const Device device = choose_device(options.device).device;
  bool all_passed = true;
  auto list = nlohmann::json::array();
  for (const OpCheck& check : selected(options.op)) {
    const Subject subject{std::string(check.name), check.run(device)};
    all_passed = all_passed && subject.passed();
    if (options.json)
      list.push_back(as_json(subject));
    else
      print(subject, out);
  }
  if (options.json) out << list.dump(2) << '\n';
  return all_passed ? 0 : 1;
}

}  // namespace sinkhorn
