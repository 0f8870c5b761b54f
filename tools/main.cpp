// The program `sinkhorn`.
#include <csignal>
#include <cstdlib>

#include "tools/cli.h"

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that went away (`| head`) ends our output, not a training run
  std::signal(SIGXFSZ, SIG_IGN);  // a file that grew too large is an error to report
  setenv("SINKHORN_PROGRAM", argv[0], /*overwrite=*/0);
  return sinkhorn::run({argv + 1, argv + argc});
}
