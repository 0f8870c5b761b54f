// log.jsonl of a run: one JSON object a step, and after a resume still one a step.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "models/durable_file.h"
#include "tools/task_report.h"

namespace sinkhorn {

struct LogEntry {
  std::int64_t step = 0;
  double loss = 0, bits_per_character = 0;
  std::optional<double> val_loss, val_bits_per_character;
  std::vector<TaskScore> scores = {};  // of an evaluation of a task
  double learning_rate = 0, gradient_norm = 0;
  double tokens_per_second = 0, milliseconds = 0;  // last: all that differs from run to run
};

/// One line without its newline; numbers read back to the same bits.
std::string to_json(const LogEntry& entry);

/// Appends to FOLDER/log.jsonl. Throws DataError where the disk refuses.
class RunLog {
 public:
  /// Keeps the lines of steps 1 .. `last_step` of an earlier process and cuts off what follows.
  RunLog(const std::filesystem::path& folder, std::int64_t last_step);
  void add(const LogEntry& entry);
  /// Returns once every line is on the disk.
  void sync();

  static constexpr const char* name = "log.jsonl";

 private:
  std::filesystem::path path_;
  OpenFile file_;
};

}  // namespace sinkhorn
