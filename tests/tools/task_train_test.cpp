// Tasks through the program: what a run reports and remembers, that it resumes to the bit, and what is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "models/run_folder.h"
#include "tests/shared.h"
#include "tests/tools/program.h"
#include "tools/checkpoint.h"
#include "tools/run_log.h"
#include "tools/settings.h"

namespace sinkhorn {
namespace {

using testing::contains;
using testing::content_of;
using testing::Outcome;
using testing::run_program;
using testing::Words;

class TaskTrain : public ::testing::Test {
 protected:
  static Words command(const std::string& task, const Words& more = {}) {
    return Words{"train", "--task",       task,  "--task-length", "4",  "--dim",          "16", "--depth",
                 "1",     "--heads",      "2",   "--bucket-size", "4",  "--steps",        "6",  "--batch-size",
                 "4",     "--eval-every", "3",   "--seed",        "3",  "--eval-batches", "1",  "--checkpoint-every",
                 "3",     "--ff-dropout", "0.1", "--out",         "run"} +
           more;
  }
  Outcome run(const Words& words) const { return run_program(place.path, words); }
  void expect_refusal(int code, const Words& words, const Words& parts) const {
    const Outcome got = run(words);
    EXPECT_EQ(got.code, code) << got.out << got.err;
    EXPECT_EQ(std::count(got.err.begin(), got.err.end(), '\n'), 1) << got.err;
    for (const auto& part : parts) EXPECT_TRUE(contains(got.err, part)) << part << " is not in: " << got.err;
  }
  std::vector<nlohmann::json> log_of(const std::string& folder) const {
    std::istringstream file(content_of(place.path / folder / RunLog::name));
    std::vector<nlohmann::json> lines;
    for (std::string line; std::getline(file, line);) {
      lines.push_back(nlohmann::json::parse(line));
      lines.back().erase("tokens_per_second"), lines.back().erase("ms");
    }
    return lines;
  }

