// A training run's settings: every option with its default, and the layers (preset, file, flags) they are read from.
#pragma once
#include <map>

#include "models/config.h"

namespace sinkhorn {

/// Options of training that are not the model's.
struct TrainConfig {
  std::string preset;
  std::string data;  // empty: the default text
  std::string out;   // empty: runs/PRESET
  std::string task = "none";
  std::int64_t task_length = 32, task_symbols = 10;
  bool task_shift = false, encoder_decoder = false, resume = false, override_settings = false;
  std::string device = "auto", precision = "f32";
  std::int64_t threads = 0;  // 0: all cores
  std::int64_t seed = 1;
  std::string vocabulary = "char";
  std::int64_t steps = 600, batch_size = 8, accumulate = 1, seq_len = 256;
  double learning_rate = 1e-3, min_learning_rate = 1e-4, pkm_learning_rate = 1e-2;
  std::int64_t warmup_steps = 50;
  double beta1 = 0.9, beta2 = 0.99, epsilon = 1e-8, weight_decay = 0.1, clip_norm = 1;
  double embedding_init_std = 1;
  std::int64_t eval_every = 100, eval_batches = 8, checkpoint_every = 200, keep = 2, log_every = 20;
  double target_val_loss = 0;  // 0: none
  std::string sample_prompt;
  std::int64_t sample_length = 400;
  double sample_temperature = 0.8;
  std::int64_t sample_top_k = 0;
  double sample_top_p = 1;

  bool operator==(const TrainConfig&) const = default;

  bool has_task() const { return task != "none"; }
};

/// The table of training options; its slots point into `config`.
Fields fields(TrainConfig& config);

struct Preset {
  std::string name, purpose, toml;  // the options it sets, as a file would set them
};
const std::vector<Preset>& presets();

/// Model and training options, and for each where its value came from.
struct Settings {
  ModelConfig model;
  TrainConfig train;
  std::map<std::string, std::string> origins;  // option -> "preset cpu-small", "run.toml:12", "flag"; absent: default

  Fields model_fields() { return fields(model); }
  Fields train_fields() { return fields(train); }
  Fields all_fields();
  /// Sets one option. Throws UsageError, beginning with `where`, naming the nearest option for an unknown one.
  void set(const std::string& name, const Value& value, const std::string& where, const std::string& origin);
  /// Reads options from TOML, tables [model] and [train]. Errors are `source:line: ...`.
  void read_toml(std::string_view text, const std::string& source);
  void read_preset(const std::string& name);
  /// Lengths that were not chosen follow from the task.
  void fit_task();
};

/// Slots of a row, in whole buckets, that examples take at the training length and at twice that.
struct TaskLengths {
  std::int64_t training, evaluation;
};
TaskLengths task_lengths(const Settings& settings);

/// A flag as typed: the option's name and text.
using Flags = std::vector<std::pair<std::string, std::string>>;

/// Defaults, then the file at `path`: no preset, nothing checked but single values. Throws UsageError.
Settings read_config(const std::string& path);

/// Defaults, then the preset (named by flag or by file, else by `default_preset`), then the file at `config_path` (if
/// not empty), then the flags; checked. Throws UsageError. Reads no data and touches no folder.
Settings resolve(const std::string& config_path, const Flags& flags, const std::string& default_preset = "cpu-small");
/// Checks single values and their combinations. Throws UsageError.
void validate(const Settings& settings);

/// The settings as a TOML file that `--config` reads back to the same bits, each value with its origin as a comment.
std::string to_toml(Settings settings);
/// The table of all options as Markdown: name, default, what is accepted, meaning.
std::string options_markdown();

/// `--learning-rate` for learning_rate.
std::string flag_of(const std::string& name);

}  // namespace sinkhorn
