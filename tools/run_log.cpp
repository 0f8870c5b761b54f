#include "tools/run_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tools/read_file.h"

namespace sinkhorn {
namespace {

/// Bytes of the lines that stay: whole ones, in order, up to `last_step`.
std::size_t kept_bytes(const std::string& text, std::int64_t last_step) {
  std::size_t kept = 0;
  std::int64_t before = 0;
  for (std::size_t end = 0; (end = text.find('\n', kept)) != std::string::npos; kept = end + 1) {
    const auto line = nlohmann::json::parse(text.begin() + std::ptrdiff_t(kept), text.begin() + std::ptrdiff_t(end),
                                            nullptr, /*allow_exceptions=*/false);
    if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer()) break;
    const auto step = line["step"].get<std::int64_t>();
    if (step <= before || step > last_step) break;
    before = step;
  }
  return kept;
}

std::string number(double x) { return std::isfinite(x) ? fmt::format("{}", x) : "null"; }

std::string to_json(const SequenceScore& s) {
  return fmt::format(R"({{"exact_match": {}, "token_accuracy": {}, "edit_distance": {}}})", number(s.exact_match()),
                     number(s.token_accuracy()), number(s.edit_distance()));
}

/// A list of one object a length.
std::string to_json(const std::vector<TaskScore>& scores) {
  std::string list;
  for (const TaskScore& s : scores)
    list += fmt::format(R"({}{{"length": {}, "generated": {}, "teacher_forced": {}}})", list.empty() ? "" : ", ",
                        s.length, to_json(s.generated), to_json(s.forced));
  return "[" + list + "]";
}

}  // namespace

std::string to_json(const LogEntry& e) {
  std::string line = fmt::format(R"({{"step": {}, "loss": {}, "bits_per_character": {})", e.step, number(e.loss),
                                 number(e.bits_per_character));
  if (e.val_loss) line += R"(, "val_loss": )" + number(*e.val_loss);
  if (e.val_bits_per_character) line += R"(, "val_bits_per_character": )" + number(*e.val_bits_per_character);
  if (!e.scores.empty()) line += R"(, "task": )" + to_json(e.scores);
  return line +
         fmt::format(R"(, "learning_rate": {}, "gradient_norm": {}, "tokens_per_second": {:.1f}, "ms": {:.2f}}})",
                     number(e.learning_rate), number(e.gradient_norm), e.tokens_per_second, e.milliseconds);
}

RunLog::RunLog(const std::filesystem::path& folder, std::int64_t last_step)
    : path_(folder / name), file_(system_files(), path_, O_WRONLY | O_CREAT | O_APPEND, 0666) {
  if (!file_) fail_file("open", path_, errno);
  const std::size_t kept = last_step > 0 ? kept_bytes(read_file(path_.string(), "log"), last_step) : 0;
  if (ftruncate(file_.get(), off_t(kept)) != 0) fail_file("shorten", path_, errno);
}

void RunLog::add(const LogEntry& entry) {
  const std::string line = to_json(entry) + "\n";
  std::span<const std::byte> rest = std::as_bytes(std::span(line));
  while (!rest.empty()) {
    const ssize_t count = system_files().write(file_.get(), rest);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_file("write to", path_, errno);
    rest = rest.subspan(std::size_t(count));
  }
}

void RunLog::sync() {
  if (system_files().fsync(file_.get()) != 0) fail_file("write to", path_, errno);
}

}  // namespace sinkhorn