  testing::TemporaryFolder place;
};

TEST_F(TaskTrain, EveryTaskReportsItsScoresAtBothLengths) {
  for (const auto& task : Task::names()) {
    const Outcome got = run(command(task, {"--out", task}));
    ASSERT_EQ(got.code, 0) << got.err;
    EXPECT_EQ(got.err, "");
    EXPECT_EQ(
        run(command(task, {"--out", task + "-other", task == "add-one" ? "--no-encoder-decoder" : "--encoder-decoder"}))
            .code,
        0);
    for (const char* part : {"length   4, generated:", "length   8, generated:", "length   8, teacher-forced:",
                             "exact match", "token accuracy", "edit distance", "answers, source/target:"})
      EXPECT_TRUE(contains(got.out, part)) << part << " is not in:\n" << got.out;
    EXPECT_TRUE(contains(got.out, "preset " + task)) << got.out;
    const auto log = log_of(task);
    ASSERT_EQ(log.size(), 6u);
    for (std::size_t i = 0; i < 6; ++i) ASSERT_EQ(log[i].contains("task"), (i + 1) % 3 == 0) << i;
    ASSERT_EQ(log[5]["task"].size(), 2u);
    for (std::size_t i = 0; i < 2; ++i) {
      const auto& score = log[5]["task"][i];
      EXPECT_EQ(score["length"], i == 0 ? 4 : 8);
      for (const char* how : {"generated", "teacher_forced"})
        for (const char* what : {"exact_match", "token_accuracy", "edit_distance"}) {
          EXPECT_GE(score[how][what].get<double>(), 0);
          EXPECT_LE(score[how][what].get<double>(), 1);
        }
    }
  }
}

TEST_F(TaskTrain, ResumingAndThreadsChangeNoBit) {
  for (const Words& how : {Words{}, Words{"--task-shift"}, Words{"--encoder-decoder"}}) {
    const std::string whole = how.empty() ? "whole" : how[0].substr(2), parts = whole + "-parts";
    ASSERT_EQ(run(command("sort", how + Words{"--out", whole, "--threads", "2"})).code, 0);
    ASSERT_EQ(run(command("sort", how + Words{"--out", parts, "--steps", "6", "--threads", "1"})).code, 0);
    // Back to step 3, as a kill after its checkpoint leaves it.
    std::filesystem::remove(place.path / parts / RunFolder::step_name(6));
    std::filesystem::remove(place.path / parts / RunFolder::best_name);
    const Outcome got = run({"train", "--resume", "--out", parts, "--threads", "1"});
    ASSERT_EQ(got.code, 0) << got.err;
    EXPECT_TRUE(contains(got.out, "resumed at step 3")) << got.out;
    const std::string name = RunFolder::step_name(6);
    EXPECT_TRUE(content_of(place.path / whole / name) == content_of(place.path / parts / name));
    EXPECT_EQ(log_of(whole), log_of(parts));
  }
}

TEST_F(TaskTrain, TheCheckpointKnowsItsTask) {
  ASSERT_EQ(run(command("sort")).code, 0);
  const Outcome scores = run({"eval", "--checkpoint", "run", "--examples", "5"});
  EXPECT_EQ(scores.code, 0) << scores.err;
  for (const char* part : {"task sort: 5 fresh examples", "length   4, generated:", "length   8, teacher-forced:"})
    EXPECT_TRUE(contains(scores.out, part)) << scores.out;
  EXPECT_EQ(scores.out, run({"eval", "--checkpoint", "run", "--examples", "5", "--threads", "1"}).out);
  EXPECT_EQ(scores.out, run({"eval", "--checkpoint", "run", "--examples", "5", "--batch-size", "2"}).out);

  ASSERT_EQ(run(command("sort", {"--out", "pair", "--encoder-decoder"})).code, 0);
  const Outcome paired = run({"generate", "--checkpoint", "pair", "--prompt", "31425926"});
  EXPECT_EQ(paired.code, 0) << paired.err;
  EXPECT_TRUE(paired.out.starts_with("31425926/")) << paired.out;
  EXPECT_EQ(run({"eval", "--checkpoint", "pair", "--examples", "5"}).code, 0);
  expect_refusal(3, {"generate", "--checkpoint", "pair", "--prompt", "0123456789012"},
                 {"13 symbols and their answer take 14 positions, but the model has 12"});

  const Outcome made = run({"generate", "--checkpoint", "run", "--prompt", "3142"});
  EXPECT_EQ(made.code, 0) << made.err;
  EXPECT_TRUE(made.out.starts_with("3142/")) << made.out;
  EXPECT_LE(std::count(made.out.begin(), made.out.end(), '.'), 1) << made.out;
  EXPECT_EQ(made.out, run({"generate", "--checkpoint", "run", "--prompt", "3142/"}).out);

  expect_refusal(3, {"generate", "--checkpoint", "run", "--prompt", "31x"},
                 {"prompt: 'x' (U+0078) is no symbol of task sort; its symbols are 0-9"});
  expect_refusal(3, {"generate", "--checkpoint", "run"}, {"task sort wants a source"});
  expect_refusal(3, {"generate", "--checkpoint", "run", "--prompt", "0123456789"},
                 {"10 symbols and their answer take 21 positions, but the model has 20"});
  expect_refusal(2, {"eval", "--checkpoint", "run", "--data", "x"}, {"trained on task sort", "leave --data out"});
  expect_refusal(2, {"eval", "--checkpoint", "run", "--whole"}, {"leave --whole out"});
  expect_refusal(2, {"train", "--out", "run", "--resume", "--task-symbols", "8"},
                 {"task_symbols: 8 here, 10 there", "--override"});
  const Outcome again = run({"train", "--out", "run", "--resume", "--task", "sort"});  // its preset has other lengths
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_TRUE(contains(again.out, "complete at step 6")) << again.out;
  expect_refusal(2, {"train", "--out", "run", "--resume", "--task", "copy"}, {"task: \"copy\" here, \"sort\" there"});
}

TEST_F(TaskTrain, RefusedCombinationsSayWhy) {
  expect_refusal(2, command("sort", {"--data", "book.txt"}), {"the task makes its own data", "book.txt"});
  expect_refusal(2, command("sort", {"--vocabulary", "byte"}), {"leave vocabulary out"});
  expect_refusal(2, command("sort", {"--sample-prompt", "12"}), {"leave sample_prompt out"});
  expect_refusal(2, command("sort", {"--max-seq-len", "16"}),
                 {"evaluated at twice task_length 4, which takes max_seq_len 20, not 16"});
  expect_refusal(2, command("sort", {"--seq-len", "8"}), {"task_length 4 take seq_len 12, not 8"});
  expect_refusal(2, command("recall", {"--task-symbols", "7"}),
                 {"twice task_length 4 needs task_symbols of 8 or more, not 7"});
  expect_refusal(2, {"train", "--encoder-decoder", "--out", "run"}, {"a text has no source", "choose a task"});
  expect_refusal(2, command("srot"), {"--task", "srot", "sort"});
  expect_refusal(2, command("sort", {"--task-symbols", "1"}), {"--task-symbols"});
  EXPECT_FALSE(std::filesystem::exists(place.path / "run"));
}

TEST(TaskSettings, LengthsFollowFromTheTask) {
  const Settings plain = resolve("", {{"task", "sort"}, {"task_length", "32"}, {"bucket_size", "16"}});
  EXPECT_EQ(plain.train.preset, "sort");
  EXPECT_EQ(plain.train.out, "runs/sort");
  EXPECT_EQ(plain.train.seq_len, plain.train.task_shift ? 144 : 80);  // 65 slots, and 129
  EXPECT_EQ(plain.model.max_seq_len, 144);
  const Flags shifted = {{"task", "sort"}, {"task_length", "32"}, {"bucket_size", "16"}, {"task_shift", "true"}};
  EXPECT_EQ(resolve("", shifted).train.seq_len, 144);
  Flags wider = shifted;
  wider.emplace_back("seq_len", "160");
  EXPECT_EQ(resolve("", wider).train.seq_len, 160);
  EXPECT_EQ(resolve("", wider).model.max_seq_len, 160);
  // A text's preset can carry a task; its own lengths then do not count.
  const Settings other = resolve("", {{"preset", "shakespeare"}, {"task", "copy"}});
  EXPECT_EQ(other.train.preset, "shakespeare");
  EXPECT_EQ(other.train.seq_len, 128);
  EXPECT_EQ(resolve("", {{"preset", "copy"}}).train.task, "copy");
}

TEST(TaskSettings, PrintedSettingsReadBack) {
  for (const auto& task : Task::names()) {
    const Settings settings = resolve("", {{"task", task}});
    const std::string path = ::testing::TempDir() + "task_settings_test.toml";
    std::ofstream(path) << to_toml(settings);
    EXPECT_EQ(resolve(path, {}).train, settings.train) << task;
    EXPECT_EQ(resolve(path, {}).model, settings.model) << task;
  }
}

}  // namespace
}  // namespace sinkhorn
