// The program `sinkhorn`.
#include <csignal>

#include "tools/cli.h"

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that went away (`| head`) ends our output, not a training run
  return sinkhorn::run({argv + 1, argv + argc});
}
