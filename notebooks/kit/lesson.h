// The lessons this program was built with: what each one says and asks. Their texts lie beside them, in lesson.toml.
#pragma once
#include <string_view>
#include <vector>

#include "notebooks/kit/page.h"
#include "notebooks/kit/quiz.h"

namespace sinkhorn::lessons {

struct Lesson {
  int number = 0;
  std::string_view name;  // of its folder: "06_softmax"
  void (*walk)(Page&);    // the walk-through
  Quiz (*quiz)(Rng);      // at least three questions
};

/// By number. Written by CMake from the folders in notebooks/lessons.
const std::vector<Lesson>& all_lessons();

}  // namespace sinkhorn::lessons
