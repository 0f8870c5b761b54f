// `sinkhorn lesson` as a learner uses it: from an empty folder to a solved exercise, and everything that can go wrong.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/shared.h"
#include "tests/tools/program.h"
#include "tests/tools/terminal.h"
#include "tools/file_watch.h"
#include "tools/lesson_folder.h"
#include "tools/lesson_verify.h"
#include "tools/subprocess.h"

namespace sinkhorn::testing {
namespace {

namespace fs = std::filesystem;
using lessons::Lesson;

constexpr const char* kSoftmax = "06_softmax";

/// A place with a folder of lessons in it.
class LessonCommand : public ::testing::Test {
 protected:
  LessonCommand() { EXPECT_EQ(run({"init"}).code, 0); }

  Outcome run(std::vector<std::string> arguments, const sinkhorn::testing::Setup& setup = {}) const {
    arguments.insert(arguments.begin(), "lesson");
    return run_program(place.path, std::move(arguments), setup);
  }
  fs::path mine() const { return place.path / "my-lessons"; }
  fs::path file(const std::string& name = kSoftmax) const { return mine() / (name + ".cpp"); }
  void solve(const std::string& name = kSoftmax) const {
    fs::copy_file(lesson_kit().root / "notebooks/lessons" / name / "solution.cpp", file(name),
                  fs::copy_options::overwrite_existing);
  }
  void append(const std::string& text) const { std::ofstream(file(), std::ios::app) << text; }
  std::string state(const std::string& name = kSoftmax) const {
    for (const auto& entry : nlohmann::json::parse(run({"list", "--json"}).out))
      if (entry["name"] == name) return entry["state"];
    return "not listed";
  }

