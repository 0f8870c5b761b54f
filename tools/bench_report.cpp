#include "tools/bench_report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "autograd/error.h"
#include "autograd/parallel.h"
#include "build_info.h"
#include "cuda/device.h"
#include "tools/progress.h"
#include "tools/read_file.h"
#include "tools/subprocess.h"

namespace sinkhorn {
namespace {

using Json = nlohmann::ordered_json;
constexpr const char* kFormat = "sinkhorn bench 1";

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (const auto at = line.find(": "); line.starts_with("model name") && at != std::string::npos)
      return line.substr(at + 2);
  return "unknown processor";
}

std::string outcome_name(BenchOutcome outcome) {
  switch (outcome) {
    case BenchOutcome::measured:
      return "measured";
    case BenchOutcome::out_of_memory:
      return "out of memory";
    case BenchOutcome::disagrees:
      return "wrong numbers";
    case BenchOutcome::non_finite:
      return "not finite";
  }
  return "";
}

std::string gib(std::size_t bytes) { return fmt::format("{:.2f}", double(bytes) / (1 << 30)); }

std::string ratio_text(const BenchResult& result, const EarlierBench& earlier) {
  const auto then = earlier.cases.find(result.at.name);
  if (!result.was_measured() || then == earlier.cases.end()) return "-";
  if (const auto ratio = speed_ratio(result, earlier)) return fmt::format("{:.2f}x", *ratio);
  return "was " + then->second.precision;
}

using Row = std::vector<std::string>;

std::string speed_text(double tokens_per_second) {
  return tokens_per_second < 100 ? fmt::format("{:.1f}", tokens_per_second) : grouped(std::llround(tokens_per_second));
}
std::string ms_text(const BenchResult& r) {
  const double ms = r.at.kind == BenchCase::Kind::generation ? r.median_ms() / double(r.tokens) : r.median_ms();
  return fmt::format("{:.{}f}", ms, ms < 10 ? 3 : 1);
}

/// The head, then a row for each case; a case without figures has its outcome and no more.
std::vector<Row> rows_of(const BenchReport& report, const std::optional<EarlierBench>& earlier) {
  std::vector<Row> rows{{"case", "in", "tok/s", "ms", "spread", "MFU/HFU %", "of matmul %", "pool GiB", "GPU GiB"}};
  if (earlier) rows[0].push_back("against");
  for (const BenchResult& r : report.results) {
    if (!r.was_measured()) {
      rows.push_back({r.at.name, r.at.precision, outcome_name(r.outcome)});
      continue;
    }
    rows.push_back({r.at.name, r.at.precision, speed_text(r.tokens_per_second()), ms_text(r),
                    fmt::format("{:.1f} %", 100 * r.spread()),
                    fmt::format("{:.1f}/{:.1f}", 100 * r.mfu(), 100 * r.hfu()),
                    fmt::format("{:.1f}/{:.1f}", 100 * r.mfu_of_ceiling(), 100 * r.hfu_of_ceiling()), gib(r.pool_bytes),
                    r.driver_bytes ? gib(*r.driver_bytes) : "-"});
    if (earlier) rows.back().push_back(ratio_text(r, *earlier));
  }
  return rows;
}

/// The same for a page: what a reader asks first, and how others do.
std::vector<Row> page_rows_of(const BenchReport& report, const std::optional<EarlierBench>& earlier) {
  std::vector<Row> rows{{"case", "in", "tokens a second", "ms", "MFU/HFU %", "GiB", "package", "dense GPT"}};
  if (earlier) rows[0].push_back("against");
  for (const BenchResult& r : report.results) {
    const std::string name = r.at.name + ": " + r.at.purpose;
    if (!r.was_measured()) {
      rows.push_back({name, r.at.precision, outcome_name(r.outcome)});
      continue;
    }
    const auto beside = [&](double other) {
      return other > 0 ? fmt::format("{} ({:.3g}x)", speed_text(other), r.tokens_per_second() / other) : "";
    };
    rows.push_back({name, r.at.precision, speed_text(r.tokens_per_second()), ms_text(r),
                    fmt::format("{:.1f}/{:.1f}", 100 * r.mfu(), 100 * r.hfu()), gib(r.pool_bytes),
                    beside(r.at.others.package), beside(r.at.others.dense)});
    if (earlier) rows.back().push_back(ratio_text(r, *earlier));
  }
  return rows;
}

/// What stands under the table, a line each.
std::vector<std::string> notes_of(const BenchReport& report, const std::optional<EarlierBench>& earlier) {
  std::vector<std::string> notes;
  for (const MatmulCeiling::Figure& c : report.ceilings)
    notes.push_back(fmt::format("matmul on {}, {} {}^3: {:.4g} TFLOP/s", text_of(c.device), c.precision, c.edge,
                                c.flops_per_second / 1e12));
  for (const AttentionSpeed& a : report.attention)
    notes.push_back(
        fmt::format("attention of {} by itself on {}, {}, over full tiles: {:.4g} TFLOP/s forward, {:.4g} as training "
                    "records it, {:.4g} backward",
                    a.name, text_of(a.device), a.precision, a.forward / 1e12, a.recorded / 1e12, a.backward / 1e12));
  notes.push_back("ms of a training step, or of a generated token: median");
  for (const BenchResult& r : report.results) {
    if (!r.was_measured() || r.peak == r.ceiling) continue;
    notes.push_back(fmt::format("MFU and HFU are shares of the device's bf16 peak, {:.0f} TFLOP/s", r.peak / 1e12));
    break;
  }
  for (const BenchResult& r : report.results)
    if (!r.note.empty()) notes.push_back(r.at.name + ": " + r.note);
  for (const BenchResult& r : report.results)
    if (r.was_measured())
      for (const std::string& doubt : r.doubts()) notes.push_back(r.at.name + ": warning: " + doubt);
  if (!report.skipped.empty())
    notes.push_back(fmt::format("skipped, since they need a GPU: {}", fmt::join(report.skipped, ", ")));
  if (!earlier) return notes;
  notes.push_back(fmt::format("against: speed over that of {} ({}, {}, commit {})", earlier->path, earlier->device,
                              earlier->date, earlier->commit));
  if (earlier->device != report.machine.device)
    notes.push_back(
        fmt::format("warning: that was another device ({}), so the ratios do not compare the code", earlier->device));
  return notes;
}

std::string driver_text(const BenchMachine& m) {
  return m.driver.empty() ? "" : fmt::format("; driver for CUDA {}, CUDA {}", m.driver, m.cuda);
}

}  // namespace

