#include "tools/lesson_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <span>
#include <sstream>

#include "autograd/error.h"
#include "models/durable_file.h"
#include "tools/lesson_verify.h"
#include "tools/read_file.h"

namespace sinkhorn {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kHeading =
    "# sinkhorn lessons: what was reached, a line a lesson. Hashes are of the file that solved it, or failed last.\n";

void write(const fs::path& path, const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  write_durably(path, std::span(&bytes, 1));
}

fs::path file_in(const fs::path& folder, const lessons::Lesson& lesson) {
  return (folder / (std::string(lesson.name) + ".cpp")).lexically_normal();
}

bool is_hash(const std::string& text) {
  return text.size() == 16 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::optional<int> small_number(const std::string& text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 0 || number > 1000) return {};
  return number;
}

// "06_softmax solved=0123456789abcdef hints=2"; what is wrong with it, or nothing.
std::optional<std::string> parse(const std::string& line, std::string& name, LessonRecord& record) {
  std::istringstream words(line);
  words >> name;
  for (std::string word; words >> word;) {
    const std::size_t equals = word.find('=');
    const std::string key = word.substr(0, equals), value = equals == std::string::npos ? "" : word.substr(equals + 1);
    if (key == "solved" || key == "failed") {
      if (!is_hash(value)) return key + " is a hash of 16 hexadecimal digits, not '" + value + "'";
      (key == "solved" ? record.solved : record.failed) = value;
    } else if (key == "hints" || key == "quiz") {
      const auto number = small_number(value);
      if (!number) return key + " is a number, not '" + value + "'";
      (key == "hints" ? record.hints : record.quiz) = *number;
    } else {
      return "'" + word + "' is none of solved=, failed=, hints=, quiz=";
    }
  }
  return {};
}

}  // namespace

std::string_view name_of(LessonState state) {
  switch (state) {
    case LessonState::untouched:
      return "new";
    case LessonState::started:
      return "started";
    case LessonState::solved:
      return "solved";
    case LessonState::edited:
      return "edited";
    case LessonState::broken:
      return "broken";
    case LessonState::missing:
      return "missing";
  }
  return "";
}

int LessonFolder::create(const fs::path& folder, const LessonKit& kit) {
  make_folder_durably(folder);
  int written = 0;
  for (const lessons::Lesson& lesson : lessons::all_lessons()) {
    if (fs::exists(file_in(folder, lesson))) continue;
    write(file_in(folder, lesson), read_file(kit.shipped(lesson).string(), "lesson"));
    ++written;
  }
  // What an editor's language server needs to know the library.
  std::string flags;
  for (const std::string& flag : kit.flags) flags += flag + "\n";
  write(folder / "compile_flags.txt", flags + "-I" + kit.root.string() + "\n");
  if (!fs::exists(folder / kProgressFile)) write(folder / kProgressFile, std::string(kHeading));
  return written;
}

std::optional<fs::path> LessonFolder::locate(const fs::path& from) {
  const auto is_one = [](const fs::path& folder) {
    std::error_code error;
    return fs::exists(folder / kProgressFile, error) && fs::exists(folder / "compile_flags.txt", error);
  };
  const fs::path below = from / kUsualName;
  const fs::path start = fs::absolute(from).lexically_normal();
  if (is_one(from)) return from;
  for (fs::path folder = start; folder != folder.parent_path(); folder = folder.parent_path())
    if (is_one(folder.parent_path())) return folder.parent_path();
  if (is_one(below)) return below.lexically_normal();
  return {};
}

std::optional<LessonFolder> LessonFolder::open(const fs::path& from) {
  const std::optional<fs::path> folder = locate(from);
  if (!folder) return {};
  LessonFolder found(*folder);
  found.read();
  return found;
}

void LessonFolder::read() {
  const fs::path file = path_ / kProgressFile;
  std::istringstream in(read_file(file.string(), "lesson"));
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos || line.starts_with("#")) continue;
    std::string name;
    LessonRecord record;
    std::optional<std::string> wrong = parse(line, name, record);
    const auto& all = lessons::all_lessons();
    if (!wrong && std::none_of(all.begin(), all.end(), [&](const auto& lesson) { return lesson.name == name; }))
      wrong = "there is no lesson '" + name + "'";
    if (!wrong && records_.contains(name)) wrong = "a second line for " + name;
    if (wrong)
      fail<DataError>("lesson: ", file.string(), ":", number, ": ", *wrong,
                      "; mend the line, or delete it and verify that lesson again");
    records_[name] = record;
  }
}

fs::path LessonFolder::file(const lessons::Lesson& lesson) const { return file_in(path_, lesson); }

LessonRecord LessonFolder::record(const lessons::Lesson& lesson) const {
  const auto found = records_.find(lesson.name);
  return found == records_.end() ? LessonRecord{} : found->second;
}

LessonState LessonFolder::state(const LessonKit& kit, const lessons::Lesson& lesson) const {
  const std::string hash = file_hash(file(lesson));
  if (hash.empty()) return LessonState::missing;
  const LessonRecord known = record(lesson);
  if (!known.solved.empty()) {
    if (hash == known.solved) return LessonState::solved;
    return hash == known.failed ? LessonState::broken : LessonState::edited;
  }
  return hash == file_hash(kit.shipped(lesson)) ? LessonState::untouched : LessonState::started;
}

void LessonFolder::remember(const lessons::Lesson& lesson, const LessonRecord& record) {
  records_[std::string(lesson.name)] = record;
  std::string text(kHeading);
  for (const auto& [name, of] : records_) {
    text += name;
    if (!of.solved.empty()) text += " solved=" + of.solved;
    if (!of.failed.empty()) text += " failed=" + of.failed;
    if (of.hints > 0) text += fmt::format(" hints={}", of.hints);
    if (of.quiz > 0) text += fmt::format(" quiz={}", of.quiz);
    text += "\n";
  }
  write(path_ / kProgressFile, text);
}

fs::path LessonFolder::reset(const LessonKit& kit, const lessons::Lesson& lesson) {
  const fs::path own = file(lesson);
  fs::path backup;
  const std::string hash = file_hash(own);
  if (!hash.empty() && hash != file_hash(kit.shipped(lesson))) {
    for (int number = 1; backup.empty() || fs::exists(backup); ++number)
      backup = (path_ / "backups" / fmt::format("{}.{}.cpp", lesson.name, number)).lexically_normal();
    make_folder_durably(path_ / "backups");
    write(backup, read_file(own.string(), "lesson"));
  }
  write(own, read_file(kit.shipped(lesson).string(), "lesson"));
  return backup;
}

}  // namespace sinkhorn
