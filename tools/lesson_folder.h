// A learner's folder: one file an exercise, and what was reached, as plain text that can be copied and kept in git.
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "tools/lesson_kit.h"

namespace sinkhorn {

/// Where a lesson stands. Bound to the file's hash, so that an edit shows.
enum class LessonState {
  untouched,  // as it was handed out
  started,    // edited, not solved yet
  solved,
  edited,   // solved, and edited since: not verified again yet
  broken,   // solved, and edited since so that the checks fail
  missing,  // the file is gone
};
/// "new", "started", "solved", "edited", "broken", "missing".
std::string_view name_of(LessonState state);

/// What is remembered of a lesson. Hashes are those of verify_exercise, empty where there is none.
struct LessonRecord {
  std::string solved;  // of the last file that solved it
  std::string failed;  // of the last file that did not
  int hints = 0;       // shown so far
  int quiz = 0;        // questions answered right at the best try
};

class LessonFolder {
 public:
  static constexpr std::string_view kProgressFile = "progress.txt", kUsualName = "my-lessons";

  /// Makes the folder with every exercise in it. Files that are there already are kept, so that it also adds lessons
  /// that a newer version brings. Returns how many files were written. DataError if it cannot be written.
  static int create(const std::filesystem::path& folder, const LessonKit& kit);

  /// The one at `from`, above it, or else `my-lessons` in it; nothing if there is none. A DataError naming the line if
  /// its progress file cannot be understood.
  static std::optional<LessonFolder> open(const std::filesystem::path& from);

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path file(const lessons::Lesson& lesson) const;
  LessonState state(const LessonKit& kit, const lessons::Lesson& lesson) const;
  LessonRecord record(const lessons::Lesson& lesson) const;
  /// Remembers, on disk, whole or not at all.
  void remember(const lessons::Lesson& lesson, const LessonRecord& record);
  /// Puts the exercise back as it was handed out. What the learner wrote is kept; returns where (empty: there was
  /// nothing to keep).
  std::filesystem::path reset(const LessonKit& kit, const lessons::Lesson& lesson);

 private:
  explicit LessonFolder(std::filesystem::path path) : path_(std::move(path)) {}
  static std::optional<std::filesystem::path> locate(const std::filesystem::path& from);
  void read();

  std::filesystem::path path_;
  std::map<std::string, LessonRecord, std::less<>> records_;  // by the lesson's name
};

}  // namespace sinkhorn
