#include "tools/lesson.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <thread>

#include "autograd/error.h"
#include "models/fields.h"
#include "tools/file_watch.h"
#include "tools/hint.h"
#include "tools/interrupt.h"
#include "tools/lesson_folder.h"
#include "tools/lesson_verify.h"
#include "tools/read_file.h"

namespace sinkhorn {
namespace {

using drawing::paint;
using drawing::Style;
using drawing::Tone;
using lessons::Lesson;

bool someone_is_there() { return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO); }

/// What every command works with.
struct Course {
  explicit Course(const LessonOptions& options)
      : options(options), kit(lesson_kit()), folder(LessonFolder::open(options.dir)) {}

  /// The learner's folder; a UsageError that tells how to make one if there is none.
  LessonFolder& own() {
    if (!folder)
      fail<UsageError>("lesson: no folder of lessons at ",
                       std::filesystem::absolute(options.dir).lexically_normal().string(),
                       " or above it; make one: ", hint({"lesson", "init"}), ", or name yours with --dir");
    return *folder;
  }
  LessonState state(const Lesson& lesson) const { return folder ? folder->state(kit, lesson) : LessonState::untouched; }
  /// The first lesson that is not solved; null: all are.
  const Lesson* unsolved() const {
    for (const Lesson& lesson : lessons::all_lessons())
      if (state(lesson) != LessonState::solved) return &lesson;
    return nullptr;
  }
  /// The lesson asked for, by number or by (a part of) its name.
  const Lesson& lesson() const {
    const auto& all = lessons::all_lessons();
    const std::string& word = options.lesson;
    if (word.empty()) {
      const Lesson* first = unsolved();
      return first ? *first : all.back();
    }
    int number = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
    const bool is_number = error == std::errc() && end == word.data() + word.size();
    const Lesson* found = nullptr;
    std::vector<std::string> names;
    for (const Lesson& lesson : all) {
      names.emplace_back(lesson.name.substr(3));
      if (is_number ? lesson.number == number : lesson.name == word || names.back() == word) found = &lesson;
    }
    if (found) return *found;
    const std::string near = is_number ? "" : nearest(word, names);
    fail<UsageError>("lesson: there is no lesson ", to_text(word), near.empty() ? "" : "; did you mean " + near + "?",
                     "  (there are ", all.front().number, " to ", all.back().number, "; ", hint({"lesson", "list"}),
                     " shows them)");
  }

  VerifyOptions verify_options() const {
    VerifyOptions result;
    if (options.seed > 0) result.seed = std::uint64_t(options.seed);
    return result;
  }
  void remember(const Lesson& lesson, const Verification& verification) {
    LessonRecord record = own().record(lesson);
    (verification.solved() ? record.solved : record.failed) = verification.hash;
    own().remember(lesson, record);
  }

