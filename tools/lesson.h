// `sinkhorn lesson`: the course in the terminal. Reads and runs lessons, keeps the learner's folder, verifies
// exercises.
#pragma once
#include <cstdint>
#include <iosfwd>
#include <string>

namespace sinkhorn {

/// What all of the commands take: which lesson, from where.
struct LessonOptions {
  std::string dir = ".";  // in the learner's folder, below it, or where it is a folder named my-lessons
  std::string init_dir = "my-lessons";
  std::string lesson = {};  // number or name; empty: the first that is not solved
  std::string search = {};  // list: only lessons whose text holds this
  bool json = false;        // list
  bool all = false;         // show: without waiting; verify: every lesson
  bool yes = false;         // solution: also before success
  bool poll = false;        // watch: without inotify
  std::int64_t level = 0;   // hint: this one (1 ... 3); 0: the next
  std::int64_t seed = 0;    // verify: of the random inputs; quiz: of the numbers; 0: verify's usual one, a new quiz
  std::int64_t times = 0;   // watch: leave after so many verifications; 0: never
};

// Each prints to `out` and returns the exit code: 0, or 1 where something is not right yet. Questions are asked on
// stdin and only if it is a terminal. Errors: UsageError (unknown lesson, no folder), DataError (files).

int lesson_init(const LessonOptions& options, std::ostream& out);      // makes the learner's folder at `init_dir`
int lesson_list(const LessonOptions& options, std::ostream& out);      // every lesson with its state
int lesson_next(const LessonOptions& options, std::ostream& out);      // the first that is not solved, and what to do
int lesson_show(const LessonOptions& options, std::ostream& out);      // the walk-through
int lesson_hint(const LessonOptions& options, std::ostream& out);      // one hint more
int lesson_verify(const LessonOptions& options, std::ostream& out);    // 0 solved, 1 not yet
int lesson_watch(const LessonOptions& options, std::ostream& out);     // verifies what is saved, until Ctrl-C
int lesson_reset(const LessonOptions& options, std::ostream& out);     // the exercise as handed out; keeps a backup
int lesson_solution(const LessonOptions& options, std::ostream& out);  // after success, or after a yes
int lesson_quiz(const LessonOptions& options, std::ostream& out);      // 0: all answers right
int lesson_status(const LessonOptions& options, std::ostream& out);    // how far one is

}  // namespace sinkhorn
