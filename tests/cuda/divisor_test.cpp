// Division by a multiplication, against division.
#include "cuda/divisor.h"

#include <gtest/gtest.h>

#include <initializer_list>
#include <limits>

#include "autograd/rng.h"

namespace sinkhorn {
namespace {

TEST(Divisor, DividesAsDivisionDoes) {
  constexpr int most = std::numeric_limits<int>::max();
  const auto expect_agrees = [](int x, int by) { EXPECT_EQ(x / cuda::Divisor(by), x / by) << x << " / " << by; };
  for (const int by :
       {1, 2, 3, 5, 7, 8, 32, 75, 127, 128, 641, 4096, 65535, 65537, 1 << 30, (1 << 30) + 1, most - 1, most})
    for (const int x : {0, 1, by - 1, by, most / by * by - 1, most / by * by, most - 1, most}) expect_agrees(x, by);
  EXPECT_EQ(0 / cuda::Divisor(0), 0);
  EXPECT_EQ(cuda::Divisor(0).value(), 1);
  const RandomBits bits = Rng(1).bits();
  for (std::uint64_t i = 0; i < 200000; i += 2)  // of all magnitudes
    expect_agrees(int(bits.word(i) >> 1), int(bits.word(i + 1) >> (1 + i / 2 % 31)) | 1);
}

}  // namespace
}  // namespace sinkhorn
