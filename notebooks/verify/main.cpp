// The program that `sinkhorn lesson verify` makes of a learner's file: runs the checks of one lesson, and writes each
// as a line of JSON to the file named first, as soon as it is known. The last line counts them, so that a program which
// ends early is told from one that passed.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "notebooks/kit/checks.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: verify RESULTS SEED\n";
    return 2;
  }
  std::ofstream results(argv[1]);
  int count = 0;
  const auto write = [&](const sinkhorn::lessons::CheckResult& result) {
    ++count;
    const nlohmann::json line = {{"name", result.name}, {"passed", result.passed}, {"detail", result.detail}};
    results << line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
  };
  sinkhorn::lessons::Checks checks(std::strtoull(argv[2], nullptr, 10), write);
  checks.attempt("the checks run to their end", [&] { sinkhorn::lesson::check(checks); });
  results << nlohmann::json{{"checks", count}}.dump() << std::endl;
  return results ? 0 : 1;
}
