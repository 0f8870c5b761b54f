// `sinkhorn gradcheck`: its lines, its JSON, and the name it does not know.
#include "tools/gradcheck.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "autograd/gradcheck.h"

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

}  // namespace
}  // namespace sinkhorn
