// Runs of the program from start to end: what it writes, how it goes on after any end, and what it refuses.
#include "tools/train.h"

#include <gtest/gtest.h>
#include <pty.h>
#include <sys/resource.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "models/run_folder.h"
#include "tests/shared.h"
#include "tests/tools/program.h"
#include "tools/checkpoint.h"
#include "tools/compressors.h"
#include "tools/resume.h"
#include "tools/run_log.h"
#include "tools/utf8.h"

namespace sinkhorn {
namespace {

namespace fs = std::filesystem;
using testing::contains;
using testing::content_of;
using testing::Outcome;
using testing::Process;
using testing::run_program;
using testing::TemporaryFolder;
using testing::Words;

/// A folder with a text in it, and a model that makes a step in a millisecond.
class Train : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ofstream text(place.path / "text.txt");
    for (int i = 0; i < 300; ++i) text << "The quick brown fox jumps over " << i << " lazy dogs, naïvely.\n";
  }
  Words command(const Words& more = {}) const {
    return Words{"train",    "--data",
                 "text.txt", "--dim",
                 "16",       "--depth",
                 "1",        "--heads",
                 "2",        "--n-local-attn-heads",
                 "1",        "--bucket-size",
                 "8",        "--seq-len",
                 "16",       "--batch-size",
                 "2",        "--warmup-steps",
                 "2",        "--eval-every",
                 "3",        "--eval-batches",
                 "2",        "--checkpoint-every",
                 "4",        "--log-every",
                 "2",        "--ff-dropout",
                 "0.1",      "--sample-length",
                 "20",       "--steps",
                 "12"} +
           more;
  }
  Outcome run(const Words& words, const testing::Setup& setup = {}) const {
    return run_program(place.path, words, setup);
  }
  /// Exit code and one line on stderr that holds all `parts`; nothing written, not even a folder.
  void expect_refusal(int code, const Words& words, const Words& parts, const testing::Setup& setup = {}) const {
    const auto entries = [&] {
      std::vector<std::string> names;
      for (const auto& entry : fs::recursive_directory_iterator(place.path))
        if (const auto name = entry.path().filename().string(); !name.starts_with(".")) names.push_back(entry.path());
      std::sort(names.begin(), names.end());
      return names;
    };
    const auto before = entries();
    const Outcome got = run(words, setup);
    EXPECT_EQ(got.code, code) << got.out << got.err;
    EXPECT_EQ(std::count(got.err.begin(), got.err.end(), '\n'), 1) << got.err;
    EXPECT_EQ(got.err.rfind("sinkhorn: ", 0), 0u) << got.err;
    for (const auto& part : parts) EXPECT_TRUE(contains(got.err, part)) << part << " is not in: " << got.err;
    EXPECT_EQ(entries(), before);
  }
  fs::path in(const std::string& name) const { return place.path / name; }

  TemporaryFolder place;
};

std::vector<nlohmann::json> log_of(const fs::path& folder) {
  std::istringstream file(content_of(folder / RunLog::name));
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

/// Everything of the log but the times.
std::vector<nlohmann::json> results_of(const fs::path& folder) {
  auto lines = log_of(folder);
  for (auto& line : lines) line.erase("tokens_per_second"), line.erase("ms");
  return lines;
}

std::string last_line(const std::string& text) {
  const auto end = text.find_last_not_of('\n');
  return text.substr(text.rfind('\n', end) + 1, end - text.rfind('\n', end));
}

void expect_equal_runs(const fs::path& one, const fs::path& other, std::int64_t step) {
  const std::string name = RunFolder::step_name(step);
  EXPECT_TRUE(content_of(one / name) == content_of(other / name));
  EXPECT_TRUE(content_of(one / RunFolder::best_name) == content_of(other / RunFolder::best_name));
  EXPECT_EQ(results_of(one), results_of(other));
  EXPECT_EQ(std::int64_t(log_of(one).size()), step);
}

TEST_F(Train, WritesALogCheckpointsASampleAndTheNextCommand) {
  const Outcome got = run(command({"--out", "my runs/one"}));
  ASSERT_EQ(got.code, 0) << got.err;
  EXPECT_EQ(got.err, "");
  for (const char* part :
       {"device ", "no GPU", " parameters", "text.txt", "memory ", "time ", "cost ", "preset cpu-small",
        "step 12/12 | loss ", "ETA", "saved step 8: my runs/one/step-000008.safetensors", "sample"})
    EXPECT_TRUE(contains(got.out, part)) << part << " is not in:\n" << got.out;
  EXPECT_FALSE(contains(got.out, "\r") || contains(got.out, "\x1b")) << "stdout is no terminal";
  EXPECT_FALSE(first_invalid_byte(got.out));
  EXPECT_EQ(last_line(got.out), "next: sinkhorn generate --checkpoint 'my runs/one' --prompt 'The '");

  const auto log = log_of(in("my runs/one"));
  ASSERT_EQ(log.size(), 12u);
  for (std::size_t i = 0; i < log.size(); ++i) {
    EXPECT_EQ(log[i]["step"], i + 1);
    for (const char* field :
         {"loss", "tokens_per_second", "bits_per_character", "learning_rate", "gradient_norm", "ms"})
      EXPECT_TRUE(log[i][field].is_number()) << field;
    EXPECT_EQ(log[i].contains("val_loss"), (i + 1) % 3 == 0) << i;
  }
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(in("my runs/one"))) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names,
            (Words{".lock", "best.safetensors", "log.jsonl", "step-000008.safetensors", "step-000012.safetensors"}));
}

