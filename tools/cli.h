// The command line: which commands and flags there are, and which exit code each kind of failure has.
#pragma once
#include <exception>
#include <string>
#include <vector>

namespace sinkhorn {

/// Runs one command given as words after the program's name. Errors are one line on stderr, `sinkhorn: ...`.
/// Returns the exit code: 0 ok, 1 a check failed or an internal error, 2 usage, 3 data, checkpoint or output folder,
/// 4 out of memory, 5 non-finite loss or gradient, 6 device, 130 interrupted.
int run(const std::vector<std::string>& arguments);

/// The exit code of the exception, and its message as a single printable line.
struct Failure {
  int exit_code;
  std::string line;
};
Failure describe_failure(const std::exception_ptr& error);

}  // namespace sinkhorn