  LessonOptions options;
  LessonKit kit;
  std::optional<LessonFolder> folder;
  Style style = drawing::style_of_stdout();
};

std::string command(const Course& course, std::initializer_list<std::string> words) {
  std::vector<std::string> all = {"lesson"};
  all.insert(all.end(), words);
  if (course.options.dir != ".") all.insert(all.end(), {"--dir", course.options.dir});
  return hint(all);
}

std::string heading(const Course& course, const Lesson& lesson, const LessonText& text) {
  return paint(course.style, Tone::strong, fmt::format("Lesson {}: {}", lesson.number, text.title)) + "\n";
}

Tone tone_of(LessonState state) {
  switch (state) {
    case LessonState::solved:
      return Tone::good;
    case LessonState::broken:
    case LessonState::missing:
      return Tone::bad;
    case LessonState::started:
    case LessonState::edited:
      return Tone::accent;
    case LessonState::untouched:
      return Tone::quiet;
  }
  return Tone::plain;
}

std::string_view meaning(LessonState state) {
  switch (state) {
    case LessonState::edited:
      return "edited since it was solved";
    case LessonState::broken:
      return "solved, but your edit broke it";
    case LessonState::missing:
      return "file is missing; reset brings it back";
    default:
      return name_of(state);
  }
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  return text;
}

// --- verify
// ------------------------------------------------------------------------------------------------------------

/// Failed checks by name, each with its first detail and how often it failed, in the order in which they came.
struct FailedCheck {
  std::string name, detail;
  int failed = 0, of = 0;
};
std::vector<FailedCheck> failures(const std::vector<lessons::CheckResult>& checks) {
  std::vector<FailedCheck> result;
  for (const auto& check : checks) {
    auto at = std::find_if(result.begin(), result.end(), [&](const FailedCheck& f) { return f.name == check.name; });
    if (at == result.end()) at = result.insert(result.end(), {check.name, "", 0, 0});
    ++at->of;
    if (check.passed) continue;
    if (at->failed++ == 0) at->detail = check.detail;
  }
  std::erase_if(result, [](const FailedCheck& check) { return check.failed == 0; });
  return result;
}

std::string first_lines(const std::string& text, int most) {
  std::istringstream in(text);
  std::string result, line;
  int count = 0;
  while (std::getline(in, line))
    if (++count <= most) result += "  " + line + "\n";
  if (count > most) result += fmt::format("  ... ({} lines more)\n", count - most);
  return result;
}

void print_failure(const Course& course, const Lesson& lesson, const Verification& verification, std::ostream& out) {
  const Style& style = course.style;
  if (!verification.compiler_output.empty()) {
    out << paint(style, Tone::bad, "It does not compile:") << "\n" << first_lines(verification.compiler_output, 30);
    return;
  }
  constexpr std::size_t shown = 4;
  const std::vector<FailedCheck> failed = failures(verification.checks);
  for (std::size_t i = 0; i < std::min(shown, failed.size()); ++i) {
    const FailedCheck& check = failed[i];
    out << paint(style, Tone::bad, style.unicode ? "✗ " : "x ") << check.name;
    if (check.of > 1) out << fmt::format("  ({} of {})", check.failed, check.of);
    Style inner = style;
    inner.columns -= 4;
    out << "\n" << first_lines(drawing::wrap(inner, check.detail), 24);
  }
  if (failed.size() > shown) out << "... and " << failed.size() - shown << " more kinds of check\n";
  if (!verification.ended.empty())
    out << paint(style, Tone::bad, "Your code stopped the checks: " + verification.ended) << "\n";
  if (verification.checks.empty() && verification.ended.empty())
    out << paint(style, Tone::bad, "No check ran, so nothing is shown to be right.") << "\n";
  if (!verification.printed.empty()) out << "It printed:\n" << first_lines(verification.printed, 20);
  out << "\nA hint: " << command(course, {"hint", std::to_string(lesson.number)}) << "\n";
}

/// Verifies the learner's file of one lesson, remembers the result and prints it.
bool verify_one(Course& course, const Lesson& lesson, std::ostream& out) {
  const LessonText text = lesson_text(course.kit, lesson);
  const std::filesystem::path file = course.own().file(lesson);
  const Verification verification = verify_exercise(course.kit, lesson, file, course.verify_options());
  course.remember(lesson, verification);

  out << heading(course, lesson, text) << fmt::format("file    {}\nhash    {}\n", file.string(), verification.hash);
  if (verification.compiler_output.empty())
    out << fmt::format("checks  {} of {} passed, in {:.1f} s\n", verification.passed(), verification.checks.size(),
                       verification.seconds);
  out << "\n";
  if (!verification.solved()) {
    print_failure(course, lesson, verification, out);
    return false;
  }
  out << paint(course.style, Tone::good, "Solved.") << "\n\n"
      << paint(course.style, Tone::strong, "Why it works") << "\n"
      << drawing::wrap(course.style, text.why);
  if (course.unsolved())
    out << "\nNext: " << command(course, {"next"})
        << "   a quiz: " << command(course, {"quiz", std::to_string(lesson.number)}) << "\n";
  else
    out << "\nThat was the last one: all lessons are solved.\n";
  return true;
}

/// Verifies all, several at once, and prints a line each.
int verify_all(Course& course, std::ostream& out) {
  const auto& all = lessons::all_lessons();
  LessonFolder& folder = course.own();
  const VerifyOptions options = course.verify_options();
  std::vector<std::optional<Verification>> results(all.size());
  std::vector<std::string> errors(all.size());
  std::atomic<std::size_t> next = 0;
  {
    std::vector<std::jthread> workers;
    const std::size_t count = std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, 8);
    for (std::size_t w = 0; w < count; ++w) {
      workers.emplace_back([&] {
        for (std::size_t i; (i = next++) < all.size();) {
          try {
            results[i] = verify_exercise(course.kit, all[i], folder.file(all[i]), options);
          } catch (const Error& error) {
            errors[i] = error.what();
          }
        }
      });
    }
  }
  std::size_t solved = 0, checks = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Lesson& lesson = all[i];
    std::string line = fmt::format("{:>2}  {:<26}", lesson.number, lesson.name.substr(3));
    if (!results[i]) {
      out << line << paint(course.style, Tone::bad, errors[i]) << "\n";
      continue;
    }
    const Verification& verification = *results[i];
    course.remember(lesson, verification);
    solved += verification.solved();
    checks += verification.checks.size();
    const std::string counted = fmt::format("{:>4} of {:>4} checks  {:4.1f} s  ", verification.passed(),
                                            verification.checks.size(), verification.seconds);
    const std::string verdict = verification.solved()                   ? "solved"
                                : !verification.compiler_output.empty() ? "does not compile"
                                : !verification.ended.empty()           ? "stopped: " + verification.ended
                                                                        : "not yet";
    out << line << counted << paint(course.style, verification.solved() ? Tone::good : Tone::bad, verdict) << "\n";
  }
  out << fmt::format("{} of {} lessons solved, {} checks run\n", solved, all.size(), checks);
  return solved == all.size() ? 0 : 1;
}

