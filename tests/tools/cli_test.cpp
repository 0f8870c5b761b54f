// The command line as a user meets it: exit codes, one-line errors, help, and settings with their origins.
#include "tools/cli.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "autograd/error.h"
#include "tools/settings.h"

namespace sinkhorn {
namespace {

struct Result {
  int code;
  std::string out, err;
};

Result sinkhorn_with(const std::vector<std::string>& arguments) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int code = run(arguments);
  std::string out = testing::internal::GetCapturedStdout(), err = testing::internal::GetCapturedStderr();
  return {code, out, err};
}

/// A refusal is exit code 2, nothing on stdout, and exactly one line on stderr that holds every one of `parts`.
void expect_usage_error(const std::vector<std::string>& arguments, const std::vector<std::string>& parts) {
  const Result result = sinkhorn_with(arguments);
  EXPECT_EQ(result.code, 2) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_EQ(result.err.rfind("sinkhorn: ", 0), 0u) << result.err;
  for (const auto& part : parts)
    EXPECT_NE(result.err.find(part), std::string::npos) << part << " is not in " << result.err;
}

std::string temporary_file(const std::string& text) {
  std::string path = testing::TempDir() + "cli_test.toml";
  std::ofstream(path) << text;
  return path;
}

TEST(Cli, HelpAndVersion) {
  const Result help = sinkhorn_with({"--help"});
  EXPECT_EQ(help.code, 0);
  for (const char* part : {"train", "doctor", "Examples", "Exit codes"})
    EXPECT_NE(help.out.find(part), std::string::npos) << part;
  EXPECT_EQ(help.err, "");
  const Result version = sinkhorn_with({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_EQ(version.out.rfind("sinkhorn ", 0), 0u) << version.out;
}

TEST(Cli, EveryOptionIsAFlagWithHelp) {
  const Result help = sinkhorn_with({"train", "--help"});
  EXPECT_EQ(help.code, 0);
  Settings settings;
  for (const auto& field : settings.all_fields()) {
    EXPECT_NE(help.out.find(flag_of(field.name)), std::string::npos) << field.name;
    EXPECT_FALSE(field.help.empty()) << field.name;
  }
  for (const char* part : {"Examples", "cpu-small", "shakespeare", "enwik8"})
    EXPECT_NE(help.out.find(part), std::string::npos) << part;
}

TEST(Cli, WrongWordsNameTheNearestOne) {
  expect_usage_error({}, {"a command is required"});
  expect_usage_error({"trian"}, {"unknown command \"trian\"", "did you mean train?"});
  expect_usage_error({"train", "--stpes", "10"}, {"unknown flag \"--stpes\"", "did you mean --steps?"});
  expect_usage_error({"train", "--lerning-rate=1"}, {"--learning-rate"});
  expect_usage_error({"train", "surplus"}, {"unknown argument \"surplus\""});
  expect_usage_error({"--frobnicate"}, {"unknown flag \"--frobnicate\""});
  expect_usage_error({"train", "--steps"}, {"--steps"});
}

TEST(Cli, WrongValuesSayWhatIsExpected) {
  expect_usage_error({"train", "--steps", "-1"}, {"--steps", "a whole number of at least 1", "-1"});
  expect_usage_error({"train", "--steps", "1e3"}, {"a whole number"});
  expect_usage_error({"train", "--steps", "99999999999999999999"}, {"a whole number"});
  expect_usage_error({"train", "--learning-rate", "nan"}, {"--learning-rate", "nan"});
  expect_usage_error({"train", "--ff-dropout", "1"}, {"from 0 and below 1"});
  expect_usage_error({"train", "--device", "tpu"}, {"auto, cpu, cuda", "tpu"});
  expect_usage_error({"train", "--reversible=maybe"}, {"true or false"});
  expect_usage_error({"train", "--pkm-layers", "1,two"}, {"whole numbers"});
  expect_usage_error({"train", "--preset", "huge"}, {"cpu-small", "huge"});
  expect_usage_error({"train", "--bucket-size", "32", "--seq-len", "250"},
                     {"250", "multiple of bucket_size 32", "256"});
  expect_usage_error({"train", "--config", "/nonexistent.toml"}, {"/nonexistent.toml", "does not exist"});
  expect_usage_error({"train", "--n-sortcut", "2"}, {"n_sortcut", "causal"});
}

TEST(Cli, PrintedConfigNamesOriginsAndReadsBack) {
  const std::string path = temporary_file("[model]\ndim = 64\n[train]\nlearning_rate = 0.0012345678901234567\n");
  const std::vector<std::string> arguments = {
      "train",       "--config", path,           "--preset", "shakespeare",     "--heads",     "4",
      "--no-causal", "--causal", "--pkm-layers", "1,3",      "--sample-prompt", "\"\\ \n\x7f", "--print-config"};
  const Result first = sinkhorn_with(arguments);
  ASSERT_EQ(first.code, 0) << first.err;
  const auto has_line = [&](const std::string& begin, const std::string& end) {
    std::istringstream lines(first.out);
    for (std::string line; std::getline(lines, line);)
      if (line.rfind(begin + " ", 0) == 0 && line.ends_with("# " + end)) return true;
    return false;
  };
  EXPECT_TRUE(has_line("dim = 64", path + ":2")) << first.out;
  EXPECT_TRUE(has_line("learning_rate = 0.0012345678901234567", path + ":4")) << first.out;
  EXPECT_TRUE(has_line("heads = 4", "flag --heads")) << first.out;
  EXPECT_TRUE(has_line("causal = true", "flag --causal")) << first.out;
  EXPECT_TRUE(has_line("pkm_layers = [1,3]", "flag --pkm-layers")) << first.out;
  EXPECT_TRUE(has_line("depth = 6", "preset shakespeare")) << first.out;
  EXPECT_TRUE(has_line("preset = \"shakespeare\"", "flag --preset")) << first.out;
  EXPECT_TRUE(has_line("temperature = 0.75", "default")) << first.out;
  EXPECT_TRUE(has_line("# dim_head = none", "default")) << first.out;

  const Result second = sinkhorn_with({"train", "--config", temporary_file(first.out), "--print-config"});
  ASSERT_EQ(second.code, 0) << second.err;
  const auto values = [](const std::string& toml) {
    Settings settings;
    settings.read_toml(toml, "printed");
    return std::pair(settings.model, settings.train);
  };
  EXPECT_EQ(values(first.out), values(second.out));
  EXPECT_EQ(values(first.out).second.sample_prompt, "\"\\ \n\x7f");
}

TEST(Cli, FailuresHaveTheirExitCodes) {
  const auto code_of = [](auto error) { return describe_failure(std::make_exception_ptr(error)).exit_code; };
  EXPECT_EQ(code_of(std::runtime_error("x")), 1);
  EXPECT_EQ(code_of(Error("x")), 1);
  EXPECT_EQ(code_of(UsageError("x")), 2);
  EXPECT_EQ(code_of(DataError("x")), 3);
  EXPECT_EQ(code_of(OutOfMemory("x")), 4);
  EXPECT_EQ(code_of(std::bad_alloc()), 4);
  EXPECT_EQ(code_of(NonFinite("x")), 5);
  EXPECT_EQ(code_of(DeviceError("x")), 6);
  EXPECT_EQ(code_of(7), 1);
  EXPECT_EQ(describe_failure(std::make_exception_ptr(Error("a\nb\x1b[31m"))).line, "a; b?[31m");
}

}  // namespace
}  // namespace sinkhorn
