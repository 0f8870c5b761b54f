// The program on a GPU, as processes: repeated and resumed runs, checkpoints that change the device, memory that ends.
// The program does not know the emulated grid, so without a GPU there is nothing to run.
#include "tests/tools/program.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "models/run_folder.h"
#include "tests/cuda/agreement.h"
#include "tests/shared.h"
#include "tools/run_log.h"

namespace sinkhorn {
namespace {

using testing::contains;
using testing::content_of;
using testing::Outcome;
using testing::run_program;
using testing::Words;

/// A text, and a model with all that draws or picks: dropouts, local, sorting and rotated heads, a reversible chain.
class DeviceProgram : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda::probe().devices.empty()) GTEST_SKIP() << "no GPU: " << cuda::probe().reason;
    std::ofstream text(place.path / "text.txt");
    for (int i = 0; i < 4000; ++i)
      text << "The quick brown fox jumps over " << i * i % 8191 << " lazy dogs, naively.\n";
  }
  static Words command(const std::string& out, const Words& more = {}) {
    return Words{"train",
                 "--data",
                 "text.txt",
                 "--out",
                 out,
                 "--device",
                 "cuda",
                 "--dim",
                 "128",
                 "--depth",
                 "2",
                 "--heads",
                 "4",
                 "--dim-head",
                 "64",
                 "--reversible",
                 "--n-local-attn-heads",
                 "2",
                 "--bucket-size",
                 "64",
                 "--seq-len",
                 "256",
                 "--batch-size",
                 "4",
                 "--attn-dropout",
                 "0.1",
                 "--ff-dropout",
                 "0.1",
                 "--emb-dropout",
                 "0.1",
                 "--steps",
                 "200",
                 "--eval-every",
                 "100",
                 "--eval-batches",
                 "2",
                 "--checkpoint-every",
                 "100",
                 "--sample-length",
                 "0",
                 "--keep",
                 "5",
                 "--log-every",
                 "100"} +
           more;
  }
  Outcome run(const Words& words) const {
    Outcome got = run_program(place.path, words);
    EXPECT_EQ(got.code, 0) << got.out << got.err;
    return got;
  }
  std::string checkpoint(const std::string& folder, std::int64_t step) const {
    return content_of(place.path / folder / RunFolder::step_name(step));
  }
  /// Losses of all steps.
  std::vector<double> losses(const std::string& folder) const {
    std::istringstream log(content_of(place.path / folder / RunLog::name));
    std::vector<double> result;
    for (std::string line; std::getline(log, line);) result.push_back(nlohmann::json::parse(line)["loss"]);
    return result;
  }
  /// Cuts a run off behind step 100, as a kill there leaves it.
  void forget_after_100(const std::string& folder) const {
    std::filesystem::remove(place.path / folder / RunFolder::step_name(200));
    std::filesystem::remove(place.path / folder / RunFolder::best_name);
  }

  testing::TemporaryFolder place;
};

TEST_F(DeviceProgram, ThreeRunsAndAResumedOneAreTheSameBits) {
  for (const Words& how : {Words{"--precision", "f32"}, Words{"--precision", "bf16"}}) {
    const std::string& name = how[1];
    for (const char* run_name : {"1", "2", "3"}) run(command(name + run_name, how));
    const std::string first = checkpoint(name + "1", 200);
    ASSERT_FALSE(first.empty());
    EXPECT_TRUE(first == checkpoint(name + "2", 200)) << name << ": the second run differs";
    EXPECT_TRUE(first == checkpoint(name + "3", 200)) << name << ": the third run differs";
    EXPECT_EQ(losses(name + "1"), losses(name + "2"));

    forget_after_100(name + "3");
    const Outcome resumed = run({"train", "--resume", "--out", name + "3", "--device", "cuda"});
    EXPECT_TRUE(contains(resumed.out, "resumed at step 100")) << resumed.out;
    EXPECT_TRUE(first == checkpoint(name + "3", 200)) << name << ": the resumed run differs";
    EXPECT_EQ(losses(name + "1"), losses(name + "3"));
  }
}