TEST_F(Train, CountsMemoryAheadAndMeasuresItBehind) {
  const Outcome got = run(command({"--out", "run", "--reversible", "--memory"}));
  ASSERT_EQ(got.code, 0) << got.err;
  for (const char* part : {"memory at the fullest moment of a step, ", " residual pair ", "2 x (B, T, D) f32",
                           " in all; ", "for 12 steps of 32 tokens", " counted ahead)"})
    EXPECT_TRUE(contains(got.out, part)) << part << " is not in:\n" << got.out;
  const Outcome kept = run(command({"--out", "other", "--memory"}));
  EXPECT_TRUE(contains(kept.out, "memory   not counted ahead for this kind of model")) << kept.out;
  EXPECT_TRUE(contains(kept.out, " at the fullest moment\n")) << kept.out;
}

TEST_F(Train, CheckpointsSayWhatTheyAre) {
  ASSERT_EQ(run(command({"--out", "run", "--keep", "3"})).code, 0);
  EXPECT_TRUE(fs::exists(in("run/step-000004.safetensors")));
  const safetensors::File file = read_checkpoint(in("run/step-000012.safetensors"));
  for (const char* key : {"format", "format_version", "model", "train", "step", "rng_key", "data", "best", "tokenizer",
                          "build", "device", "digest", "digest.model.norm.weight"})
    EXPECT_TRUE(file.metadata.contains(key)) << key;
  const RunRecord record = read_record(file);
  EXPECT_EQ(record.step, 12);
  EXPECT_EQ(record.model.dim, 16);
  EXPECT_EQ(record.train.steps, 12);
  EXPECT_EQ(record.data_bytes, std::int64_t(fs::file_size(in("text.txt"))));
  EXPECT_EQ(record.tokenizer, Tokenizer::characters(content_of(in("text.txt"))));
}

TEST_F(Train, StandardInputAndBytesWork) {
  const Outcome got = run(command({"--out", "run", "--data", "-", "--vocabulary", "byte"}),
                          {.input = content_of(in("text.txt")) + "\xff"});
  ASSERT_EQ(got.code, 0) << got.err;
  EXPECT_FALSE(first_invalid_byte(got.out)) << "an untrained byte model writes no UTF-8 of its own";
}

TEST_F(Train, ResumingRepeatsAnUninterruptedRunToTheBit) {
  ASSERT_EQ(run(command({"--out", "whole"})).code, 0);
  // Ended after step 4's checkpoint by a kill, which leaves log lines that no checkpoint covers.
  {
    Process part(place.path, command({"--out", "parts"}));
    ASSERT_TRUE(part.wait_for("saved step 4"));
    part.send(SIGKILL);
    part.wait();
  }
  std::ofstream(in("parts/log.jsonl"), std::ios::app) << "{\"step\": 99, \"loss\": 1}\n{\"step\": 1";
  const Outcome got = run({"train", "--out", "parts", "--resume", "--threads", "1"});
  ASSERT_EQ(got.code, 0) << got.err;
  EXPECT_TRUE(contains(got.out, "resumed at step ")) << got.out;
  expect_equal_runs(in("whole"), in("parts"), 12);
}

