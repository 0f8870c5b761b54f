#include "tools/lesson_verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "autograd/error.h"
#include "models/xxh64.h"
#include "tools/read_file.h"
#include "tools/subprocess.h"
#include "tools/temporary_folder.h"

namespace sinkhorn {
namespace fs = std::filesystem;
namespace {

std::string hash_of(const std::string& bytes) {
  return fmt::format("{:016x}", xxh64(std::as_bytes(std::span(bytes.data(), bytes.size()))));
}

// The lines that notebooks/verify/main.cpp writes. True if the last one, which counts them, is there and right.
bool read_results(const fs::path& file, std::vector<lessons::CheckResult>& checks) {
  std::ifstream in(file);
  bool complete = false;
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) return false;  // ended in the middle of a line
    if (json.contains("checks")) {
      complete = json["checks"] == checks.size();
    } else {
      checks.push_back({json.value("name", ""), json.value("passed", false), json.value("detail", "")});
    }
  }
  return complete;
}

}  // namespace

std::size_t Verification::passed() const {
  return std::size_t(std::count_if(checks.begin(), checks.end(), [](const auto& check) { return check.passed; }));
}

bool Verification::solved() const {
  return compiler_output.empty() && ended.empty() && !checks.empty() && passed() == checks.size();
}

std::string file_hash(const fs::path& file) {
  try {
    return hash_of(read_file(file.string(), "lesson"));
  } catch (const DataError&) {
    return {};
  }
}

Verification verify_exercise(const LessonKit& kit, const lessons::Lesson& lesson, const fs::path& file,
                             const VerifyOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const std::string source = read_file(file.string(), "lesson");
  Verification result;
  result.hash = hash_of(source);

  // A copy is compiled, so that what is hashed is what runs even if an editor saves meanwhile.
  const TemporaryFolder folder;
  const fs::path copy = folder.path / file.filename(), program = folder.path / "verify",
                 results = folder.path / "results";
  std::ofstream(copy, std::ios::binary) << source;

  std::vector<std::string> compile = {kit.compiler};
  compile.insert(compile.end(), kit.flags.begin(), kit.flags.end());
  // The whole of the lesson's library, so that a file which brings a check() of its own does not link.
  for (const std::string& word :
       {"-I" + kit.root.string(), "-ffile-prefix-map=" + folder.path.string() + "/=", copy.string(),
        (kit.checks / "libsinkhorn_verify.a").string(), std::string("-Wl,--whole-archive"),
        (kit.checks / ("liblesson_" + std::string(lesson.name) + ".a")).string(),
        std::string("-Wl,--no-whole-archive")})
    compile.push_back(word);
  compile.insert(compile.end(), kit.libraries.begin(), kit.libraries.end());
  compile.insert(compile.end(), {"-o", program.string()});
  const SubprocessLimits compile_limits{.time = std::chrono::seconds(300)};
  const SubprocessResult compiled = [&] {
    try {
      return run_subprocess(compile, compile_limits);
    } catch (const Error& error) {
      fail<DataError>("lesson: ", error.what(),
                      "; install a compiler (apt-get install g++), or build the program again");
    }
  }();
  if (!compiled.ok()) {
    result.compiler_output =
        compiled.output.empty() ? "the compiler ended with " + compiled.how_it_ended(compile_limits) : compiled.output;
    // Errors name the learner's file, not the copy.
    for (std::size_t at; (at = result.compiler_output.find(copy.string())) != std::string::npos;)
      result.compiler_output.replace(at, copy.string().size(), file.string());
  } else {
    const SubprocessLimits limits{.time = kit.sanitized() ? 10 * options.time : options.time,
                                  .memory = kit.sanitized() ? 0 : std::size_t(4) << 30};
    const SubprocessResult ran =
        run_subprocess({program.string(), results.string(), std::to_string(options.seed)}, limits);
    const bool complete = read_results(results, result.checks);
    if (!ran.ok() || !complete)
      result.ended = ran.ok() ? "it left before its checks were done (does it call exit?)" : ran.how_it_ended(limits);
    result.printed = ran.output;
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace sinkhorn
