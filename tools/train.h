// `sinkhorn train`: trains a model on text or on a synthetic task.
#pragma once
#include "tools/settings.h"

namespace sinkhorn {

struct TrainOptions {
  std::string config_path;  // empty: no file
  Flags flags;
  bool print_config = false;   // print the settings as TOML, each with its origin, and stop
  bool print_options = false;  // print the table of all options and stop
  bool memory = false;  // print what a step holds, tensor by tensor, before the run, and what was measured behind it
};

/// Trains, or goes on training, in a run's folder; prints a sample, and last the next command to type. Returns the exit
/// code: 0, or 130 if it was interrupted, saved and can be resumed. Errors are thrown, usage and device errors before
/// any data or folder is touched, data errors before the folder is.
int train(const TrainOptions& options);

/// Whether a validation figure is below what is known to be possible: then a leak is the likelier explanation. Models
/// trained on nothing but a text of 1 MB reach 0.8 of what the best compressor needs for its validation part
/// (tinyshakespeare: 2.12 bits per character against bzip2's 2.64; with a leak 1.56), on 100 MB (enwik8) 0.43; so the
/// bound is 0.6 of it up to 10 million characters, 0.4 beyond. A text that compresses to 2 bits per character or less
/// is no prose, and anything is possible.
bool too_good(double bits_per_character, const std::vector<double>& compressors, std::int64_t characters);

}  // namespace sinkhorn