TEST_F(Train, AModelWithAMemoryResumesToTheBit) {
  const Words memory{"--pkm-layers", "1", "--pkm-num-keys", "5", "--pkm-dim-head", "4", "--pkm-learning-rate", "0.05"};
  ASSERT_EQ(run(command(Words{"--out", "whole"} + memory)).code, 0);
  {
    Process part(place.path, command(Words{"--out", "parts"} + memory));
    ASSERT_TRUE(part.wait_for("saved step 4"));
    part.send(SIGKILL);
    part.wait();
  }
  const Outcome got = run({"train", "--out", "parts", "--resume"});
  ASSERT_EQ(got.code, 0) << got.err;
  expect_equal_runs(in("whole"), in("parts"), 12);
  expect_refusal(2, {"train", "--out", "parts", "--resume", "--pkm-learning-rate", "0.5"},
                 {"pkm_learning_rate: 0.5 here, 0.05 there"});
}

TEST_F(Train, CtrlCSavesAndSaysHowToGoOn) {
  const Words long_run =
      command({"--steps", "1500", "--eval-every", "500", "--checkpoint-every", "500", "--log-every", "1"});
  ASSERT_EQ(run(long_run + Words{"--out", "whole"}).code, 0);
  for (const int signal : {SIGINT, SIGTERM}) {
    const std::string name = "run" + std::to_string(signal);
    Process process(place.path, long_run + Words{"--out", name});
    ASSERT_TRUE(process.wait_for("step 2/"));
    process.send(signal);
    const Outcome got = process.wait();
    ASSERT_EQ(got.code, 130) << got.out << got.err;
    EXPECT_EQ(last_line(got.out), "interrupted; to go on: sinkhorn train --out " + name + " --resume");
    const auto steps = std::int64_t(log_of(in(name)).size());
    EXPECT_LT(steps, 1500);
    EXPECT_TRUE(fs::exists(in(name) / RunFolder::step_name(steps)));
    EXPECT_EQ(run({"generate", "--checkpoint", name, "--length", "5"}).code, 0);
    ASSERT_EQ(run({"train", "--out", name, "--resume"}).code, 0);
    expect_equal_runs(in("whole"), in(name), 1500);
  }
}

TEST_F(Train, KilledAgainAndAgainItStillEndsAsIfNothingHadHappened) {
  const Words long_run = command({"--steps", "600", "--eval-every", "100", "--checkpoint-every", "25"});
  ASSERT_EQ(run(long_run + Words{"--out", "whole"}).code, 0);
  const auto next = [&] {
    return holds_run(in("parts")) ? Words{"train", "--out", "parts", "--resume"} : long_run + Words{"--out", "parts"};
  };
  for (useconds_t time = 20000; time <= 140000; time += 20000) {
    Process process(place.path, next());
    usleep(time);
    process.send(SIGKILL);
    process.wait();
  }
  ASSERT_EQ(run(next()).code, 0);
  expect_equal_runs(in("whole"), in("parts"), 600);
}

TEST_F(Train, ATextThatChangesUnderARunIsAnError) {
  for (const bool shorter : {false, true}) {
    SetUp();
    const std::string name = shorter ? "shorter" : "longer";
    Process process(place.path, command({"--out", name, "--steps", "1000000", "--checkpoint-every", "1"}));
    ASSERT_TRUE(process.wait_for("saved step 2"));
    if (shorter)
      fs::resize_file(in("text.txt"), 100);
    else
      std::ofstream(in("text.txt"), std::ios::app) << "More of it.\n";
    const Outcome got = process.wait();
    EXPECT_EQ(got.code, 3) << got.err;
    EXPECT_TRUE(contains(got.err, std::string("sinkhorn: data: text.txt was ") + (shorter ? "cut" : "written")))
        << got.err;
    const bool breaks_off = got.err.starts_with("\n");  // the line on the terminal, where the read itself failed
    EXPECT_EQ(std::count(got.err.begin(), got.err.end(), '\n'), breaks_off ? 2 : 1) << got.err;
    EXPECT_EQ(run({"generate", "--checkpoint", name, "--length", "5"}).code, 0);
  }
}

// Killed between the best checkpoint and the regular one of the last step.
TEST_F(Train, ACompleteRunGetsItsLastCheckpointBack) {
  ASSERT_EQ(run(command({"--out", "run"})).code, 0);
  const std::string last = content_of(in("run/step-000012.safetensors"));
  if (read_record(read_checkpoint(in("run/best.safetensors"))).step != 12)
    fs::copy_file(in("run/step-000012.safetensors"), in("run/best.safetensors"), fs::copy_options::overwrite_existing);
  fs::remove(in("run/step-000012.safetensors"));
  const Outcome got = run({"train", "--out", "run", "--resume"});
  EXPECT_EQ(got.code, 0) << got.err;
  EXPECT_TRUE(contains(got.out, "this run is complete at step 12")) << got.out;
  EXPECT_EQ(content_of(in("run/step-000012.safetensors")), last);
}

