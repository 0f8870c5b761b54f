// What every example shares: sizes that can be divided, so that it also runs in a moment on a small machine.
#pragma once
#include <cstdlib>
#include <iostream>
#include <string_view>

#include "models/encoder_decoder.h"

namespace sinkhorn::examples {

/// Runs an example with sizes divided by the first argument (1, the published sizes, if there is none). Errors go
/// to stderr, with exit code 1, a wrong argument with 2.
template <class Example>
int run(int argc, char** argv, Example example) {
  char* end = nullptr;
  const long divisor = argc > 1 ? std::strtol(argv[1], &end, 10) : 1;
  if (argc > 2 || divisor < 1 || divisor > 64 || (end && *end)) {
    std::cerr << "usage: " << argv[0] << " [DIVISOR]   sizes are divided by it, 1 to 64\n";
    return 2;
  }
  try {
    example(std::int64_t(divisor));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << argv[0] << ": " << error.what() << "\n";
    return 1;
  }
}

}  // namespace sinkhorn::examples