TEST_F(DeviceProgram, ACheckpointGoesOnOnTheOtherDevice) {
  run(command("gpu", {"--steps", "200"}));
  run(command("gpu-then-cpu"));
  forget_after_100("gpu-then-cpu");
  const Outcome there = run({"train", "--resume", "--out", "gpu-then-cpu", "--device", "cpu", "--steps", "120"});
  EXPECT_TRUE(contains(there.out, "resumed at step 100")) << there.out;
  run(command("cpu", {"--device", "cpu", "--steps", "100"}));
  run({"train", "--resume", "--out", "cpu", "--device", "cuda", "--steps", "200"});

  const std::vector<double> gpu = losses("gpu"), moved = losses("gpu-then-cpu"), back = losses("cpu");
  ASSERT_EQ(moved.size(), 120u);
  ASSERT_EQ(back.size(), 200u);
  EXPECT_NEAR(moved[100], gpu[100], 1e-4 * gpu[100]) << "the first step on the other device is the same step";
  EXPECT_NEAR(back[0], gpu[0], 1e-4 * gpu[0]);
  // Then rounding grows from step to step, and what stays near is the curve.
  const auto mean = [](const std::vector<double>& x, std::ptrdiff_t begin) {
    return std::accumulate(x.begin() + begin, x.begin() + begin + 20, 0.0) / 20;
  };
  EXPECT_NEAR(mean(moved, 100), mean(gpu, 100), 0.1 * mean(gpu, 100));
  for (const std::ptrdiff_t begin : {80, 100, 180})
    EXPECT_NEAR(mean(back, begin), mean(gpu, begin), 0.1 * mean(gpu, begin)) << begin;
  EXPECT_LT(mean(back, 180), mean(back, 80)) << "it went on learning";
  // Either device reads the other's checkpoint, and sees the same loss.
  for (const char* folder : {"cpu", "gpu"}) {
    const std::string file = std::string(folder) + "/" + RunFolder::step_name(folder[0] == 'c' ? 100 : 200);
    const auto loss = [&](const char* device) {
      const std::string out = run({"eval", "--checkpoint", file, "--device", device}).out;
      const std::size_t at = out.find("loss        ");
      EXPECT_NE(at, std::string::npos) << out;
      return std::stod(out.substr(at + 12));
    };
    EXPECT_NEAR(loss("cpu"), loss("cuda"), 2e-4) << file;
  }
}

TEST_F(DeviceProgram, MemoryThatEndsIsExitCode4AndTheCheckpointStays) {
  run(command("run", {"--steps", "100"}));
  const std::string before = checkpoint("run", 100), best = content_of(place.path / "run" / RunFolder::best_name);
  ASSERT_FALSE(before.empty());
  // 33 million tokens: each activation of 128 floats takes 16 GiB.
  const Words too_much{"--batch-size", "131072"};
  const Outcome fresh = run_program(place.path, command("fresh", too_much));
  const Outcome resumed = run_program(
      place.path,
      Words{"train", "--resume", "--override", "--out", "run", "--device", "cuda", "--steps", "200"} + too_much);
  for (const Outcome& got : {fresh, resumed}) {
    EXPECT_EQ(got.code, 4) << got.out << got.err;
    EXPECT_EQ(std::count(got.err.begin(), got.err.end(), '\n'), 1) << got.err;
    for (const char* part : {"sinkhorn: ", "out of memory on device cuda", "bytes asked", "in use", "batch_size"})
      EXPECT_TRUE(contains(got.err, part)) << part << " is not in: " << got.err;
  }
  std::printf("out of memory says: %s", resumed.err.c_str());
  EXPECT_TRUE(before == checkpoint("run", 100));
  EXPECT_TRUE(best == content_of(place.path / "run" / RunFolder::best_name));
  EXPECT_TRUE(contains(run({"eval", "--checkpoint", "run", "--device", "cuda"}).out, "step 100"));
  run({"train", "--resume", "--out", "run", "--device", "cuda", "--steps", "110"});
  EXPECT_EQ(losses("run").size(), 110u);
}

}  // namespace
}  // namespace sinkhorn
