// Product keys: the picks are those of a search through every sum, whatever ties and rounding do.
#include "autograd/ops/product_keys.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

#include "tests/autograd/expect.h"
#include "tests/cuda/agreement.h"

namespace sinkhorn {
namespace {

using Picks = std::vector<std::int32_t>;

Picks picks_of(const ProductKeys& found) {
  const Tensor here = found.picks.to(Device::cpu);
  const auto picks = here.span<std::int32_t>();
  return {picks.begin(), picks.end()};
}

// All keys^2 sums of each row in Real<T>, sorted: the largest first, the lowest slot among equals.
template <class T>
Picks search_of_all(const Tensor& scores, std::int64_t n) {
  using R = Real<T>;
  const std::int64_t keys = scores.shape()[-1], rows = scores.count() / 2 / keys;
  const T* const s = scores.data<T>();
  Picks all;
  for (std::int64_t r = 0; r < rows; ++r) {
    std::vector<R> sums;
    for (std::int64_t i = 0; i < keys; ++i)
      for (std::int64_t j = 0; j < keys; ++j) {
        const R sum = R(s[r * keys + i]) + R(s[(rows + r) * keys + j]);
        sums.push_back(std::isnan(sum) ? -std::numeric_limits<R>::infinity() : sum);
      }
    Picks order(sums.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return sums[a] > sums[b]; });
    all.insert(all.end(), order.begin(), order.begin() + std::min(n, keys));
  }
  return all;
}

Picks search_of_all(const Tensor& scores, std::int64_t n) {
  Picks picks;
  dispatch(scores, [&]<class T>(auto) { picks = search_of_all<T>(scores, n); });
  return picks;
}

// Ways to draw scores (2, rows, keys) in f64.
Tensor smooth(const Shape& shape, std::uint64_t seed) { return uniform(Rng(seed), shape, -3, 3, DType::f64); }
Tensor mapped(const Shape& shape, std::uint64_t seed, const std::vector<double>& first,
              const std::vector<double>& second) {
  Tensor scores(shape, DType::f64);
  const Tensor dice = integers(Rng(seed), shape, 1 << 20);
  for (std::int64_t i = 0; i < scores.count(); ++i) {
    const auto& values = i < scores.count() / 2 ? first : second;
    scores.data<double>()[i] = values[std::size_t(dice.data<std::int32_t>()[i]) % values.size()];
  }
  return scores;
}
Tensor of_few_values(const Shape& shape, std::uint64_t seed) {
  return mapped(shape, seed, {-1, 0, 0.5, 2}, {0, 1, 1.5});
}
Tensor all_equal(const Shape& shape, std::uint64_t) { return Tensor::full(shape, 0.25, DType::f64); }
// Large and small numbers, whose sums round to fewer values than there are pairs.
Tensor that_round(const Shape& shape, std::uint64_t seed) {
  Tensor scores = smooth(shape, seed);
  for (std::int64_t i = scores.count() / 2; i < scores.count(); ++i) scores.data<double>()[i] *= 1e16;
  return scores;
}
// Neighbours of 1 in every type, beside a half that costs their last digits.
Tensor nearly_equal(const Shape& shape, std::uint64_t seed) {
  const double u = 0x1p-52, f = 0x1p-23, b = 0x1p-7;
  return mapped(shape, seed, {1, 1 + u, 1 + 2 * u, 1 + f, 1 + 2 * f, 1 + b, 1 + 2 * b}, {8, 7, 8 + 8 * u, 8 + 8 * f});
}
Tensor not_finite(const Shape& shape, std::uint64_t seed) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  return mapped(shape, seed, {0, 1, 2, -inf, nan}, {0, 1, inf, -inf, nan});
}

void expect_the_picks_of_a_search(Device device) {
  struct Extents {
    std::int64_t rows, keys, n;
  };
  for (const auto& [what, draw] :
       std::map<std::string, Tensor (*)(const Shape&, std::uint64_t)>{{"smooth", smooth},
                                                                      {"of few values", of_few_values},
                                                                      {"all equal", all_equal},
                                                                      {"that round", that_round},
                                                                      {"nearly equal", nearly_equal},
                                                                      {"not finite", not_finite}})
    for (const auto& [rows, keys, n] : {Extents{200, 7, 3},
                                        {200, 5, 5},
                                        {50, 4, 9},
                                        {30, 1, 1},
                                        {30, 1, 4},
                                        {100, 9, 1},
                                        {100, 2, 2},
                                        {20, 61, 32},
                                        {5, 128, 32}})
      for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
        const Tensor scores = draw({2, rows, keys}, std::uint64_t(keys)).to(dtype);
        EXPECT_EQ(picks_of(product_key_top_k(scores.to(device), n)), search_of_all(scores, n))
            << what << " " << dtype << ", " << keys << " keys, " << n << " picks";
      }
}

