// What lessons are made with: where their texts and the library lie, and how a learner's file is compiled.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "notebooks/kit/lesson.h"

namespace sinkhorn {

/// Described by lesson_kit.json, which CMake writes into the build folder and, for an installed program, into
/// share/sinkhorn.
struct LessonKit {
  std::filesystem::path root;    // holds autograd/, nn/, ... and notebooks/lessons/
  std::filesystem::path checks;  // holds liblesson_NN_name.a and libsinkhorn_verify.a
  std::string compiler;
  std::vector<std::string> flags, libraries;

  std::filesystem::path folder(const lessons::Lesson& lesson) const {
    return root / "notebooks" / "lessons" / lesson.name;
  }
  std::filesystem::path shipped(const lessons::Lesson& lesson) const { return folder(lesson) / "exercise.cpp"; }
  std::filesystem::path solution(const lessons::Lesson& lesson) const { return folder(lesson) / "solution.cpp"; }
  bool sanitized() const;
};

/// The kit of the program that runs: SINKHORN_LESSON_KIT names its file, else it is found beside the program. A
/// DataError if it is missing or damaged.
LessonKit lesson_kit();

/// lesson.toml of a lesson, with quotations put in. A DataError that names file and line if something is missing.
struct LessonText {
  std::string title, summary, exercise, why;
  std::vector<std::string> hints;  // nudge, formula, shape of the code
};
LessonText lesson_text(const LessonKit& kit, const lessons::Lesson& lesson);

}  // namespace sinkhorn
