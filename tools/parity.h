// `sinkhorn parity`: the model against numbers of an independent implementation, in f64.
#pragma once
#include <ostream>
#include <string>
#include <vector>

#include "autograd/dtype.h"

namespace sinkhorn {

struct ParityOptions {
  std::vector<std::string> paths;  // fixture files, or folders of them
  double tolerance = 1e-9;
  std::string device = "auto";
};

/// For each fixture: builds the model of its config, loads its weights, runs forward and backward, and prints the worst
/// relative error of out, loss and gradients (agreement as relative_error() defines it). The last line is
/// `N passed, N failed`. Returns 0 if every case passed, else 1. A case whose kind or options this version does not
/// have fails, with the reason. DataError for a path that is not there or a folder without fixtures.
int parity(const ParityOptions& options, std::ostream& out);
/// The same on a device whatever the options say: tests name the emulated one, which no option does.
int parity_on(Device device, const ParityOptions& options, std::ostream& out);

}  // namespace sinkhorn
