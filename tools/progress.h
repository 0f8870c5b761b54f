// What a training run shows while it works: one line that is redrawn on a terminal, plain lines elsewhere.
#pragma once
#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>

namespace sinkhorn {

struct StepReport {
  std::int64_t step = 0, steps = 0;
  double loss = 0, bits_per_character = 0, gradient_norm = 0, learning_rate = 0;
  double milliseconds = 0, tokens_per_second = 0;
};

/// "step 120/600 | loss 2.301 | ..."; `seconds_left` below 0 is left out. Fields that do not fit into `columns` are
/// left out, the least telling first.
std::string progress_line(const StepReport& report, double seconds_left, int columns);
/// "1:05", "2:03:04".
std::string duration(double seconds);
/// "1,115,394".
std::string grouped(std::int64_t number);

/// Draws the line. Only carriage returns and spaces move the cursor, so there is no escape code to switch off.
class Progress {
 public:
  /// `columns` 0: plain lines, every `every` steps. `done`: steps of an earlier process.
  Progress(std::ostream& out, int columns, std::int64_t every, std::int64_t done);
  void report(const StepReport& report);
  /// A line that stays.
  void say(const std::string& line);
  /// Takes the redrawn line away.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  std::ostream& out_;
  int columns_;
  std::int64_t every_, done_;
  Clock::time_point start_ = Clock::now(), drawn_{};
  std::size_t width_ = 0;  // of the line that stands there
};

}  // namespace sinkhorn