// --- show
// ----------------------------------------------------------------------------------------------------------------

/// What a reader types between two steps.
bool wants_more(const Style& style) {
  std::cout << paint(style, Tone::quiet, "-- Enter: on, q: leave -- ") << std::flush;
  std::string answer;
  if (!std::getline(std::cin, answer)) return false;
  std::cout << "\n";
  return answer.empty() || lower(answer).front() != 'q';
}

bool asked_yes(const std::string& question) {
  std::cout << question << " [y/N] " << std::flush;
  std::string answer;
  return std::getline(std::cin, answer) && !answer.empty() && lower(answer).front() == 'y';
}

}  // namespace

int lesson_init(const LessonOptions& options, std::ostream& out) {
  const std::string& folder = options.init_dir;
  if (folder.empty()) fail<UsageError>("lesson init: the folder's name is empty");
  const int written = LessonFolder::create(folder, lesson_kit());
  if (written == 0)
    out << folder << " has all " << lessons::all_lessons().size() << " exercises already; nothing was changed\n";
  else
    out << fmt::format("{} exercise{} written to {}\n", written, written == 1 ? "" : "s", folder);
  std::vector<std::string> next = {"lesson", "next"};
  if (folder != LessonFolder::kUsualName) next.insert(next.end(), {"--dir", folder});
  out << "Begin with: " << hint(next) << "\n";
  return 0;
}

int lesson_list(const LessonOptions& options, std::ostream& out) {
  const Course course(options);
  auto json = nlohmann::json::array();
  std::size_t solved = 0, shown = 0;
  std::string lines;
  for (const Lesson& lesson : lessons::all_lessons()) {
    const LessonText text = lesson_text(course.kit, lesson);
    const LessonState state = course.state(lesson);
    solved += state == LessonState::solved;
    const std::string everything = lower(std::string(lesson.name) + " " + text.title + " " + text.summary + " " +
                                         text.exercise + " " + std::string(name_of(state)));
    if (everything.find(lower(options.search)) == std::string::npos) continue;
    ++shown;
    const std::string file = course.folder ? course.folder->file(lesson).string() : "";
    json.push_back({{"number", lesson.number},
                    {"name", lesson.name},
                    {"title", text.title},
                    {"summary", text.summary},
                    {"state", name_of(state)},
                    {"file", file}});
    lines += fmt::format("{:>2}  {}  {}\n", lesson.number, drawing::pad_right(text.title, 46),
                         paint(course.style, tone_of(state), meaning(state)));
  }
  if (options.json) {
    out << json.dump(2) << "\n";
    return 0;
  }
  out << lines;
  if (shown == 0) out << "no lesson holds " << to_text(options.search) << "\n";
  out << fmt::format("{} of {} solved", solved, lessons::all_lessons().size());
  if (!course.folder)
    out << "; begin with " << hint({"lesson", "init"}) << "\n";
  else if (course.unsolved())
    out << "; go on with " << command(course, {"next"}) << "\n";
  else
    out << "\n";
  return 0;
}

int lesson_next(const LessonOptions& options, std::ostream& out) {
  Course course(options);
  LessonFolder& folder = course.own();
  const Lesson* lesson = course.unsolved();
  if (!lesson) {
    out << "All " << lessons::all_lessons().size() << " lessons are solved.\n";
    return 0;
  }
  const LessonText text = lesson_text(course.kit, *lesson);
  const LessonState state = course.state(*lesson);
  const std::string n = std::to_string(lesson->number);
  out << heading(course, *lesson, text) << drawing::wrap(course.style, text.summary) << "\n";
  if (state != LessonState::untouched) out << "state   " << paint(course.style, tone_of(state), meaning(state)) << "\n";
  out << "read    " << command(course, {"show", n}) << "\n"
      << "write   " << folder.file(*lesson).string() << "\n"
      << "verify  " << command(course, {"verify", n}) << "   (or leave " << command(course, {"watch"}) << " running)\n"
      << "stuck   " << command(course, {"hint", n}) << "\n\n"
      << drawing::wrap(course.style, text.exercise);
  return 0;
}

