// The progress line: what it says, and what it leaves out on a narrow terminal; figures of compressors; pasted
// commands.
#include "tools/progress.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <sstream>

#include "tools/compressors.h"
#include "tools/hint.h"

namespace sinkhorn {
namespace {

constexpr StepReport report{.step = 120,
                            .steps = 600,
                            .loss = 2.3014,
                            .bits_per_character = 3.32,
                            .gradient_norm = 0.871,
                            .learning_rate = 1.9e-3,
                            .milliseconds = 210.4,
                            .tokens_per_second = 9751.2};

TEST(Progress, LeavesOutWhatDoesNotFit) {
  const std::string all =
      "step 120/600 | loss 2.301 | 3.32 bits/char | norm 0.87 | lr 1.9e-03 | 210 ms | 9,751 tok/s | ETA 1:41";
  EXPECT_EQ(progress_line(report, 101, 200), all);
  EXPECT_EQ(progress_line(report, 101, int(all.size())), all);
  EXPECT_EQ(progress_line(report, 101, 80),
            "step 120/600 | loss 2.301 | 3.32 bits/char | norm 0.87 | 9,751 tok/s | ETA 1:41");
  EXPECT_EQ(progress_line(report, 101, 40), "step 120/600 | loss 2.301 | ETA 1:41");
  EXPECT_EQ(progress_line(report, -1, 40), "step 120/600 | loss 2.301");
  EXPECT_EQ(progress_line(report, 101, 6), "step 1");
  for (int columns = 0; columns < 120; ++columns) EXPECT_LE(int(progress_line(report, 101, columns).size()), columns);
}

TEST(Progress, PlainLinesComeEveryFewSteps) {
  std::ostringstream out;
  Progress progress(out, 0, 50, 100);
  for (StepReport step = report; step.step <= 200; ++step.step) {
    if (step.step <= 100) continue;
    progress.report(step);
  }
  const std::string text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos);
}

TEST(Progress, Durations) {
  EXPECT_EQ(duration(0.4), "0:00");
  EXPECT_EQ(duration(65), "1:05");
  EXPECT_EQ(duration(2 * 3600 + 3 * 60 + 4), "2:03:04");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(1115394), "1,115,394");
  EXPECT_EQ(grouped(-1000), "-1,000");
}

TEST(Compressors, MeasureTheTextAndDoWithout) {
  const std::string text(100000, 'x');
  for (const auto& size : compressed_sizes(text)) {
    EXPECT_GT(size.bits, 100) << size.program;
    EXPECT_LT(size.bits, 10000) << size.program;
  }
  EXPECT_FALSE(compressed_bytes("no-such-program", text));
  EXPECT_FALSE(compressed_bytes("false", text));
}

TEST(Hint, CommandsCanBePasted) {
  setenv("SINKHORN_PROGRAM", "./run", 1);
  EXPECT_EQ(hint({"train", "--out", "runs/a-1"}), "./run train --out runs/a-1");
  EXPECT_EQ(hint({"generate", "--prompt", "it's"}), "./run generate --prompt 'it'\\''s'");
  EXPECT_EQ(hint({""}), "./run ''");
  unsetenv("SINKHORN_PROGRAM");
  EXPECT_EQ(hint({}), "sinkhorn");
}

}  // namespace
}  // namespace sinkhorn
