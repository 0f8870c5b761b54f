// Ctrl-C and its relatives, turned into a question that a loop asks between steps.
#pragma once
#include <csignal>

namespace sinkhorn {

/// While one lives, the first SIGINT, SIGTERM or SIGHUP is only noted, and a second ends the process at once with exit
/// code 130. A signal that was ignored (as nohup does) stays ignored.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;

 private:
  static constexpr int signals_[] = {SIGINT, SIGTERM, SIGHUP};
  struct sigaction former_[3];
};

/// Whether such a signal came since the guard was made.
bool interrupted();

}  // namespace sinkhorn
