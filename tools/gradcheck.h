// `sinkhorn gradcheck`: every op's gradient against numeric differences.
#pragma once
#include <iosfwd>
#include <string>

namespace sinkhorn {

struct GradcheckOptions {
  std::string op = {};  // the only one to check; all if empty
  bool json = false;    // a list of objects with op, cases, worst_relative_error, passed and failures
  std::string device = "cpu";
  std::string plant = {};  // the name of a wrong gradient to look at, in the place of ops
};

/// Checks the gradients of all cases of each op in f64 and prints one line per op, and for a case that fails what the
/// gradient microscope shows. Returns the exit code: 0, or 1 if one disagrees. A UsageError if there is no op or no
/// plant of that name.
int gradcheck(const GradcheckOptions& options, std::ostream& out);

}  // namespace sinkhorn