TEST_F(Train, ASecondCtrlCEndsItAtOnce) {
  // A step of so many batches takes a minute, so that the process is still in it.
  Process process(place.path, command({"--out", "run", "--accumulate", "100000"}));
  ASSERT_TRUE(process.wait_for("time "));
  while (!process.ended()) {
    process.send(SIGINT);
    usleep(20000);
  }
  EXPECT_EQ(process.wait().code, 130);
  EXPECT_FALSE(fs::exists(in("run/step-000001.safetensors")));
}

TEST_F(Train, ADamagedNewestCheckpointIsPassedOver) {
  ASSERT_EQ(run(command({"--out", "run"})).code, 0);
  for (const char* name : {"run/step-000012.safetensors", "run/best.safetensors"}) fs::resize_file(in(name), 1000);
  const Outcome got = run({"train", "--out", "run", "--resume"});
  EXPECT_EQ(got.code, 0) << got.err;
  EXPECT_TRUE(contains(got.err, "step-000012.safetensors") && contains(got.err, "best.safetensors")) << got.err;
  EXPECT_TRUE(contains(got.out, "resumed at step 8")) << got.out;
  EXPECT_EQ(log_of(in("run")).size(), 12u);
}

TEST_F(Train, TheBestCheckpointServesWhereItIsTheNewest) {
  ASSERT_EQ(run(command({"--out", "run"})).code, 0);
  fs::remove(in("run/step-000012.safetensors"));
  const auto best = read_record(read_checkpoint(in("run/best.safetensors"))).step;
  ASSERT_GT(best, 8);
  const Outcome got = run({"train", "--out", "run", "--resume", "--steps", "20"});
  EXPECT_EQ(got.code, 0) << got.err;
  EXPECT_TRUE(contains(got.out, "resumed at step " + std::to_string(best))) << got.out;
  EXPECT_EQ(log_of(in("run")).size(), 20u);
}

TEST_F(Train, MoreStepsGoOnFromTheEnd) {
  ASSERT_EQ(run(command({"--out", "run"})).code, 0);
  const Outcome same = run({"train", "--out", "run", "--resume"});
  EXPECT_EQ(same.code, 0);
  EXPECT_TRUE(contains(same.out, "complete at step 12")) << same.out;
  EXPECT_EQ(run({"train", "--out", "run", "--resume", "--steps", "20"}).code, 0);
  EXPECT_EQ(log_of(in("run")).size(), 20u);
}

TEST_F(Train, EndsAtTheFirstEvaluationThatReachesTheTarget) {
  const Outcome got = run(command({"--out", "run", "--target-val-loss", "100"}));
  ASSERT_EQ(got.code, 0) << got.err;
  EXPECT_TRUE(contains(got.out, "reached the target 100 at step 3, ")) << got.out;
  EXPECT_EQ(log_of(in("run")).size(), 3u);
  EXPECT_TRUE(fs::exists(in("run") / RunFolder::step_name(3)));
  const Outcome again = run({"train", "--out", "run", "--resume"});
  EXPECT_TRUE(contains(again.out, "complete at step 3; --target-val-loss 0 would go on")) << again.out;
  EXPECT_EQ(run({"train", "--out", "run", "--resume", "--target-val-loss", "0"}).code, 0);
  EXPECT_EQ(log_of(in("run")).size(), 12u);
  const Outcome missed = run(command({"--out", "other", "--target-val-loss", "0.001"}));
  EXPECT_EQ(missed.code, 0) << missed.err;
  EXPECT_FALSE(contains(missed.out, "reached the target")) << missed.out;
  EXPECT_EQ(log_of(in("other")).size(), 12u);
}

TEST_F(Train, ResumingRefusesOtherSettings) {
  ASSERT_EQ(run(command({"--out", "run"})).code, 0);
  expect_refusal(2, {"train", "--out", "run", "--resume", "--learning-rate", "0.5", "--seed", "7"},
                 {"learning_rate: 0.5 here, 0.002 there", "seed: 7 here, 1 there", "--override"});
  expect_refusal(2, {"train", "--out", "run", "--resume", "--dim", "32"}, {"dim: 32 here, 16 there", "another --out"});
  expect_refusal(2, {"train", "--out", "run", "--resume", "--dim", "32", "--override"}, {"dim: 32 here"});
  const Outcome got =
      run({"train", "--out", "run", "--resume", "--learning-rate", "0.5", "--override", "--steps", "14"});
  EXPECT_EQ(got.code, 0) << got.err;
  EXPECT_EQ(log_of(in("run")).size(), 14u);
}