int lesson_show(const LessonOptions& options, std::ostream& out) {
  const Course course(options);
  const Lesson& lesson = course.lesson();
  const LessonText text = lesson_text(course.kit, lesson);
  const bool waits = !options.all && someone_is_there();
  out << heading(course, lesson, text) << drawing::wrap(course.style, text.summary) << std::flush;
  bool first = true;
  lessons::Page page(course.style, course.kit.root, [&](const lessons::Page::Step& step) {
    // The next step is ready before it is asked for.
    if (waits && !std::exchange(first, false) && !wants_more(course.style)) return false;
    out << "\n" << paint(course.style, Tone::accent, step.title) << "\n\n" << step.body << std::flush;
    return true;
  });
  try {
    lesson.walk(page);
    page.finish();
  } catch (const lessons::Page::Left&) {
    return 0;
  }
  out << "\n" << drawing::wrap(course.style, text.exercise);
  if (course.folder) {
    out << "\nwrite   " << course.folder->file(lesson).string() << "\nverify  "
        << command(course, {"verify", std::to_string(lesson.number)}) << "\n";
  } else {
    out << "\nTo write it: " << hint({"lesson", "init"}) << "\n";
  }
  return 0;
}

int lesson_hint(const LessonOptions& options, std::ostream& out) {
  Course course(options);
  const Lesson& lesson = course.lesson();
  const LessonText text = lesson_text(course.kit, lesson);
  const int count = int(text.hints.size());
  LessonRecord record = course.folder ? course.folder->record(lesson) : LessonRecord{};
  const int level = options.level > 0 ? int(options.level) : std::min(record.hints + 1, count);
  if (level > count) fail<UsageError>("lesson: a lesson has ", count, " hints; --level ", level, " is not one of them");
  static constexpr std::string_view kinds[] = {"a nudge", "the formula", "the shape of the code"};
  out << heading(course, lesson, text)
      << fmt::format("hint {} of {}: {}\n\n", level, count, kinds[std::size_t(level - 1)])
      << drawing::wrap(course.style, text.hints[std::size_t(level - 1)]);
  if (course.folder && level > record.hints) {
    record.hints = level;
    course.folder->remember(lesson, record);
  }
  const std::string n = std::to_string(lesson.number);
  if (level < count)
    out << "\nMore: "
        << (course.folder ? command(course, {"hint", n})
                          : command(course, {"hint", n, "--level", std::to_string(level + 1)}))
        << "\n";
  else
    out << "\nThat was the last hint. The solution: " << command(course, {"solution", n}) << "\n";
  return 0;
}

int lesson_verify(const LessonOptions& options, std::ostream& out) {
  if (options.all && !options.lesson.empty()) fail<UsageError>("lesson verify: give a lesson or --all, not both");
  Course course(options);
  course.own();
  if (options.all) return verify_all(course, out);
  return verify_one(course, course.lesson(), out) ? 0 : 1;
}

int lesson_watch(const LessonOptions& options, std::ostream& out) {
  Course course(options);
  const std::filesystem::path path = course.own().path();
  const InterruptGuard guard;
  FileWatch watch(path, options.poll);
  out << "watching " << path.string() << (watch.notified() ? "" : " by looking at it five times a second")
      << "; save an exercise and it is verified, Ctrl-C ends\n\n"
      << std::flush;
  std::int64_t verified = 0;
  const auto verify = [&](const Lesson& lesson) {
    out << paint(course.style, Tone::quiet, std::string(std::size_t(course.style.columns), '-')) << "\n";
    try {
      verify_one(course, lesson, out);
    } catch (const DataError& error) {  // an editor may take the file away for a moment
      out << "cannot verify: " << error.what() << "\n";
    }
    out << std::endl;
    ++verified;
  };
  const auto enough = [&] { return interrupted() || (options.times > 0 && verified >= options.times); };
  if (const Lesson* lesson = course.unsolved()) verify(*lesson);
  while (!enough()) {
    for (const std::string& name : watch.changed(std::chrono::milliseconds(250))) {
      for (const Lesson& lesson : lessons::all_lessons())
        if (course.own().file(lesson).filename() == name && !enough()) verify(lesson);
    }
    if (!std::filesystem::exists(path)) fail<DataError>("lesson watch: ", path.string(), " is gone");
  }
  return 0;
}

