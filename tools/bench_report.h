// What `sinkhorn bench` prints: a table, Markdown, JSON, and a comparison with the JSON of an earlier run.
#pragma once
#include <filesystem>

#include "tools/bench_attention.h"
#include "tools/bench_run.h"

namespace sinkhorn {

/// Where and with what a run was made.
struct BenchMachine {
  std::string device;        // the GPU's name, or the processor's with its threads
  std::string driver, cuda;  // newest CUDA that the driver takes, and the one of this build; empty: no CUDA
  std::string date;          // UTC, 2026-01-31T12:00:00Z
  std::string commit;        // of the sources that this build was made of, as they are now
  std::string compiler;
  std::int64_t threads = 0;
};
/// This machine, now. `device` is the one that most is measured on.
BenchMachine this_machine(Device device);

/// Of the sources in `folder`, as git says, or as `git archive` noted in the file .commit; else "unknown".
std::string commit_of(const std::filesystem::path& folder);

struct BenchReport {
  BenchMachine machine;
  std::vector<MatmulCeiling::Figure> ceilings = {};
  std::vector<AttentionSpeed> attention = {};
  std::vector<BenchResult> results = {};
  std::vector<std::string> skipped = {};  // cases of the default set that need a GPU
};

/// An earlier report, as far as it is compared with.
struct EarlierBench {
  struct Figure {
    std::string precision;
    double tokens_per_second;
  };
  std::string path, device, date, commit;
  std::map<std::string, Figure> cases;
};
/// Reads what bench_json() wrote. Throws DataError if the file is missing or is something else.
EarlierBench read_earlier_bench(const std::string& path);
EarlierBench earlier_bench_from_json(const std::string& json, const std::string& path);

/// Speed now over speed then; nothing where one of them was not measured, or in another precision.
std::optional<double> speed_ratio(const BenchResult& now, const EarlierBench& then);

/// All figures, with every sample.
std::string bench_json(const BenchReport& report);
/// For a terminal.
std::string bench_table(const BenchReport& report, const std::optional<EarlierBench>& earlier = {});
/// For a page: device, date and commit, and a table with what others reach at the same cases (tools/bench_cases.h).
std::string bench_markdown(const BenchReport& report, const std::optional<EarlierBench>& earlier = {});
/// `page` with `table` in place of what stands between its lines "<!-- bench -->" and "<!-- /bench -->". Throws
/// DataError, naming the page's `path`, if it does not have both, in this order, once.
std::string page_with_table(const std::string& page, const std::string& table, const std::string& path);

}  // namespace sinkhorn
