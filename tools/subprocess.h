// Runs another program and waits for it: its output, how it ended, and an end put to it if it takes too long.
#pragma once
#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

namespace sinkhorn {

struct SubprocessLimits {
  std::chrono::seconds time{60};
  std::size_t memory = 0;                     // bytes that it may allocate; 0: no limit
  std::size_t output = std::size_t(1) << 20;  // bytes kept of what it prints; the rest is dropped
};

struct SubprocessResult {
  int exit_code = -1;      // if it ended by itself
  int signal = 0;          // that ended it; 0: none
  bool timed_out = false;  // it was ended because its time was up
  std::string output;      // stdout and stderr, as they came

  bool ok() const { return exit_code == 0 && signal == 0 && !timed_out; }
  /// "exit code 3", "signal 11 (Segmentation fault)", "no end after 60 s".
  std::string how_it_ended(const SubprocessLimits& limits) const;
};

/// Runs words[0], found by PATH, with stdin empty. It ends with this program, whatever happens to it. An Error if it
/// cannot be started.
SubprocessResult run_subprocess(const std::vector<std::string>& words, const SubprocessLimits& limits = {});

}  // namespace sinkhorn