TEST(ProductKeys, EqualASearchOfAllSums) { expect_the_picks_of_a_search(Device::cpu); }

TEST(OnTheDevice, ProductKeysEqualASearchOfAllSums) {
  SINKHORN_NEEDS_DEVICE();
  expect_the_picks_of_a_search(Device::cuda);
}

// The best key of the first half is the last, but every sum with 1e8 rounds to 1e8.
TEST(ProductKeys, OfSumsThatRoundToOneTheLowestSlotWins) {
  const Tensor scores = Tensor::from<float>({0, 1e-3f, 2e-3f, -1e8f, 1e8f, 0}, {2, 3});
  EXPECT_EQ(picks_of(product_key_top_k(scores, 1)), Picks({1}));
  EXPECT_EQ(picks_of(product_key_top_k(scores, 3)), Picks({1, 4, 7}));
  EXPECT_EQ(picks_of(product_key_top_k(scores.to(DType::f64), 3)), Picks({7, 4, 1}));
}

TEST(ProductKeys, GiveTheSumsAndSendTheirGradientToBothHalves) {
  const Tape tape = Tape::record();
  const Var scores = tape.leaf(Tensor::from<double>({1, 5, 2, 10, 0, 30}, {2, 1, 3}));
  const ProductKeys found = product_key_top_k(scores, 2);
  EXPECT_EQ(picks_of(found), Picks({5, 8}));
  EXPECT_EQ(found.scores.shape(), Shape({1, 2}));
  testing::expect_values(found.scores, {35, 32});
  const Tensor flow = tape.backward(found.scores, Tensor::from<double>({7, 100}, {1, 2})).of(scores);
  testing::expect_values(flow, {0, 7, 100, 0, 0, 107});
}

TEST(ProductKeys, ReplayGivenPicks) {
  const Tensor scores = smooth({2, 4, 6}, 3), other = smooth({2, 4, 6}, 4);
  const ProductKeys found = product_key_top_k(scores, 3), again = product_key_top_k(scores, 3, found.picks);
  EXPECT_TRUE(equal_bits(found.scores.value, again.scores.value));
  const ProductKeys replayed = product_key_top_k(other, 3, found.picks);
  EXPECT_TRUE(equal_bits(replayed.picks, found.picks));
  EXPECT_FALSE(equal_bits(product_key_top_k(other, 3).picks, found.picks));
  const std::int32_t pick = found.picks.data<std::int32_t>()[0];
  EXPECT_EQ(replayed.scores.value.to_vector()[0],
            other.data<double>()[pick / 6] + other.data<double>()[4 * 6 + pick % 6]);
}

TEST(ProductKeys, RefuseWhatMakesNoSense) {
  using testing::expect_error;
  const Tensor scores = Tensor::zeros({2, 3, 4});
  expect_error([&] { product_key_top_k(scores, 0); }, {"n must be at least 1, got 0"});
  expect_error([&] { product_key_top_k(Tensor::zeros({3, 4}), 1); }, {"scores (2, ..., keys)", "3"});
  expect_error([&] { product_key_top_k(Tensor::zeros({2, 0}), 1); }, {"1 to 46340 keys a half, got 0"});
  expect_error([&] { product_key_top_k(Tensor::zeros({2, 46341}), 1); }, {"got 46341"});
  expect_error([&] { product_key_top_k(scores, 1, Tensor::zeros({3, 2}, DType::i32)); }, {"picks must be i32"});
  expect_error([&] { product_key_top_k(scores, 1, Tensor::full({3, 1}, 16, DType::i32)); }, {"pick 16", "16 slots"});
  expect_error([&] { product_key_top_k(scores, 1, Tensor::full({3, 1}, -1, DType::i32)); }, {"pick -1"});
}

}  // namespace
}  // namespace sinkhorn
