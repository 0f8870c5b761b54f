// Every example under models/examples runs, with its sizes divided by 8, and prints what it should.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <regex>

#include "tests/shared.h"
#include "tests/tools/program.h"

namespace sinkhorn::testing {
namespace {

namespace fs = std::filesystem;

fs::path folder() { return fs::path(build_info::source_dir) / "models" / "examples"; }

/// What an example prints at an eighth of its sizes, as a regular expression.
const std::map<std::string, std::string> expected = {
    {"language_model", R"(logits \(1, 256, 2500\)\n)"},
    {"transformer", R"(out \(1, 256, 128\), gradient of x \(1, 256, 128\)\n)"},
    {"encoder_decoder", R"(loss [78]\.\d+ over 511 tokens\n)"},
    {"autopadding", R"(right \(1, 139, 2500\), left \(1, 139, 2500\)\n)"},
    {"simple_sort_net", R"(logits \(1, 256, 2500\)\n)"},
    {"product_keys", R"(step 1 loss [78]\.\d+\nstep 2 loss [5-7]\.\d+\n)"},
    {"autoregressive_training", R"(loss [78]\.\d+ over \d+ tokens\ngenerated 20 tokens\n)"},
};

TEST(Examples, EachOneIsListedHere) {
  std::size_t found = 0;
  for (const auto& entry : fs::directory_iterator(folder())) {
    if (entry.path().extension() != ".cpp") continue;
    EXPECT_TRUE(expected.contains(entry.path().stem())) << entry.path();
    ++found;
  }
  EXPECT_EQ(found, expected.size());
}

class Example : public ::testing::TestWithParam<std::string> {
 protected:
  Outcome run(std::vector<std::string> arguments) const {
    const TemporaryFolder folder;
    return run_program(folder.path, std::move(arguments), {.program = "examples/" + GetParam()});
  }
};

TEST_P(Example, RunsAtAnEighthOfItsSize) {
  const Outcome outcome = run({"8"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(std::regex_match(outcome.out, std::regex(expected.at(GetParam())))) << outcome.out;
}

TEST_P(Example, RefusesAWrongDivisor) {
  for (const char* divisor : {"0", "x", "8x", "1000"}) {
    const Outcome outcome = run({divisor});
    EXPECT_EQ(outcome.code, 2) << divisor;
    EXPECT_TRUE(contains(outcome.err, "usage: ")) << outcome.err;
  }
}

INSTANTIATE_TEST_SUITE_P(Of, Example, ::testing::ValuesIn([] {
                           std::vector<std::string> names;
                           names.reserve(expected.size());
                           for (const auto& [name, output] : expected) names.push_back(name);
                           return names;
                         }()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace sinkhorn::testing
