#include "tools/interrupt.h"

#include <unistd.h>

namespace sinkhorn {
namespace {

volatile std::sig_atomic_t noted = 0;

void note(int) {
  if (noted) _exit(130);
  noted = 1;
}

}  // namespace

InterruptGuard::InterruptGuard() {
  noted = 0;
  struct sigaction action {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (int i = 0; i < 3; ++i) {
    sigaction(signals_[i], nullptr, &former_[i]);
    if (former_[i].sa_handler != SIG_IGN) sigaction(signals_[i], &action, nullptr);
  }
}

InterruptGuard::~InterruptGuard() {
  for (int i = 0; i < 3; ++i) sigaction(signals_[i], &former_[i], nullptr);
}

bool interrupted() { return noted; }

}  // namespace sinkhorn