// The parameters are the same, in however many groups the heads are computed.
TEST_F(Train, ResumingMayComputeTheHeadsInOtherGroups) {
  const Words model{"train", "--reversible", "--heads", "4", "--n-local-attn-heads", "0", "--dim", "16"};
  for (const char* folder : {"run", "whole"})
    ASSERT_EQ(run(model + Words{"--data", "text.txt", "--out", folder, "--depth", "2", "--bucket-size", "8",
                                "--seq-len", "16", "--steps", "4", "--sample-length", "8"})
                  .code,
              0);
  const Words resume = model + Words{"--out", "run", "--resume", "--head-groups", "2"};
  expect_refusal(2, resume, {"head_groups: 2 here, 1 there", "--override"});
  EXPECT_EQ(run({"train", "--out", "whole", "--resume", "--steps", "6"}).code, 0);
  const Outcome got = run(resume + Words{"--override", "--steps", "6"});
  EXPECT_EQ(got.code, 0) << got.err;
  const auto log = log_of(in("run")), whole = log_of(in("whole"));
  ASSERT_EQ(log.size(), 6u);
  EXPECT_NEAR(log[5]["loss"].get<double>(), whole[5]["loss"].get<double>(), 1e-4);
  EXPECT_EQ(load_trained_model(in("run")).record.model.head_groups, 2);
  EXPECT_EQ(run({"generate", "--checkpoint", "run", "--length", "8"}).code, 0);
}

TEST_F(Train, ResumingRefusesOtherData) {
  ASSERT_EQ(run(command({"--out", "run"})).code, 0);
  std::string text = content_of(in("text.txt"));
  std::ofstream(in("foreign.txt")) << text << "ß\n";
  expect_refusal(3, {"train", "--out", "run", "--resume", "--data", "foreign.txt"},
                 {"vocabulary", "step-000012.safetensors"});
  std::swap(text[0], text[1]);
  std::ofstream(in("text.txt")) << text;
  expect_refusal(3, {"train", "--out", "run", "--resume"}, {"text.txt is not the text this run was trained on"});
}

TEST_F(Train, TwoRunsWithoutAFolderGetOneEach) {
  const Words words = command();
  ASSERT_EQ(run(words).code, 0);
  const Outcome second = run(words);
  ASSERT_EQ(second.code, 0) << second.err;
  EXPECT_TRUE(fs::exists(in("runs/cpu-small/best.safetensors")));
  EXPECT_TRUE(fs::exists(in("runs/cpu-small-2/best.safetensors")));
  EXPECT_TRUE(contains(last_line(second.out), "runs/cpu-small-2")) << second.out;
  EXPECT_TRUE(contains(run({"train", "--resume"}).out, "runs/cpu-small-2, resumed at step 12"));
}

TEST_F(Train, UsageAndDeviceErrorsComeBeforeAnythingIsTouched) {
  const Words missing = {"--data", "missing.txt", "--out", "run"};
  expect_refusal(2, Words{"train", "--lerning-rate", "1"} + missing, {"--learning-rate"});
  expect_refusal(2, Words{"train", "--steps", "0"} + missing, {"--steps"});
  expect_refusal(2, Words{"train", "--seq-len", "100", "--bucket-size", "32"} + missing, {"100", "32", "128"});
  std::ofstream(in("wrong.toml")) << "[model]\ndimm = 3\n";
  expect_refusal(2, Words{"train", "--config", "wrong.toml"} + missing, {"wrong.toml:2", "dimm", "dim"});
  expect_refusal(6, Words{"train", "--device", "cuda"} + missing, {"--device cuda", "--device cpu"});
  expect_refusal(6, {"eval", "--device", "cuda", "--checkpoint", "missing"}, {"--device cuda"});
  expect_refusal(6, {"generate", "--device", "cuda", "--checkpoint", "missing"}, {"--device cuda"});
  expect_refusal(2, {"eval"}, {"--checkpoint"});
  expect_refusal(2, {"generate", "--checkpoint", "x", "--prompt", "a", "--prompt-file", "b"}, {"--prompt-file"});
  expect_refusal(2, {"generate", "--checkpoint", "x", "--top-p", "0"}, {"--top-p"});
}

