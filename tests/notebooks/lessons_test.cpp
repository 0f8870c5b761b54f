// Lessons that cannot lie: exercises fail as handed out, solutions pass, wrong solutions fail, texts and pictures
// exist.
#include <gtest/gtest.h>
#include <toml++/toml.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "notebooks/kit/checks.h"
#include "tests/shared.h"
#include "tests/tools/program.h"
#include "tools/lesson_kit.h"
#include "tools/lesson_verify.h"
#include "tools/subprocess.h"

namespace sinkhorn {
namespace {

namespace fs = std::filesystem;
using lessons::Lesson;
using testing::content_of;

const LessonKit& kit() {
  static const LessonKit kit = lesson_kit();
  return kit;
}

/// A solution with a mistake in it: wrong.toml says which lines of the solution become which.
struct WrongSolution {
  std::string name, mistake, source;
};

std::vector<WrongSolution> wrong_solutions(const Lesson& lesson) {
  const std::string solution = content_of(kit().solution(lesson));
  const toml::table table = toml::parse_file((kit().folder(lesson) / "wrong.toml").string());
  std::vector<WrongSolution> result;
  for (const toml::node& entry : *table["wrong"].as_array()) {
    const toml::table& wrong = *entry.as_table();
    WrongSolution made{wrong["name"].value_or(""), wrong["mistake"].value_or(""), solution};
    // By place in the solution, the last first, so that a change moves none of the places to come.
    std::map<std::size_t, std::pair<std::string, std::string>, std::greater<>> changes;
    for (const toml::node& change : *wrong["changes"].as_array()) {
      const std::string from = change.as_table()->at("from").value_or(""),
                        to = change.as_table()->at("to").value_or("");
      const std::size_t at = solution.find(from);
      if (from.empty() || at == std::string::npos || solution.find(from, at + 1) != std::string::npos)
        ADD_FAILURE() << lesson.name << ", " << made.name << ": the solution must hold these lines once:\n" << from;
      else
        changes[at] = {from, to};
    }
    for (const auto& [at, change] : changes) made.source.replace(at, change.first.size(), change.second);
    EXPECT_NE(made.source, solution) << lesson.name << ", " << made.name << " changes nothing";
    result.push_back(std::move(made));
  }
  return result;
}

/// Every lesson, once with each number.
class EachLesson : public ::testing::TestWithParam<Lesson> {
 protected:
  const Lesson& lesson() const { return GetParam(); }
  fs::path folder() const { return kit().folder(lesson()); }
};
INSTANTIATE_TEST_SUITE_P(Lesson, EachLesson, ::testing::ValuesIn(lessons::all_lessons()),
                         [](const auto& info) { return std::string(info.param.name); });

std::string failures_of(const Verification& verification) {
  std::string text = verification.compiler_output + verification.ended;
  for (const auto& check : verification.checks)
    if (!check.passed) text += "\n" + check.name + ": " + check.detail;
  return text;
}

/// The root of the library with lessons 1 .. last alone: what a lesson may be built from.
class RootUpTo {
 public:
  explicit RootUpTo(int last) {
    const fs::path root = folder_.path / "root";
    fs::create_directories(root / "notebooks" / "lessons");
    for (const char* part : {"autograd", "nn", "models", "cuda", "notebooks/kit"})
      fs::create_directory_symlink(kit().root / part, root / part);
    for (const Lesson& lesson : lessons::all_lessons())
      if (lesson.number <= last)
        fs::create_directory_symlink(kit().folder(lesson), root / "notebooks" / "lessons" / lesson.name);
    path = root;
  }
  fs::path path;