std::string commit_of(const std::filesystem::path& folder) {
  std::string noted;
  std::ifstream(folder / ".commit") >> noted;
  if (!noted.empty() && !noted.starts_with("$")) return noted;  // else this is a checkout
  const auto git = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"git", "-C", folder.string()});
    return run_subprocess(words);
  };
  try {
    SubprocessResult head = git({"rev-parse", "--short=12", "HEAD"});
    if (head.ok()) {
      head.output.erase(head.output.find_last_not_of(" \n") + 1);
      return head.output + (git({"diff", "--quiet", "HEAD"}).ok() ? "" : " with changes");
    }
  } catch (const Error&) {  // there is no git
  }
  return "unknown";
}

BenchMachine this_machine(Device device) {
  const cuda::Probe probe = cuda::probe();
  const bool on_gpu = device == Device::cuda && !probe.devices.empty();
  return {on_gpu ? probe.devices[0].name : fmt::format("{}, {} threads", processor(), threads()),
          probe.driver,
          probe.runtime,
          fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr))),
          commit_of(build_info::source_dir),
          std::string(build_info::compiler),
          threads()};
}

std::string bench_json(const BenchReport& report) {
  const BenchMachine& m = report.machine;
  Json json{{"format", kFormat}, {"device", m.device}, {"driver", m.driver},     {"cuda", m.cuda},
            {"date", m.date},    {"commit", m.commit}, {"compiler", m.compiler}, {"threads", m.threads}};
  json["matmul"] = Json::array();
  for (const MatmulCeiling::Figure& c : report.ceilings)
    json["matmul"].push_back({{"device", text_of(c.device)},
                              {"precision", c.precision},
                              {"edge", c.edge},
                              {"flops_per_second", c.flops_per_second}});
  json["attention"] = Json::array();
  for (const AttentionSpeed& a : report.attention)
    json["attention"].push_back({{"name", a.name},
                                 {"device", text_of(a.device)},
                                 {"precision", a.precision},
                                 {"forward_flops_per_second", a.forward},
                                 {"recorded_flops_per_second", a.recorded},
                                 {"backward_flops_per_second", a.backward}});
  json["cases"] = Json::array();
  for (const BenchResult& r : report.results) {
    Json entry{{"name", r.at.name},
               {"kind", r.at.kind == BenchCase::Kind::training ? "training" : "generation"},
               {"outcome", outcome_name(r.outcome)},
               {"note", r.note},
               {"precision", r.at.precision},
               {"batch", r.at.batch},
               {"length", r.at.length},
               {"source_length", r.at.source_length}};
    if (r.was_measured()) {
      entry.update(Json{{"parameters", r.parameters},
                        {"warmup_samples", r.warmup_steps},
                        {"tokens_per_sample", r.tokens},
                        {"samples_ms", r.milliseconds},
                        {"median_ms", r.median_ms()},
                        {"spread", r.spread()},
                        {"tokens_per_second", r.tokens_per_second()},
                        {"needed_flops_per_sample", r.flops.needed},
                        {"executed_flops_per_sample", r.flops.executed},
                        {"peak_flops_per_second", r.peak},
                        {"matmul_flops_per_second", r.ceiling},
                        {"mfu", r.mfu()},
                        {"hfu", r.hfu()},
                        {"mfu_of_matmul", r.mfu_of_ceiling()},
                        {"hfu_of_matmul", r.hfu_of_ceiling()},
                        {"waited_for_processor", r.waited},
                        {"doubts", r.doubts()},
                        {"host_ms", r.host_ms},
                        {"pool_peak_bytes", r.pool_bytes},
                        {"gpu_bytes_in_use", nullptr},
                        {"first_loss", nullptr},
                        {"last_loss", nullptr}});
      if (r.driver_bytes) entry["gpu_bytes_in_use"] = *r.driver_bytes;
      if (r.at.kind == BenchCase::Kind::training) {
        entry["first_loss"] = r.first_loss;
        entry["last_loss"] = r.last_loss;
      }
    }
    json["cases"].push_back(std::move(entry));
  }
  json["skipped"] = report.skipped;
  return json.dump(1) + "\n";
}

