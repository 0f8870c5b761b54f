// Mistakes of compilers that this build works around: each shows here first, if the way around is lost.
#include <gtest/gtest.h>

#include <vector>

namespace {

// g++ 12 with 512-bit moves makes all ones of these at -O3, which this file alone of the tests is compiled with; see
// SINKHORN_NATIVE in CMakeLists.txt.
[[gnu::noinline]] std::vector<double> ones_and_a_zero() { return {1, 1, 1, 0}; }
[[gnu::noinline]] std::vector<float> every_second() { return {1, 0, 1, 0, 0, 0, 0, 0}; }

TEST(Compiler, ShortConstantListsAreWhatTheSourceSays) {
  double sum = 0;
  for (const double x : ones_and_a_zero()) sum += x;
  for (const float x : every_second()) sum += x;
  EXPECT_EQ(sum, 3 + 2);
}

}  // namespace
