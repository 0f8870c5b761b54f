// `sinkhorn train`: trains a language model on text.
#pragma once
#include "tools/settings.h"

namespace sinkhorn {

struct TrainOptions {
  std::string config_path;  // empty: no file
  Flags flags;
  bool print_config = false;   // print the settings as TOML, each with its origin, and stop
  bool print_options = false;  // print the table of all options and stop
};

int train(const TrainOptions& options);

}  // namespace sinkhorn