int lesson_reset(const LessonOptions& options, std::ostream& out) {
  if (options.lesson.empty())
    fail<UsageError>("lesson reset: which lesson? ", hint({"lesson", "reset", "6"}),
                     " puts the exercise of lesson 6 back");
  Course course(options);
  const Lesson& lesson = course.lesson();
  LessonFolder& folder = course.own();
  const std::filesystem::path backup = folder.reset(course.kit, lesson);
  LessonRecord record = folder.record(lesson);
  record.solved.clear();
  record.failed.clear();
  folder.remember(lesson, record);
  out << folder.file(lesson).string() << " is as it was handed out";
  if (!backup.empty()) out << "; what you wrote is in " << backup.string();
  out << "\n";
  return 0;
}

int lesson_solution(const LessonOptions& options, std::ostream& out) {
  const Course course(options);
  const Lesson& lesson = course.lesson();
  if (course.state(lesson) != LessonState::solved && !options.yes) {
    if (!someone_is_there())
      fail<UsageError>("lesson solution: lesson ", lesson.number,
                       " is not solved yet; to see its solution all the same, add --yes");
    if (!asked_yes(
            fmt::format("Lesson {} is not solved yet, and a hint may be enough. Show the solution?", lesson.number)))
      return 0;
  }
  out << read_file(course.kit.solution(lesson).string(), "lesson");
  return 0;
}

int lesson_quiz(const LessonOptions& options, std::ostream& out) {
  Course course(options);
  const Lesson& lesson = course.lesson();
  const LessonText text = lesson_text(course.kit, lesson);
  const std::uint64_t seed =
      options.seed > 0 ? std::uint64_t(options.seed)
                       : std::uint64_t(std::chrono::system_clock::now().time_since_epoch().count() / 1000 % 1000000);
  const Rng rng(seed);
  const lessons::Quiz quiz = lesson.quiz(rng);
  out << heading(course, lesson, text)
      << fmt::format("{} questions (--seed {} asks the same again)\n", quiz.size(), seed);
  int right = 0;
  for (std::size_t i = 0; i < quiz.size(); ++i) {
    const lessons::Question question = quiz[i].shuffled(rng.split(std::uint32_t(i)));
    out << "\n" << drawing::wrap(course.style, fmt::format("{}. {}", i + 1, question.text));
    for (std::size_t c = 0; c < question.choices.size(); ++c)
      out << fmt::format("   {}) {}\n", c + 1, question.choices[c]);
    out << "> " << std::flush;
    std::string answer;
    if (!std::getline(std::cin, answer)) {
      out << "\n";
      fail<UsageError>("lesson quiz: the answers ended after ", i, " of ", quiz.size(),
                       " questions; type one a line, or give them on stdin");
    }
    if (!isatty(STDIN_FILENO)) out << answer << "\n";
    const bool accepted = question.accepts(answer);
    right += accepted;
    out << (accepted ? paint(course.style, Tone::good, "Right: ")
                     : paint(course.style, Tone::bad, "No. It is " + question.answer() + ": "))
        << question.because << "\n";
  }
  out << fmt::format("\n{} of {} right\n", right, quiz.size());
  if (course.folder) {
    LessonRecord record = course.folder->record(lesson);
    if (right > record.quiz) {
      record.quiz = right;
      course.folder->remember(lesson, record);
    }
  }
  return right == int(quiz.size()) ? 0 : 1;
}

int lesson_status(const LessonOptions& options, std::ostream& out) {
  Course course(options);
  const LessonFolder& folder = course.own();
  const auto& all = lessons::all_lessons();
  std::map<LessonState, int> counts;
  int hints = 0;
  std::string marks;
  for (const Lesson& lesson : all) {
    const LessonState state = course.state(lesson);
    ++counts[state];
    hints += folder.record(lesson).hints;
    marks += paint(course.style, tone_of(state),
                   state == LessonState::solved      ? "#"
                   : state == LessonState::untouched ? "."
                                                     : "o");
  }
  out << "folder  " << std::filesystem::absolute(folder.path()).lexically_normal().string() << "\n"
      << fmt::format("solved  {} of {}  [{}]\n", counts[LessonState::solved], all.size(), marks);
  for (const auto& [state, count] : counts)
    if (state != LessonState::solved && state != LessonState::untouched)
      out << fmt::format("{:<7} {}\n", name_of(state), count);
  out << fmt::format("hints   {} seen\n", hints);
  if (const Lesson* lesson = course.unsolved())
    out << fmt::format("next    lesson {}, {}: ", lesson->number, lesson_text(course.kit, *lesson).title)
        << command(course, {"next"}) << "\n";
  return 0;
}

}  // namespace sinkhorn