EarlierBench earlier_bench_from_json(const std::string& text, const std::string& path) {
  const auto refuse = [&](const std::string& why) {
    fail<DataError>("--compare: ", path, " ", why, "; give a file that `sinkhorn bench --json FILE` wrote");
  };
  EarlierBench earlier{path, {}, {}, {}, {}};
  try {
    const Json json = Json::parse(text);
    if (!json.is_object() || json.value("format", "") != kFormat) refuse("holds no benchmark of this format");
    earlier.device = json.at("device").get<std::string>();
    earlier.date = json.at("date").get<std::string>();
    earlier.commit = json.at("commit").get<std::string>();
    for (const Json& entry : json.at("cases")) {
      if (!entry.contains("tokens_per_second")) continue;
      const double speed = entry.at("tokens_per_second").get<double>();
      if (!(speed > 0)) refuse("has a speed that is no positive number");
      earlier.cases[entry.at("name").get<std::string>()] = {entry.at("precision").get<std::string>(), speed};
    }
  } catch (const Json::parse_error&) {
    refuse("is no JSON");
  } catch (const Json::exception&) {
    refuse("lacks what a benchmark has");
  }
  return earlier;
}

EarlierBench read_earlier_bench(const std::string& path) {
  return earlier_bench_from_json(read_file(path, "--compare"), path);
}

