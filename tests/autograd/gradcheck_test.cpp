// One test per op of AllOps: the gradient checker's list is the list the tape accepts.
#include "autograd/gradcheck.h"

#include <gtest/gtest.h>

namespace sinkhorn {
namespace {

class GradientOf : public testing::TestWithParam<OpCheck> {};

TEST_P(GradientOf, AgreesWithCentralDifferences) {
  const std::vector<CaseResult> results = GetParam().run();
  EXPECT_FALSE(results.empty()) << GetParam().name << " has no gradient cases";
  for (const CaseResult& result : results)
    EXPECT_TRUE(result.passed) << GetParam().name << ", " << result.label << ": " << result.report.worst << " at "
                               << result.report.where;
}

INSTANTIATE_TEST_SUITE_P(AllOps, GradientOf, testing::ValuesIn(all_op_checks()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace sinkhorn