TEST_F(Train, UnusableDataIsRefusedBeforeTheFolderIsTouched) {
  std::ofstream(in("empty.txt")) << "";
  std::ofstream(in("short.txt")) << "too short";
  std::ofstream(in("binary.txt")) << "\xff\xfe" << std::string(1000, 'x');
  const Words to = {"--out", "run"};
  expect_refusal(3, command(to + Words{"--data", "missing.txt"}), {"missing.txt does not exist"});
  expect_refusal(3, command(to + Words{"--data", "empty.txt"}), {"empty.txt is empty"});
  expect_refusal(3, command(to + Words{"--data", "short.txt"}), {"short.txt has 9 tokens", "34"});
  expect_refusal(3, command(to + Words{"--data", "binary.txt"}), {"binary.txt", "byte"});
  expect_refusal(3, command(to + Words{"--data", "."}), {"is a folder"});
  expect_refusal(3, command(to + Words{"--num-tokens", "7"}), {"num_tokens 7", "vocabulary"});
  expect_refusal(3, command(to + Words{"--sample-prompt", "ß"}), {"--sample-prompt", "ß"});
}

TEST_F(Train, UnusableFoldersAreRefused) {
  std::ofstream(in("file")) << "text";
  expect_refusal(3, command({"--out", "file"}), {"file"});
  expect_refusal(3, command({"--out", "file/below"}), {"file"});
  expect_refusal(3, command({"--out", "/proc/run"}), {"/proc/run"});
  expect_refusal(3, {"train", "--out", "nowhere", "--resume"}, {"nothing to resume", "nowhere"});
  ASSERT_EQ(run(command({"--out", "run"})).code, 0);
  expect_refusal(3, command({"--out", "run"}), {"run holds a run", "--resume"});
  const RunFolder mine(in("run"));
  expect_refusal(3, {"train", "--out", "run", "--resume"}, {"in use by process " + std::to_string(getpid())});
}

TEST_F(Train, UnusableCheckpointsAreRefused) {
  ASSERT_EQ(run(command({"--out", "run"})).code, 0);
  const std::string whole = content_of(in("run/best.safetensors"));
  std::ofstream(in("truncated.safetensors")) << whole.substr(0, whole.size() / 2);
  std::ofstream(in("text.safetensors")) << "this is no checkpoint at all";
  std::string damaged = whole;
  damaged[damaged.size() - 5] ^= 1;
  std::ofstream(in("damaged.safetensors")) << damaged;
  safetensors::write(in("foreign.safetensors"), safetensors::with_digests({{"by", "another"}}, {}), {});
  fs::create_directory(in("empty"));
  for (const Words& words : {Words{"generate"}, Words{"eval"}}) {
    for (const char* name : {"truncated", "text", "damaged", "foreign"}) {
      const std::string file = std::string(name) + ".safetensors";
      expect_refusal(3, words + Words{"--checkpoint", file}, {file});
    }
    expect_refusal(3, words + Words{"--checkpoint", "empty"}, {"empty", "no checkpoint"});
    expect_refusal(3, words + Words{"--checkpoint", "missing"}, {"missing"});
  }
  std::ofstream(in("foreign.txt")) << std::string(1000, '#');
  expect_refusal(3, {"eval", "--checkpoint", "run", "--data", "foreign.txt"}, {"'#' (U+0023)", "vocabulary"});
  expect_refusal(3, {"generate", "--checkpoint", "run", "--prompt", "#"}, {"prompt", "'#' (U+0023)"});
}

TEST_F(Train, AFullDiskEndsItAndTheCheckpointsStay) {
  ASSERT_EQ(run(command({"--out", "run"})).code, 0);
  const auto limit = [](rlim_t bytes) {
    return [bytes] {
      const rlimit size{bytes, bytes};
      setrlimit(RLIMIT_FSIZE, &size);
    };
  };
  const Outcome got = run({"train", "--out", "run", "--resume", "--steps", "20"}, {.in_child = limit(20000)});
  EXPECT_EQ(got.code, 3) << got.err;
  EXPECT_TRUE(contains(got.err, "cannot write")) << got.err;
  EXPECT_EQ(run({"train", "--out", "run", "--resume"}).code, 0);
  EXPECT_EQ(log_of(in("run")).size(), 12u);
  for (const auto& entry : fs::directory_iterator(in("run")))
    EXPECT_FALSE(is_temporary(entry.path().filename(), ".safetensors")) << entry.path();
}

TEST_F(Train, TooLittleMemoryIsExitCode4) {
  expect_refusal(4, command({"--out", "run", "--dim", "1048576"}), {"out of memory", "GiB", "lower dim"});
  if (!build_info::sanitizers.empty()) return;  // they need the address space
  expect_refusal(4, command({"--out", "run", "--dim", "2048"}), {"out of memory", "lower"}, {.in_child = [] {
                   const rlimit size{1u << 29, 1u << 29};
                   setrlimit(RLIMIT_AS, &size);
                 }});
}