  TemporaryFolder place;
};

void expect_one_line(const Outcome& outcome, int code, const std::string& part) {
  EXPECT_EQ(outcome.code, code) << outcome.out << outcome.err;
  EXPECT_TRUE(contains(outcome.err, part)) << outcome.err;
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
}

TEST_F(LessonCommand, AnExerciseIsNewStartedFailedSolvedEditedAndBroken) {
  EXPECT_EQ(state(), "new");
  append("// a first thought\n");
  EXPECT_EQ(state(), "started");
  const Outcome failed = run({"verify", "6"});
  EXPECT_EQ(failed.code, 1);
  EXPECT_TRUE(contains(failed.out, "my-lessons/06_softmax.cpp")) << failed.out;
  EXPECT_TRUE(contains(failed.out, file_hash(file()))) << failed.out;
  EXPECT_TRUE(contains(failed.out, "softmax_backward")) << failed.out;
  EXPECT_EQ(state(), "started");
  solve();
  const Outcome solved = run({"verify", "softmax"});
  EXPECT_EQ(solved.code, 0) << solved.out << solved.err;
  EXPECT_TRUE(contains(solved.out, "28 of 28 passed")) << solved.out;
  EXPECT_TRUE(contains(solved.out, "Why it works")) << solved.out;
  EXPECT_EQ(state(), "solved");
  append("// an afterthought\n");
  EXPECT_EQ(state(), "edited");
  append("#error broken\n");
  const Outcome broken = run({"verify", "06_softmax"});
  EXPECT_EQ(broken.code, 1);
  EXPECT_TRUE(contains(broken.out, "It does not compile")) << broken.out;
  EXPECT_EQ(state(), "broken");
  EXPECT_TRUE(contains(run({"list"}).out, "solved, but your edit broke it"));
  fs::remove(file());
  EXPECT_EQ(state(), "missing");
  expect_one_line(run({"verify", "6"}), 3, "06_softmax.cpp");
  EXPECT_EQ(run({"reset", "6"}).code, 0);
  EXPECT_EQ(state(), "new");
}

TEST_F(LessonCommand, ResetKeepsWhatWasWritten) {
  append("// precious\n");
  EXPECT_TRUE(contains(run({"reset", "6"}).out, "backups/06_softmax.1.cpp"));
  append("// precious, too\n");
  EXPECT_EQ(run({"reset", "6"}).code, 0);
  EXPECT_TRUE(contains(content_of(mine() / "backups/06_softmax.1.cpp"), "precious"));
  EXPECT_TRUE(contains(content_of(mine() / "backups/06_softmax.2.cpp"), "precious, too"));
  EXPECT_FALSE(contains(content_of(file()), "precious"));
  EXPECT_FALSE(contains(run({"reset", "6"}).out, "backups")) << "nothing was written, so nothing is kept";
  EXPECT_EQ(run({"reset"}).code, 2);
}

TEST_F(LessonCommand, InitAddsWhatIsMissingAndKeepsTheRest) {
  append("// mine\n");
  fs::remove(file("06_softmax").parent_path() / (std::string(lessons::all_lessons().front().name) + ".cpp"));
  if (lessons::all_lessons().front().name == kSoftmax) append("// mine\n");
  EXPECT_TRUE(contains(run({"init"}).out, "1 exercise")) << "or it wrote over what was there";
  EXPECT_TRUE(contains(content_of(file()), "// mine"));
  EXPECT_TRUE(contains(run({"init"}).out, "nothing was changed"));
  const Outcome elsewhere = run({"init", "other/place"});
  EXPECT_EQ(elsewhere.code, 0) << elsewhere.err;
  EXPECT_TRUE(contains(elsewhere.out, "--dir other/place")) << elsewhere.out;
  EXPECT_EQ(run({"list", "--dir", "other/place"}).code, 0);
}

TEST_F(LessonCommand, WorksInTheFolderBelowItAndBesideIt) {
  fs::create_directories(mine() / "notes");
  for (const char* from : {".", "my-lessons", "my-lessons/notes"})
    EXPECT_EQ(run_program(place.path / from, {"lesson", "status"}).code, 0) << from;
  const TemporaryFolder elsewhere;
  expect_one_line(run_program(elsewhere.path, {"lesson", "status"}), 2, "lesson init");
  EXPECT_EQ(run_program(elsewhere.path, {"lesson", "list"}).code, 0) << "reading needs no folder";
  EXPECT_EQ(run_program(elsewhere.path, {"lesson", "show", "6"}).code, 0);
  EXPECT_EQ(run_program(elsewhere.path, {"lesson", "hint", "6"}).code, 0);
}

TEST_F(LessonCommand, HintsComeOneAfterTheOther) {
  EXPECT_TRUE(contains(run({"hint", "6"}).out, "hint 1 of 3: a nudge"));
  EXPECT_TRUE(contains(run({"hint", "6"}).out, "hint 2 of 3: the formula"));
  EXPECT_TRUE(contains(run({"hint", "6"}).out, "hint 3 of 3"));
  EXPECT_TRUE(contains(run({"hint", "6"}).out, "hint 3 of 3"));
  EXPECT_TRUE(contains(run({"hint", "6", "--level", "1"}).out, "hint 1 of 3"));
  EXPECT_TRUE(contains(run({"status"}).out, "hints   3 seen"));
  expect_one_line(run({"hint", "6", "--level", "4"}), 2, "--level");
}

TEST_F(LessonCommand, TheSolutionComesAfterSuccessOrAYes) {
  expect_one_line(run({"solution", "6"}), 2, "--yes");
  const std::string solution = content_of(lesson_kit().root / "notebooks/lessons/06_softmax/solution.cpp");
  EXPECT_EQ(run({"solution", "6", "--yes"}).out, solution);
  solve();
  EXPECT_EQ(run({"verify", "6"}).code, 0);
  EXPECT_EQ(run({"solution", "6"}).out, solution);
  Terminal refused(place.path, {"lesson", "solution", "7"});
  ASSERT_TRUE(refused.wait_for("[y/N]")) << refused.screen();
  refused.type("n\n");
  EXPECT_EQ(refused.wait(), 0);
  EXPECT_FALSE(contains(refused.screen(), "#include"));
}

TEST_F(LessonCommand, AQuizCountsRightAnswers) {
  const auto& all = lessons::all_lessons();
  const auto softmax = std::find_if(all.begin(), all.end(), [](const Lesson& l) { return l.name == kSoftmax; });
  const lessons::Quiz quiz = softmax->quiz(Rng(5));
  std::string right, wrong;
  for (std::size_t i = 0; i < quiz.size(); ++i) {
    const lessons::Question question = quiz[i].shuffled(Rng(5).split(std::uint32_t(i)));
    right +=
        (question.choices.empty() ? drawing::number(question.number, 12) : std::to_string(question.right + 1)) + "\n";
    wrong += "no idea\n";
  }
  const std::string count = std::to_string(quiz.size());
  const Outcome all_right = run({"quiz", "6", "--seed", "5"}, {.input = right});
  EXPECT_EQ(all_right.code, 0) << all_right.out;
  EXPECT_TRUE(contains(all_right.out, count + " of " + count + " right")) << all_right.out;
  const Outcome none_right = run({"quiz", "6", "--seed", "5"}, {.input = wrong});
  EXPECT_EQ(none_right.code, 1);
  EXPECT_TRUE(contains(none_right.out, "0 of " + count)) << none_right.out;
  EXPECT_TRUE(contains(content_of(mine() / "progress.txt"), "quiz=" + count)) << "the best try is kept";
  expect_one_line(run({"quiz", "6"}, {.input = "1\n"}), 2, "answers ended");
}

TEST_F(LessonCommand, ListIsSearchableAndMachineReadable) {
  const auto list = nlohmann::json::parse(run({"list", "--json"}).out);
  ASSERT_EQ(list.size(), lessons::all_lessons().size());
  for (const auto& entry : list) {
    EXPECT_TRUE(entry["number"].is_number_integer());
    EXPECT_TRUE(fs::exists(place.path / entry["file"].get<std::string>())) << entry;
    EXPECT_EQ(entry["state"], "new");
  }
  const auto found = nlohmann::json::parse(run({"list", "--json", "--search", "OVERFLOW"}).out);
  ASSERT_GE(found.size(), 1u);
  EXPECT_LT(found.size(), list.size() + (list.size() == 1));
  EXPECT_EQ(nlohmann::json::parse(run({"list", "--json", "--search", "no such thing"}).out).size(), 0u);
  EXPECT_EQ(run({"list"}).out.find('\x1b'), std::string::npos);
}

TEST_F(LessonCommand, VerifyAllWithEverySolutionIsGreenInOneGo) {
  if (lesson_kit().sanitized()) GTEST_SKIP() << "each solution runs under sanitizers by itself";
  for (const Lesson& lesson : lessons::all_lessons()) solve(std::string(lesson.name));
  const Outcome outcome = run({"verify", "--all"});
  const std::string count = std::to_string(lessons::all_lessons().size());
  EXPECT_EQ(outcome.code, 0) << outcome.out;
  EXPECT_TRUE(contains(outcome.out, count + " of " + count + " lessons solved")) << outcome.out;
  EXPECT_TRUE(contains(run({"next"}).out, "are solved"));
  append("#error no\n");
  EXPECT_EQ(state(), "edited");
}

TEST_F(LessonCommand, BadInputIsOneClearLine) {
  expect_one_line(run({"verify", "99"}), 2, "no lesson \"99\"");
  expect_one_line(run({"show", "softmx"}), 2, "did you mean softmax?");
  expect_one_line(run({"verfy"}), 2, "did you mean verify?");
  expect_one_line(run({}), 2, "a command is required");
  expect_one_line(run({"verify", "6", "7"}), 2, "unknown argument");
  expect_one_line(run({"verify", "6", "--all"}), 2, "not both");
  expect_one_line(run({"verify", "6", "--seed", "x"}), 2, "--seed");
  expect_one_line(run({"init", ""}), 2, "empty");
  expect_one_line(run({"init", "/proc/lessons"}), 3, "/proc/lessons");
  std::ofstream(place.path / "file") << "x";
  expect_one_line(run({"init", "file/below"}), 3, "file");
  expect_one_line(run({"verify", "6"}, {.environment = {{"SINKHORN_LESSON_KIT", "/nowhere.json"}}}), 3, "nowhere.json");
  std::ofstream(place.path / "kit.json") << "{\"root\": 7}";
  expect_one_line(run({"list"}, {.environment = {{"SINKHORN_LESSON_KIT", "kit.json"}}}), 3, "damaged");
}

TEST_F(LessonCommand, AnEditedProgressFileIsRefusedByItsLine) {
  const auto progress = [&](const std::string& text) { std::ofstream(mine() / "progress.txt") << text; };
  for (const auto& [line, complaint] :
       std::vector<std::pair<std::string, std::string>>{{"06_softmax solved=xyz", "16 hexadecimal digits"},
                                                        {"06_softmax won=yes", "none of solved="},
                                                        {"99_magic hints=1", "no lesson '99_magic'"},
                                                        {"06_softmax hints=many", "hints is a number"},
                                                        {"06_softmax hints=1\n06_softmax hints=2", "second line"}}) {
    progress("# heading\n\n" + line + "\n");
    expect_one_line(run({"status"}), 3, complaint);
    EXPECT_TRUE(contains(run({"status"}).err, "progress.txt:")) << line;
  }
  progress("06_softmax hints=2\r\n");
  EXPECT_EQ(run({"status"}).code, 0) << "line ends of another system are no mistake";
  progress("");
  EXPECT_EQ(run({"verify", "6"}).code, 1);
}

TEST_F(LessonCommand, AMissingCompilerIsSaid) {
  auto kit = nlohmann::json::parse(content_of(fs::path(build_info::binary_dir) / "lesson_kit.json"));
  kit["compiler"] = "/nowhere/c++";
  std::ofstream(place.path / "kit.json") << kit.dump();
  const Outcome outcome = run({"verify", "6"}, {.environment = {{"SINKHORN_LESSON_KIT", "kit.json"}}});
  expect_one_line(outcome, 3, "/nowhere/c++");
  EXPECT_TRUE(contains(outcome.err, "install")) << outcome.err;
}

TEST_F(LessonCommand, AFolderThatCannotBeWrittenIsSaid) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write anywhere";
  fs::permissions(mine(), fs::perms::owner_read | fs::perms::owner_exec);
  expect_one_line(run({"verify", "6"}), 3, "progress.txt");
  fs::permissions(mine(), fs::perms::owner_all);
}

TEST_F(LessonCommand, WatchSeesAFailingThenAMendedFile) {
  for (const bool poll : {false, true}) {
    std::vector<std::string> words = {"lesson", "watch"};
    if (poll) words.emplace_back("--poll");
    ASSERT_EQ(run({"reset", "6"}).code, 0);
    Terminal terminal(place.path, words);
    ASSERT_TRUE(terminal.wait_for(poll ? "looking at it" : "watching my-lessons")) << terminal.screen();
    ASSERT_TRUE(terminal.wait_for("A hint:")) << terminal.screen();  // the first unsolved one, as it is
    append("// a thought\n");
    ASSERT_TRUE(terminal.wait_for("06_softmax.cpp")) << terminal.screen();
    ASSERT_TRUE(terminal.wait_for("A hint:")) << terminal.screen();
    // An editor that writes beside and renames.
    fs::copy_file(lesson_kit().root / "notebooks/lessons/06_softmax/solution.cpp", mine() / "saving.tmp");
    fs::rename(mine() / "saving.tmp", file());
    ASSERT_TRUE(terminal.wait_for("Solved.")) << terminal.screen();
    terminal.type("\x03");
    EXPECT_EQ(terminal.wait(), 0) << terminal.screen();
    EXPECT_EQ(state(), "solved");
  }
}

TEST_F(LessonCommand, ShowGoesStepByStepOnATerminal) {
  Terminal terminal(place.path, {"lesson", "show", "6"});
  ASSERT_TRUE(terminal.wait_for("Scores become shares")) << terminal.screen();
  ASSERT_TRUE(terminal.wait_for("Enter: on")) << terminal.screen();
  EXPECT_FALSE(contains(terminal.screen(), "Exponentials overflow"));
  terminal.type("\n");
  ASSERT_TRUE(terminal.wait_for("Exponentials overflow")) << terminal.screen();
  terminal.type("q\n");
  EXPECT_EQ(terminal.wait(), 0);
  EXPECT_FALSE(contains(terminal.screen(), "Your turn"));
  EXPECT_TRUE(contains(terminal.screen(), "\x1b[")) << "in colour";
  Terminal plain(place.path, {"lesson", "show", "6", "--all"}, {{"NO_COLOR", "1"}});
  EXPECT_EQ(plain.wait(), 0);
  EXPECT_TRUE(contains(plain.screen(), "Your turn"));
  EXPECT_FALSE(contains(plain.screen(), "\x1b[")) << "NO_COLOR";
}

TEST(LessonInstalled, VerifiesWithoutTheBuildTree) {
  const TemporaryFolder place;
  const fs::path prefix = place.path / "first", moved = place.path / "moved", mine = place.path / "mine";
  const SubprocessLimits limits{.time = std::chrono::seconds(300)};
  const SubprocessResult installed =
      run_subprocess({"cmake", "--install", std::string(build_info::binary_dir), "--prefix", prefix.string()}, limits);
  ASSERT_TRUE(installed.ok()) << installed.output;
  fs::rename(prefix, moved);  // an installed tree may be moved
  const std::string program = (moved / "bin" / "sinkhorn").string();
  ASSERT_TRUE(run_subprocess({program, "lesson", "init", mine.string()}).ok());
  const fs::path solution = moved / "share/sinkhorn/notebooks/lessons/06_softmax/solution.cpp";
  fs::copy_file(solution, mine / "06_softmax.cpp", fs::copy_options::overwrite_existing);
  const SubprocessResult verified = run_subprocess({program, "lesson", "verify", "6", "--dir", mine.string()}, limits);
  EXPECT_TRUE(verified.ok()) << verified.output;
  EXPECT_TRUE(contains(content_of(mine / "compile_flags.txt"), moved.string())) << "editors read the installed library";
  const SubprocessResult list = run_subprocess({program, "lesson", "list"});
  EXPECT_TRUE(list.ok()) << list.output << "every text finds what it quotes";
  EXPECT_TRUE(run_subprocess({program, "lesson", "show", "6", "--all"}).ok());
}

// --- below the command
// -----------------------------------------------------------------------------------------------------

TEST(Subprocess, TellsHowItEnded) {
  const SubprocessLimits limits{.time = std::chrono::seconds(1)};
  EXPECT_EQ(run_subprocess({"sh", "-c", "echo out; echo err >&2; exit 3"}).output, "out\nerr\n");
  EXPECT_EQ(run_subprocess({"sh", "-c", "exit 3"}).how_it_ended(limits), "exit code 3");
  EXPECT_TRUE(contains(run_subprocess({"sh", "-c", "kill -SEGV $$"}).how_it_ended(limits), "signal 11"));
  EXPECT_EQ(run_subprocess({"sh", "-c", "sleep 100 & sleep 100"}, limits).how_it_ended(limits), "no end after 1 s");
  const SubprocessResult deaf = run_subprocess({"sh", "-c", "trap '' TERM; while :; do sleep 1; done"}, limits);
  EXPECT_EQ(deaf.signal, SIGKILL) << "a program that will not listen is ended, too";
  EXPECT_THROW(run_subprocess({"/nowhere/program"}), Error);
  EXPECT_EQ(run_subprocess({"sh", "-c", "yes | head -c 100000"}, {.output = 10}).output.size(), 10u);
  EXPECT_EQ(run_subprocess({"cat"}).output, "") << "stdin is empty, not the terminal's";
}

TEST(FileWatch, SeesSavesRenamesAndNothingElse) {
  for (const bool poll : {false, true}) {
    const TemporaryFolder folder;
    std::ofstream(folder.path / "a.cpp") << "1";
    FileWatch watch(folder.path, poll);
    EXPECT_NE(watch.notified(), poll);
    using std::chrono::milliseconds;
    EXPECT_TRUE(watch.changed(milliseconds(50)).empty());
    std::ofstream(folder.path / "a.cpp") << "12";
    EXPECT_EQ(watch.changed(milliseconds(5000)), std::set<std::string>({"a.cpp"}));
    std::ofstream(folder.path / "b.tmp") << "123";
    fs::rename(folder.path / "b.tmp", folder.path / "b.cpp");
    const auto seen = watch.changed(milliseconds(5000));
    EXPECT_TRUE(seen.contains("b.cpp"));
    EXPECT_TRUE(watch.changed(milliseconds(50)).empty());
  }
}

}  // namespace
}  // namespace sinkhorn::testing