 private:
  TemporaryFolder folder_;
};

TEST_P(EachLesson, ItsSolutionPassesBuiltFromLessonsUpToItsOwnAlone) {
  const RootUpTo root(lesson().number);
  LessonKit alone = kit();
  alone.root = root.path;
  const Verification verification = verify_exercise(alone, lesson(), alone.solution(lesson()));
  EXPECT_TRUE(verification.solved()) << failures_of(verification);
  EXPECT_GE(verification.checks.size(), 4u);
  EXPECT_EQ(verification.printed, "") << "a solution prints nothing";
}

TEST_P(EachLesson, ItsSolutionPassesForOtherRandomInputs) {
  if (!testing::long_tests()) GTEST_SKIP() << "long: set SINKHORN_LONG_TESTS=1";
  for (const std::uint64_t seed : {2, 3, 1000}) {
    const Verification verification =
        verify_exercise(kit(), lesson(), kit().solution(lesson()), {.seed = seed, .time = std::chrono::seconds(120)});
    EXPECT_TRUE(verification.solved()) << "seed " << seed << ": " << failures_of(verification);
  }
}

TEST_P(EachLesson, TheExerciseAsHandedOutAndEveryWrongSolutionFail) {
  if (kit().sanitized()) GTEST_SKIP() << "wrong code may be wrong in any way; solutions run under sanitizers";
  const TemporaryFolder place;
  std::vector<fs::path> files;
  for (const WrongSolution& wrong : wrong_solutions(lesson())) {
    EXPECT_NE(wrong.mistake, "") << wrong.name << " says what is wrong with it";
    files.push_back(place.path / ("wrong_" + wrong.name + ".cpp"));
    EXPECT_FALSE(fs::exists(files.back())) << "two are named " << wrong.name;
    std::ofstream(files.back()) << wrong.source;
  }
  EXPECT_GE(files.size(), 2u) << "a lesson keeps two or more wrong solutions";
  files.push_back(kit().shipped(lesson()));
  std::vector<std::future<Verification>> runs;
  runs.reserve(files.size());
  for (const fs::path& file : files)
    runs.push_back(std::async(std::launch::async, [&file, this] { return verify_exercise(kit(), lesson(), file); }));
  for (std::size_t i = 0; i < files.size(); ++i) {
    const Verification verification = runs[i].get();
    EXPECT_EQ(verification.compiler_output, "") << files[i] << " does not compile, which shows nothing";
    EXPECT_LT(verification.passed(), verification.checks.size()) << files[i] << " must fail a check";
    EXPECT_EQ(verification.ended, "") << files[i] << " must fail by its checks, not by a crash";
    EXPECT_FALSE(verification.solved()) << files[i];
  }
}

TEST_P(EachLesson, ItsTextIsThereAndFits) {
  const LessonText text = lesson_text(kit(), lesson());
  EXPECT_LE(drawing::width(text.title), 46) << "the list has 46 columns for a title";
  EXPECT_EQ(text.summary.find('\n'), std::string::npos);
  for (const std::string& part : {text.summary, text.exercise, text.why, text.hints[0], text.hints[1], text.hints[2]}) {
    std::istringstream lines(drawing::wrap({}, part));
    for (std::string line; std::getline(lines, line);) EXPECT_LE(drawing::width(line), 80) << line;
  }
}

TEST_P(EachLesson, ItsWalkThroughRunsWithoutATerminal) {
  for (const drawing::Style& style : {drawing::Style{}, drawing::Style{.colour = true},
                                      drawing::Style{.columns = 80, .colour = false, .unicode = false}}) {
    int steps = 0;
    std::string all;
    lessons::Page page(style, kit().root, [&](const lessons::Page::Step& step) {
      ++steps;
      EXPECT_NE(step.title, "");
      EXPECT_NE(step.body, "") << step.title;
      all += step.title + "\n" + step.body;
      return true;
    });
    lesson().walk(page);
    page.finish();
    EXPECT_GE(steps, 4);
    std::istringstream lines(all);
    for (std::string line; std::getline(lines, line);) EXPECT_LE(drawing::width(line), 80) << line;
    EXPECT_EQ(all.find('\x1b') == std::string::npos, !style.colour);
    EXPECT_EQ(all.find("{{"), std::string::npos);
  }
}

TEST_P(EachLesson, ItsQuizIsComputedFromTheSeed) {
  std::set<std::string> answers;
  for (const std::uint64_t seed : {1, 2, 3, 4, 5}) {
    const lessons::Quiz quiz = lesson().quiz(Rng(seed));
    EXPECT_GE(quiz.size(), 3u);
    std::string all;
    for (const lessons::Question& asked : quiz) {
      const lessons::Question question = asked.shuffled(Rng(seed));
      EXPECT_NE(question.text, "");
      EXPECT_NE(question.because, "");
      EXPECT_FALSE(question.accepts(""));
      EXPECT_FALSE(question.accepts("1x"));
      if (question.choices.empty()) {
        EXPECT_TRUE(std::isfinite(question.number)) << question.text;
        EXPECT_TRUE(question.accepts(drawing::number(question.number, 17))) << question.text;
        EXPECT_FALSE(question.accepts(drawing::number(2 * question.number + 1, 17))) << question.text;
      } else {
        EXPECT_GE(question.choices.size(), 2u);
        EXPECT_EQ(std::set<std::string>(question.choices.begin(), question.choices.end()).size(),
                  question.choices.size());
        EXPECT_EQ(question.choices[question.right], asked.choices[asked.right]);
        for (std::size_t c = 0; c < question.choices.size(); ++c)
          EXPECT_EQ(question.accepts(std::to_string(c + 1)), c == question.right);
      }
      all += question.text + question.answer();
    }
    answers.insert(all);
  }
  EXPECT_GE(answers.size(), 4u) << "other seeds ask for other numbers";
}

TEST_P(EachLesson, HoldsItsFilesAndNoOthersAndNeedsNoOtherLesson) {
  const std::regex known("(lesson|wrong)\\.toml|(walk|exercise|solution|check)\\.cpp|(exercise|kernels|text)\\.h");
  static const std::regex include(R"re(#\s*include\s*"notebooks/lessons/([^/"]+)/)re");
  for (const fs::directory_entry& entry : fs::directory_iterator(folder())) {
    const std::string name = entry.path().filename();
    EXPECT_TRUE(std::regex_match(name, known)) << entry.path() << " is no part of a lesson";
    const std::string text = content_of(entry.path());
    for (std::sregex_iterator at(text.begin(), text.end(), include), end; at != end; ++at)
      EXPECT_EQ((*at)[1].str(), lesson().name) << entry.path() << " includes another lesson's file";
  }
}

TEST(Lessons, AreNumberedWithoutGapsAndListedByCMake) {
  std::set<std::string> folders;
  for (const fs::directory_entry& entry : fs::directory_iterator(kit().root / "notebooks" / "lessons"))
    folders.insert(entry.path().filename());
  std::set<std::string> listed;
  int number = 0;
  for (const Lesson& lesson : lessons::all_lessons()) {
    EXPECT_EQ(lesson.number, ++number) << lesson.name;
    listed.insert(std::string(lesson.name));
  }
  EXPECT_EQ(folders, listed);
}

// --- the checker itself
// ------------------------------------------------------------------------------------------------

/// Verifies `source` as the exercise of the softmax lesson.
Verification verify_source(const std::string& source, std::chrono::seconds time = std::chrono::seconds(60)) {
  const TemporaryFolder folder;
  const fs::path file = folder.path / "mine.cpp";
  std::ofstream(file) << source;
  const auto& all = lessons::all_lessons();
  const auto softmax = std::find_if(all.begin(), all.end(), [](const Lesson& l) { return l.name == "06_softmax"; });
  return verify_exercise(kit(), *softmax, file, {.seed = 1, .time = time});
}

std::string solution_with(const std::string& what, const std::string& instead) {
  std::string text = content_of(kit().root / "notebooks/lessons/06_softmax/solution.cpp");
  const std::size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos);
  return text.replace(at, what.size(), instead);
}

TEST(Verify, SaysWhatDoesNotCompileAndWhere) {
  const Verification verification = verify_source(solution_with("double sum = 0;", "double sum = 0"));
  EXPECT_FALSE(verification.solved());
  EXPECT_NE(verification.compiler_output.find("mine.cpp:"), std::string::npos) << verification.compiler_output;
  EXPECT_EQ(verification.checks.size(), 0u);
}

TEST(Verify, ExitingEarlyIsNotPassing) {
  const Verification verification =
      verify_source(solution_with("double sum = 0;", "double sum = 0; std::exit(0);") + "\n");
  EXPECT_FALSE(verification.solved());
  EXPECT_NE(verification.ended, "");
}

TEST(Verify, ACrashAndAnEndlessLoopAreReported) {
  const Verification crash = verify_source(solution_with("double sum = 0;", "double sum = 0; __builtin_trap();"));
  EXPECT_FALSE(crash.solved());
  EXPECT_NE(crash.ended.find("signal"), std::string::npos) << crash.ended;
  const Verification loop = verify_source(solution_with("double sum = 0;", "double sum = 0; for (;;) { asm(\"\"); }"),
                                          std::chrono::seconds(1));
  EXPECT_FALSE(loop.solved());
  EXPECT_NE(loop.ended.find("no end after"), std::string::npos) << loop.ended;
}

TEST(Verify, ExceptionsAndWrongShapesFailTheirCheck) {
  const Verification thrown = verify_source(solution_with("double sum = 0;", "double sum = 0; throw 42;"));
  EXPECT_FALSE(thrown.solved());
  EXPECT_EQ(thrown.ended, "");
  const Verification shape = verify_source(solution_with("  return y;", "  return y.reshape({-1});"));
  EXPECT_FALSE(shape.solved());
  EXPECT_EQ(shape.ended, "");
  EXPECT_NE(failures_of(shape).find("expected shape"), std::string::npos) << failures_of(shape);
}

TEST(Verify, ForgedResultsDoNotCount) {
  // A file that prints what a passing run prints, or defines check() itself, has run no check.
  EXPECT_FALSE(verify_source("int main() { return 0; }\n").solved());
  EXPECT_FALSE(
      verify_source("#include \"notebooks/kit/checks.h\"\n"
                    "namespace sinkhorn::lesson { void check(lessons::Checks& c) { c.that(\"mine\", true); } }\n")
          .solved());
}

TEST(Verify, ZeroChecksAreAFailure) {
  Verification none;
  EXPECT_FALSE(none.solved());
  none.checks.push_back({"one", true, ""});
  EXPECT_TRUE(none.solved());
}

TEST(Checks, NameTheGradientThatHasAnotherShape) {
  // The gradient checker would read past its end.
  std::vector<lessons::CheckResult> seen;
  lessons::Checks checks(1, [&](const lessons::CheckResult& result) { seen.push_back(result); });
  auto check = [&](const Tensors& gradients) {
    checks.gradients("mine",
                     lessons::problem_of(
                         {"x"}, {Tensor::full({2, 3}, 1, DType::f64)}, [](const Tensors& at) { return at[0].clone(); },
                         [=](const Tensors&, const Tensor& dy) { return gradients.empty() ? Tensors{dy} : gradients; }),
                     Rng(1));
    return seen.back();
  };
  EXPECT_TRUE(check({}).passed);
  for (const Tensors& wrong :
       {Tensors{Tensor::zeros({3}, DType::f64)}, {Tensor::zeros({2, 3}, DType::f32)}, {Tensor(), Tensor()}}) {
    const lessons::CheckResult result = check(wrong);
    EXPECT_FALSE(result.passed);
    EXPECT_NE(result.detail, "");
  }
  EXPECT_EQ(seen.size(), 4u);
}

// --- quotations
// -----------------------------------------------------------------------------------------------------------

TEST(Checks, SayInTheDetailOfAFailureWhatWasDrawn) {
  std::vector<lessons::CheckResult> seen;
  lessons::Checks checks(1, [&](const lessons::CheckResult& result) { seen.push_back(result); });
  lessons::Checks there = checks.at("at x = 2");
  there.equal("rows", 3, 4);
  there.equal("columns", 5, 5);
  there.that("a table", false, "  two\n  lines\n");
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen[0].name, "rows");
  EXPECT_EQ(seen[0].detail, "at x = 2: expected 4, got 3");
  EXPECT_TRUE(seen[1].passed);
  EXPECT_EQ(seen[1].detail, "");
  EXPECT_EQ(seen[2].detail, "at x = 2:\n  two\n  lines\n");
}

TEST(Quiz, ShowsTheNumbersItComputesWith) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const double x = lessons::rounded(Rng(seed), -1, 2, 1);
    EXPECT_EQ(std::stod(fmt::format("{:.1f}", x)), x);
    EXPECT_FALSE(std::signbit(x) && x == 0) << "shown as -0.0";
    EXPECT_TRUE(x >= -1 && x <= 2) << x;
    const std::int64_t n = lessons::whole(Rng(seed), 3, 5);
    EXPECT_TRUE(n >= 3 && n <= 5) << n;
  }
  std::set<std::int64_t> drawn;
  for (std::uint64_t seed = 0; seed < 200; ++seed) drawn.insert(lessons::whole(Rng(seed), 3, 5));
  EXPECT_EQ(drawn.size(), 3u);
}

TEST(Quote, EndsWhereTheBracketsClose) {
  const TemporaryFolder folder;
  const fs::path file = folder.path / "source.cpp";
  std::ofstream(file) << "int before;\n  void f(int a,\n         int b) {\n    if (a) {\n    }\n  }\nint after;\nint "
                         "g(int);\nauto s = \"int g\";\n";
  EXPECT_EQ(lessons::quote(file, "void f("), "void f(int a,\n       int b) {\n  if (a) {\n  }\n}\n");
  EXPECT_EQ(lessons::quote(file, "int g"), "int g(int);\n");
  EXPECT_THROW(lessons::quote(file, "int a"), DataError) << "two lines hold it";
  EXPECT_THROW(lessons::quote(file, "nowhere"), DataError);
  EXPECT_THROW(lessons::quote(folder.path / "none.cpp", "x"), DataError);
  EXPECT_EQ(lessons::with_quotes("a\n{{source.cpp: int g}}\nb", folder.path), "a\n  int g(int);\nb\n");
  EXPECT_THROW(lessons::with_quotes("{{source.cpp}}", folder.path), DataError);
}

}  // namespace
}  // namespace sinkhorn
