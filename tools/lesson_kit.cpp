#include "tools/lesson_kit.h"

#include <toml++/toml.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "autograd/error.h"
#include "tools/read_file.h"

namespace sinkhorn {
namespace fs = std::filesystem;
namespace {

fs::path kit_file() {
  if (const char* named = std::getenv("SINKHORN_LESSON_KIT"); named && *named) return named;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error), folder = program.parent_path();
  for (const fs::path& file :
       {folder / "lesson_kit.json", folder.parent_path() / "share" / "sinkhorn" / "lesson_kit.json"})
    if (fs::exists(file, error)) return file;
  fail<DataError>("lesson: lesson_kit.json is neither beside ", program.string(),
                  " nor in ../share/sinkhorn: build or install the program with its lessons");
}

}  // namespace

bool LessonKit::sanitized() const {
  return std::any_of(flags.begin(), flags.end(),
                     [](const std::string& flag) { return flag.starts_with("-fsanitize"); });
}

LessonKit lesson_kit() {
  const fs::path file = kit_file(), beside = fs::absolute(file).parent_path();
  // An installed tree may be moved, so its paths are relative to the file.
  const auto located = [&](const std::string& path) {
    return path.starts_with("./") || path.starts_with("../") ? (beside / path).lexically_normal().string() : path;
  };
  try {
    const nlohmann::json json = nlohmann::json::parse(read_file(file.string(), "lesson"));
    LessonKit kit{located(json.at("root")), located(json.at("checks")), json.at("compiler"), json.at("flags"), {}};
    for (const std::string library : json.at("libraries")) kit.libraries.push_back(located(library));
    return kit;
  } catch (const nlohmann::json::exception& error) {
    fail<DataError>("lesson: ", file.string(), " is damaged (", error.what(), "); build or install the program again");
  }
}

LessonText lesson_text(const LessonKit& kit, const lessons::Lesson& lesson) {
  const fs::path file = kit.folder(lesson) / "lesson.toml";
  toml::table table;
  try {
    table = toml::parse(read_file(file.string(), "lesson"));
  } catch (const toml::parse_error& error) {
    fail<DataError>("lesson: ", file.string(), ":", error.source().begin.line, ": ", error.description());
  }
  const auto text = [&](const char* key) {
    const auto value = table[key].value<std::string>();
    if (!value || value->find_first_not_of(" \n") == std::string::npos)
      fail<DataError>("lesson: ", file.string(), " has no ", key);
    return lessons::with_quotes(*value, kit.root);
  };
  LessonText result{text("title"), text("summary"), text("exercise"), text("why"), {}};
  for (std::string* line : {&result.title, &result.summary})
    while (!line->empty() && line->back() == '\n') line->pop_back();
  if (const toml::array* hints = table["hints"].as_array()) {
    for (const toml::node& hint : *hints)
      result.hints.push_back(lessons::with_quotes(hint.value_or(std::string()), kit.root));
  }
  const auto empty = [](const std::string& hint) { return hint.find_first_not_of(" \n") == std::string::npos; };
  if (result.hints.size() != 3 || std::any_of(result.hints.begin(), result.hints.end(), empty))
    fail<DataError>("lesson: ", file.string(), " needs three hints: a nudge, the formula, the shape of the code");
  return result;
}

}  // namespace sinkhorn
