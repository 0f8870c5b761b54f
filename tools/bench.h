// `sinkhorn bench`: how fast training and generation are, and how much memory they take.
#pragma once
#include <iosfwd>
#include <string>
#include <vector>

#include "tools/bench_report.h"

namespace sinkhorn {

struct BenchOptions {
  std::vector<std::string> cases = {};  // names, or groups of them; none: those that suit the device
  bool list = false, suite = false;
  std::string json = {}, compare = {}, into = {};  // files; json may be - for the standard output
  std::string device = "auto", precision = {};
  std::int64_t steps = 10, threads = 0;
};

/// Runs the cases on their devices and prints a table to `out`, as Markdown with `suite`; with json "-" the JSON alone.
/// `into` is a page between whose marks the Markdown goes, too (tools/bench_report.h), if the exit code is 0.
/// Progress goes to `err`. Returns the exit code: 0; 1 if the numbers of a case were wrong; 4 or 5 if the only case ran
/// out of memory or was not finite. Throws UsageError for an unknown case, DataError for a file that cannot be read or
/// written, DeviceError for a case that needs a GPU where there is none.
int bench(const BenchOptions& options, std::ostream& out, std::ostream& err);

/// The exit code that these results have.
int exit_code_of(const std::vector<BenchResult>& results);

}  // namespace sinkhorn