TEST_F(Train, ANonFiniteLossIsExitCode5AndTheLastGoodCheckpointStays) {
  const Outcome got = run(command({"--out", "run", "--learning-rate", "10", "--min-learning-rate", "10",
                                   "--weight-decay", "1000", "--checkpoint-every", "1", "--steps", "100"}));
  EXPECT_EQ(got.code, 5) << got.out << got.err;
  EXPECT_EQ(std::count(got.err.begin(), got.err.end(), '\n'), 1) << got.err;
  for (const char* part : {"not finite", "op", "parameter", "last good checkpoint is run/step-", "--learning-rate"})
    EXPECT_TRUE(contains(got.err, part)) << part << " is not in: " << got.err;
  const NewestCheckpoint newest = newest_checkpoint(in("run"));
  ASSERT_TRUE(newest.checkpoint);
  EXPECT_TRUE(contains(got.err, newest.checkpoint->path.filename()));
  for (const auto& entry : newest.checkpoint->file.entries)
    for (const float x : safetensors::as_f32(newest.checkpoint->file, entry)) ASSERT_TRUE(std::isfinite(x));
}

TEST_F(Train, GenerateIsAFunctionOfTheSeed) {
  ASSERT_EQ(run(command({"--out", "run"})).code, 0);
  const auto generate = [&](const Words& more, const std::string& input = "") {
    const Outcome got = run(Words{"generate", "--checkpoint", "run", "--length", "30"} + more, {.input = input});
    EXPECT_EQ(got.code, 0) << got.err;
    EXPECT_FALSE(first_invalid_byte(got.out));
    return got.out;
  };
  const std::string text = generate({"--prompt", "The "});
  EXPECT_EQ(text.rfind("The ", 0), 0u) << text;
  EXPECT_EQ(text, generate({"--prompt", "The ", "--threads", "1"}));
  EXPECT_NE(text, generate({"--prompt", "The ", "--seed", "2"}));
  EXPECT_EQ(text, generate({"--prompt-file", "-"}, "The "));
  std::ofstream(in("prompt.txt")) << "The ";
  EXPECT_EQ(text, generate({"--prompt-file", "prompt.txt"}));
  EXPECT_EQ(generate({"--temperature", "0"}), generate({"--top-k", "1", "--seed", "5"}));
  const std::string three = generate({"--samples", "3", "--prompt", "The "});
  EXPECT_TRUE(contains(three, text) && contains(three, "--- sample 3\nThe ")) << three;
  EXPECT_EQ(generate({"--checkpoint", "run/best.safetensors", "--prompt", "The "}), text);
}

TEST_F(Train, EvalMeasuresTheValidationPartOrTheWholeText) {
  ASSERT_EQ(run(command({"--out", "run"})).code, 0);
  const Outcome part = run({"eval", "--checkpoint", "run"});
  EXPECT_EQ(part.code, 0) << part.err;
  for (const char* words : {"step 12", "validation part", "bits per character", "nats"})
    EXPECT_TRUE(contains(part.out, words)) << part.out;
  const Outcome whole = run({"eval", "--checkpoint", "run", "--data", "text.txt", "--whole"});
  EXPECT_TRUE(contains(whole.out, "the whole text")) << whole.out;
  EXPECT_EQ(part.out, run({"eval", "--checkpoint", "run", "--threads", "1"}).out);
  EXPECT_EQ(content_of(in("run/log.jsonl")).find("null"), std::string::npos);
}

TEST_F(Train, AReaderThatGoesAwayDoesNotEndIt) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  close(ends[0]);
  const Outcome got = run(command({"--out", "run"}), {.in_child = [&] { dup2(ends[1], STDOUT_FILENO); }});
  close(ends[1]);
  EXPECT_EQ(got.code, 0) << got.err;
  EXPECT_EQ(log_of(in("run")).size(), 12u);
}

