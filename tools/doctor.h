// `sinkhorn doctor`: what this build and this machine offer, and what is missing.
#pragma once
#include <iosfwd>

namespace sinkhorn {

/// Prints one line each for the build, BLAS, threads, memory, CUDA, the default text and the terminal, then what is
/// missing and how to get it. Returns the exit code: 0, since nothing it can find missing keeps the program from
/// working.
int doctor(std::ostream& out);

}  // namespace sinkhorn
