// `sinkhorn train`: trains a model on text or on a synthetic task.
#pragma once
#include "tools/settings.h"

namespace sinkhorn {

struct TrainOptions {
  std::string config_path;  // empty: no file
  Flags flags;
  bool print_config = false;   // print the settings as TOML, each with its origin, and stop
  bool print_options = false;  // print the table of all options and stop
};

/// Trains, or goes on training, in a run's folder; prints a sample, and last the next command to type. Returns the exit
/// code: 0, or 130 if it was interrupted, saved and can be resumed. Errors are thrown, usage and device errors before
/// any data or folder is touched, data errors before the folder is.
int train(const TrainOptions& options);

/// A loss no honest model reaches: below 0.8 bits per character where every compressor that is there needs over 2.
bool too_good(double bits_per_character, const std::vector<double>& compressors);

}  // namespace sinkhorn