/// What a terminal of some width receives.
std::string on_terminal(const fs::path& folder, Words words, unsigned short columns) {
  const winsize size{.ws_row = 24, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
  words.insert(words.begin(), std::string(build_info::binary_dir) + "/sinkhorn");
  int terminal = -1;
  const pid_t child = forkpty(&terminal, nullptr, nullptr, &size);
  if (child == 0) {
    std::vector<char*> arguments;
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    setenv("TERM", "xterm", 1);
    if (chdir(folder.c_str()) == 0) execv(arguments[0], arguments.data());
    _exit(127);
  }
  std::string text;
  char buffer[4096];
  for (ssize_t count; (count = read(terminal, buffer, sizeof buffer)) > 0;) text.append(buffer, std::size_t(count));
  waitpid(child, nullptr, 0);
  close(terminal);
  return text;
}

TEST_F(Train, ATerminalGetsOneLineThatIsRedrawnWithinItsWidth) {
  const std::string text = on_terminal(place.path, command({"--out", "run", "--steps", "100"}), 40);
  EXPECT_TRUE(contains(text, "\rstep 100/100 | loss ")) << text;
  EXPECT_FALSE(contains(text, "\x1b")) << "no escape codes, with or without NO_COLOR";
  int drawn = 0;
  for (std::size_t at = 0; (at = text.find("\rstep ", at)) != std::string::npos; ++at) {
    const std::string line = text.substr(at + 1, text.find_first_of("\r\n", at + 1) - at - 1);
    if (contains(line, "validation")) continue;
    EXPECT_LT(line.size(), 40u) << line;
    ++drawn;
  }
  EXPECT_GT(drawn, 0);
}

TEST(RunLog, NumbersReadBackToTheSameBits) {
  const LogEntry entry{.step = 7,
                       .loss = 0.1 + 0.2,
                       .bits_per_character = 1e-300,
                       .val_loss = 1.0 / 3,
                       .val_bits_per_character = {},
                       .learning_rate = 5e-324,
                       .gradient_norm = std::numeric_limits<double>::infinity(),
                       .tokens_per_second = 12.34,
                       .milliseconds = 5};
  const auto line = nlohmann::json::parse(to_json(entry));
  EXPECT_EQ(line["step"], 7);
  EXPECT_EQ(line["loss"].get<double>(), entry.loss);
  EXPECT_EQ(line["bits_per_character"].get<double>(), entry.bits_per_character);
  EXPECT_EQ(line["val_loss"].get<double>(), *entry.val_loss);
  EXPECT_EQ(line["learning_rate"].get<double>(), entry.learning_rate);
  EXPECT_TRUE(line["gradient_norm"].is_null());
  EXPECT_FALSE(line.contains("val_bits_per_character"));
}

TEST(TooGood, IsBelowWhatModelsReachOnATextOfThatSize) {
  const std::vector<double> shakespeare = {2.64, 2.94}, enwik8 = {2.3, 2.2};
  EXPECT_TRUE(too_good(1.56, shakespeare, 1'115'394));  // what a leak made of it
  EXPECT_FALSE(too_good(2.12, shakespeare, 1'115'394));
  EXPECT_FALSE(too_good(0.97, enwik8, 100'000'000));
  EXPECT_TRUE(too_good(0.8, enwik8, 100'000'000));
  EXPECT_TRUE(too_good(1.2, {3, 2.1}, 10'000'000));
  EXPECT_FALSE(too_good(1.3, {3, 2.1}, 10'000'000));
  EXPECT_FALSE(too_good(1.2, {3, 2.1}, 10'000'001));
  EXPECT_FALSE(too_good(0.1, {1.9, 2.4}, 1000)) << "text that compresses so well is no prose";
  EXPECT_FALSE(too_good(0.1, {}, 1000));
}

// Every character stands once in a period, so compressors make nothing of the validation part, which is one period; but
// the training part holds the same nine times.
TEST_F(Train, WarnsWhereTheLossIsTooGood) {
  if (compressed_sizes("text").empty()) GTEST_SKIP() << "neither bzip2 nor xz is here";
  std::string period;
  for (int i = 0; i < 200; ++i) append_utf8(period, char32_t(0x4E00 + i * 73 % 200));
  std::ofstream text(in("text.txt"), std::ios::trunc);
  for (int i = 0; i < 10; ++i) text << period;
  text.close();
  const Outcome got = run(command({"--out", "out", "--steps", "300", "--learning-rate", "1e-2", "--eval-every", "50"}));
  ASSERT_EQ(got.code, 0) << got.err;
  const auto at = got.out.find("warning: too good to be true");
  ASSERT_NE(at, std::string::npos) << got.out;
  EXPECT_TRUE(contains(got.out, "to find out: sinkhorn leak-check --checkpoint out\n")) << got.out;
  EXPECT_EQ(got.out.find("warning: too good to be true", at + 1), std::string::npos) << "once is enough";
  const Outcome check = run({"leak-check", "--checkpoint", "out"});
  EXPECT_EQ(check.code, 0) << check.out << check.err;
}

}  // namespace
}  // namespace sinkhorn