std::optional<double> speed_ratio(const BenchResult& now, const EarlierBench& then) {
  const auto at = then.cases.find(now.at.name);
  if (!now.was_measured() || at == then.cases.end() || at->second.precision != now.at.precision) return std::nullopt;
  return now.tokens_per_second() / at->second.tokens_per_second;
}

std::string bench_table(const BenchReport& report, const std::optional<EarlierBench>& earlier) {
  const std::vector<Row> rows = rows_of(report, earlier);
  std::vector<std::size_t> widths(rows[0].size());
  for (const Row& row : rows)
    if (row.size() == widths.size())
      for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  for (const Row& row : rows)
    for (std::size_t i = 0; i < std::min<std::size_t>(row.size(), 2); ++i)
      widths[i] = std::max(widths[i], row[i].size());

  const BenchMachine& m = report.machine;
  std::string text = fmt::format("{}{}\n{}, commit {}, {}\n\n", m.device, driver_text(m), m.date, m.commit, m.compiler);
  for (const Row& row : rows) {
    std::string line = fmt::format("{:<{}}  {:<{}}", row[0], widths[0], row[1], widths[1]);
    for (std::size_t i = 2; i < row.size(); ++i) line += fmt::format("  {:>{}}", row[i], widths[i]);
    text += line + "\n";
  }
  text += "\n";
  for (const std::string& note : notes_of(report, earlier)) text += note + "\n";
  text += "spread: half the distance between the quartiles\n";
  return text;
}

std::string bench_markdown(const BenchReport& report, const std::optional<EarlierBench>& earlier) {
  const BenchMachine& m = report.machine;
  std::string text =
      fmt::format("{}, {}, commit {}; {}{}\n\n", m.device, m.date.substr(0, 10), m.commit, m.compiler, driver_text(m));
  const std::vector<Row> rows = page_rows_of(report, earlier);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Row row = rows[i];
    row.resize(rows[0].size());
    text += fmt::format("| {} |\n", fmt::join(row, " | "));
    if (i > 0) continue;
    text += "|---|---|";
    for (std::size_t column = 2; column < row.size(); ++column) text += "---:|";
    text += "\n";
  }
  text += "\n";
  std::vector<std::string> notes = notes_of(report, earlier);
  if (std::any_of(report.results.begin(), report.results.end(),
                  [](const BenchResult& r) { return r.at.others.package > 0 || r.at.others.dense > 0; }))
    for (const char* note :
         {"package: tokens a second of sinkhorn_transformer 0.11.4; behind them how many times faster "
          "this is",
          "dense GPT: of a GPT as wide and deep with FlashAttention and torch.compile; both in PyTorch "
          "2.11 on another H100 80GB HBM3"})
      notes.push_back(note);
  for (const std::string& note : notes) text += "- " + note + "\n";
  return text;
}

std::string page_with_table(const std::string& page, const std::string& table, const std::string& path) {
  const std::string begin = "<!-- bench -->\n", end = "<!-- /bench -->\n";
  const std::size_t from = page.find(begin), to = page.find(end);
  if (from == std::string::npos || to == std::string::npos || to < from || page.find(begin, from + 1) != page.npos ||
      page.find(end, to + 1) != page.npos)
    fail<DataError>("--into: ", path, " needs one line \"<!-- bench -->\" and behind it one \"<!-- /bench -->\"; the ",
                    "table goes between them");
  return page.substr(0, from + begin.size()) + "\n" + table + "\n" + page.substr(to);
}

}  // namespace sinkhorn
