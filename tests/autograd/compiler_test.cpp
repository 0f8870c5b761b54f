// Mistakes of compilers that this build works around: each shows here first, if the way around is lost.
#include <gtest/gtest.h>

#include <vector>

namespace {

#if defined(__GNUC__) && !defined(__clang__)
#define OPTIMISED __attribute__((noinline, optimize("O3")))
#else
#define OPTIMISED
#endif

// g++ 12 with 512-bit moves makes all ones of these; see SINKHORN_NATIVE in CMakeLists.txt.
OPTIMISED std::vector<double> ones_and_a_zero() { return {1, 1, 1, 0}; }
OPTIMISED std::vector<float> every_second() { return {1, 0, 1, 0, 0, 0, 0, 0}; }

TEST(Compiler, ShortConstantListsAreWhatTheSourceSays) {
  double sum = 0;
  for (const double x : ones_and_a_zero()) sum += x;
  for (const float x : every_second()) sum += x;
  EXPECT_EQ(sum, 3 + 2);
}

}  // namespace
