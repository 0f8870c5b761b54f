// A stopwatch of the host's steady clock.
#pragma once
#include <chrono>

namespace sinkhorn::cuda {

class HostClock {
 public:
  void start() { start_ = std::chrono::steady_clock::now(); }
  /// Milliseconds since the start.
  double stop() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_{};
};

}  // namespace sinkhorn::cuda
