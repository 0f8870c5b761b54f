// `sinkhorn gradcheck`: its lines, its JSON, and the name it does not know.
#include "tools/gradcheck.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "autograd/gradcheck.h"
#include "notebooks/kit/drawing.h"
#include "tools/planted_gradients.h"

namespace sinkhorn {
namespace {

TEST(Gradcheck, PrintsALinePerOp) {
  std::ostringstream out;
  EXPECT_EQ(gradcheck({"softmax", false}, out), 0);
  const std::string line = out.str();
  EXPECT_EQ(line.rfind("softmax ", 0), 0u) << line;
  EXPECT_EQ(line.find('\n'), line.size() - 1) << line;
  EXPECT_NE(line.find("cases"), std::string::npos) << line;
  EXPECT_NE(line.find("  ok\n"), std::string::npos) << line;
}

TEST(Gradcheck, PrintsJsonOfEveryOp) {
  std::ostringstream out;
  EXPECT_EQ(gradcheck({"", true}, out), 0);
  const auto list = nlohmann::json::parse(out.str());
  const std::vector<OpCheck> checks = all_op_checks();
  ASSERT_EQ(list.size(), checks.size());
  for (std::size_t i = 0; i < checks.size(); ++i) {
    EXPECT_EQ(list[i].at("op").get<std::string>(), checks[i].name);
    EXPECT_GT(list[i].at("cases").get<int>(), 0);
    EXPECT_LE(list[i].at("worst_relative_error").get<double>(), kGradientTolerance);
    EXPECT_TRUE(list[i].at("passed").get<bool>());
    EXPECT_TRUE(list[i].at("failures").empty());
  }
}

TEST(Gradcheck, NamesTheNearestOp) {
  std::ostringstream out;
  try {
    gradcheck({"sofmax", false}, out);
    FAIL() << "no error";
  } catch (const UsageError& error) {
    const std::string message = error.what();
    for (const char* part : {"sofmax", "did you mean softmax?", "matmul"})
      EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  EXPECT_EQ(out.str(), "");
}

std::string shown(const std::string& plant, int code) {
  std::ostringstream out;
  EXPECT_EQ(gradcheck({.plant = plant}, out), code) << plant;
  return out.str();
}

TEST(Gradcheck, ShowsWhatTheMicroscopeFindsOfEveryPlant) {
  // What is said first of each; an empty cause is one that must not be claimed.
  const std::map<std::string, std::string> causes = {{"factor", "factor"},
                                                     {"sign", "sign"},
                                                     {"transposed", "transposed"},
                                                     {"missing-sum", "missing-sum"},
                                                     {"last-slice", "missing-sum"},
                                                     {"rotated", "rotated"},
                                                     {"reversed", "reversed"},
                                                     {"half", "factor"},
                                                     {"swapped", "swapped"},
                                                     {"missing-term", "missing-term"},
                                                     {"incoming", "ignores-incoming"},
                                                     {"no-flow", "no-flow"},
                                                     {"last-element", "part"},
                                                     {"offset", "offset"},
                                                     {"nan", "not-finite"},
                                                     {"shape", "not-stretched"},
                                                     {"throws", "failed"},
                                                     {"random", ""}};
  EXPECT_EQ(planted_gradients().size(), causes.size() + 1);  // and none
  for (const PlantedGradient& planted : planted_gradients()) {
    if (planted.name == "none") continue;
    std::ostringstream out;
    EXPECT_EQ(gradcheck({.json = true, .plant = planted.name}, out), 1) << planted.name;
    const auto failure = nlohmann::json::parse(out.str()).at(0).at("failures").at(0);
    const std::string& expected = causes.at(planted.name);
    if (expected.empty()) {
      EXPECT_TRUE(failure.at("cause").is_null()) << failure;
      EXPECT_TRUE(failure.at("evidence").is_null()) << failure;
      EXPECT_NE(shown(planted.name, 1).find("none of those that were tried"), std::string::npos);
      continue;
    }
    EXPECT_EQ(failure.at("cause").get<std::string>(), expected) << failure;
    EXPECT_GT(failure.at("evidence").get<std::string>().size(), 20u);
    const std::string text = shown(planted.name, 1);
    EXPECT_NE(text.find("likely cause"), std::string::npos) << text;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) EXPECT_LE(drawing::width(line), 80) << line;
    EXPECT_EQ(text.find('\x1b'), std::string::npos);
  }
  EXPECT_NE(shown("none", 0).find("  ok\n"), std::string::npos);
}

TEST(Gradcheck, NamesThePlantsThereAre) {
  std::ostringstream out;
  for (const GradcheckOptions& options : {GradcheckOptions{.plant = "factr"}, {.op = "softmax", .plant = "factor"}}) {
    try {
      gradcheck(options, out);
      FAIL() << "no error";
    } catch (const UsageError& error) {
      const std::string message = error.what();
      for (const char* part : {"gradcheck: ", options.op.empty() ? "did you mean factor?" : "excludes --op"})
        EXPECT_NE(message.find(part), std::string::npos) << message;
    }
  }
  EXPECT_EQ(out.str(), "");
}

}  // namespace
}  // namespace sinkhorn
