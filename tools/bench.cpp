#include "tools/bench.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <ostream>

#include "autograd/error.h"
#include "autograd/parallel.h"
#include "cuda/device.h"
#include "models/durable_file.h"
#include "tools/device.h"
#include "tools/read_file.h"

namespace sinkhorn {
namespace {

/// H100 SXM, bf16 on tensor cores without sparsity (NVIDIA H100 datasheet); an H200 has the same processor.
constexpr double kHopperPeak = 989e12;

std::optional<double> peak_of(Device device) {
  const cuda::Probe probe = device == Device::cuda ? cuda::probe() : cuda::Probe{};
  if (probe.devices.empty()) return std::nullopt;
  const std::string& name = probe.devices[0].name;
  const bool hopper = name.find("H100") != std::string::npos || name.find("H200") != std::string::npos;
  return hopper ? std::optional(kHopperPeak) : std::nullopt;
}

struct Chosen {
  std::vector<BenchCase> cases;
  std::vector<std::string> skipped;  // names
};

Chosen default_cases(const ChosenDevice& device) {
  Chosen chosen;
  for (const BenchCase& each : bench_cases()) {
    if (each.device == device.device)
      chosen.cases.push_back(each);
    else if (each.device == Device::cuda)
      chosen.skipped.push_back(each.name);
  }
  return chosen;
}

Chosen named_cases(const std::vector<std::string>& names, const ChosenDevice& device, bool cpu_was_asked_for) {
  Chosen chosen;
  for (const std::string& name : names) {
    for (const BenchCase& each : find_bench_cases(name)) {
      const bool known = std::any_of(chosen.cases.begin(), chosen.cases.end(),
                                     [&](const BenchCase& other) { return other.name == each.name; });
      if (known) continue;
      if (each.device == Device::cuda && device.device != Device::cuda)
        fail<DeviceError>("bench: case ", each.name, " needs a GPU, and ",
                          cpu_was_asked_for ? "--device cpu was asked for" : device.why, "; try --case cpu");
      chosen.cases.push_back(each);
    }
  }
  return chosen;
}

void list_cases(std::ostream& out) {
  for (const BenchCase& each : bench_cases()) {
    const std::string size = each.kind == BenchCase::Kind::generation ? fmt::format("{} context", each.length)
                             : each.has_encoder()
                                 ? fmt::format("{} x {} + {}", each.batch, each.source_length, each.length)
                                 : fmt::format("{} x {}", each.batch, each.length);
    out << fmt::format("{:<26}{:<5}{:<6}{:<16}{}\n", each.name, each.device == Device::cuda ? "GPU" : "CPU",
                       each.precision, size, each.purpose);
  }
}

void write_text(const std::string& path, const std::string& text) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(text));
  write_durably(path, std::span(&bytes, 1));
}

}  // namespace

int exit_code_of(const std::vector<BenchResult>& results) {
  const auto any = [&](BenchOutcome outcome) {
    return std::any_of(results.begin(), results.end(), [&](const BenchResult& r) { return r.outcome == outcome; });
  };
  if (any(BenchOutcome::disagrees)) return 1;
  if (results.size() != 1) return any(BenchOutcome::non_finite) ? 1 : 0;
  if (any(BenchOutcome::out_of_memory)) return 4;
  return any(BenchOutcome::non_finite) ? 5 : 0;
}

int bench(const BenchOptions& options, std::ostream& out, std::ostream& err) {
  if (options.list) {
    list_cases(out);
    return 0;
  }
  if (options.steps < 1) fail<UsageError>("bench: --steps ", options.steps, " must be at least 1");
  for (const std::string& name : options.cases) find_bench_cases(name);  // a wrong name is said before a missing GPU
  std::optional<EarlierBench> earlier;
  if (!options.compare.empty()) earlier = read_earlier_bench(options.compare);
  // Before the work: a page without its marks is refused now.
  if (!options.into.empty()) page_with_table(read_file(options.into, "--into"), "", options.into);
  const ChosenDevice device = choose_device(options.device);
  Chosen chosen =
      options.cases.empty() ? default_cases(device) : named_cases(options.cases, device, options.device == "cpu");
  if (options.threads > 0) set_threads(int(options.threads));

  const bool on_gpu = std::any_of(chosen.cases.begin(), chosen.cases.end(),
                                  [](const BenchCase& each) { return each.device == Device::cuda; });
  BenchReport report{.machine = this_machine(on_gpu ? Device::cuda : Device::cpu), .skipped = chosen.skipped};
  MatmulCeiling ceiling;
  for (BenchCase& each : chosen.cases) {
    if (!options.precision.empty()) each.precision = options.precision;
    BenchSettings settings;
    settings.steps = options.steps;
    settings.peak_flops_per_second = peak_of(each.device);
    settings.progress = [&](const std::string& doing) { err << "bench: " << doing << std::endl; };
    report.results.push_back(run_bench_case(each, each.device, ceiling, settings));
    const BenchResult& result = report.results.back();  // said at once: later cases take long, and may be interrupted
    settings.progress(each.name + ": " +
                      (result.was_measured() ? fmt::format("{:.0f} tok/s", result.tokens_per_second()) : result.note));
    if (!each.attention_alone || !result.was_measured()) continue;
    settings.progress(each.name + ": timing attention by itself");
    try {
      report.attention.push_back(measure_attention(each, each.device));
    } catch (const OutOfMemory& error) {
      report.results.back().note = std::string("attention by itself: ") + error.what();
    }
  }
  report.ceilings = ceiling.figures();
  if (!options.json.empty() && options.json != "-") write_text(options.json, bench_json(report));
  if (!options.into.empty() && exit_code_of(report.results) == 0)
    write_text(options.into,
               page_with_table(read_file(options.into, "--into"), bench_markdown(report, earlier), options.into));
  if (options.json == "-")
    out << bench_json(report);
  else
    out << (options.suite ? bench_markdown(report, earlier) : bench_table(report, earlier));
  return exit_code_of(report.results);
}

}  // namespace sinkhorn
