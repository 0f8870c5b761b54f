// Verifies an exercise: compiles the learner's file against the library, runs the lesson's checks on it, counts them.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "notebooks/kit/checks.h"
#include "tools/lesson_kit.h"

namespace sinkhorn {

struct Verification {
  std::string hash;                          // of the file that was compiled: 16 hexadecimal digits
  std::string compiler_output;               // not empty: it does not compile
  std::vector<lessons::CheckResult> checks;  // in order
  std::string ended;                         // not empty: the program did not run to its end, and how it ended
  std::string printed;                       // what the learner's code wrote to stdout and stderr
  double seconds = 0;

  std::size_t passed() const;
  /// It compiled, ran to its end, and at least one check ran, and none failed.
  bool solved() const;
};

struct VerifyOptions {
  std::uint64_t seed = 1;         // of the random inputs
  std::chrono::seconds time{60};  // for the checks; several times that under sanitizers
};

/// Compiles a copy of `file`, as it is now. A DataError if the file cannot be read, no temporary folder can be made, or
/// there is no compiler.
Verification verify_exercise(const LessonKit& kit, const lessons::Lesson& lesson, const std::filesystem::path& file,
                             const VerifyOptions& options = {});

/// The hash of a file as `Verification::hash` has it; empty if it cannot be read.
std::string file_hash(const std::filesystem::path& file);

}  // namespace sinkhorn
