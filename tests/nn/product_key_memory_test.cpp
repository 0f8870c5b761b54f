// The product-key memory: its equations written out, its start, and that a token reads for itself alone.
#include "nn/product_key_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "autograd/gradcheck.h"
#include "nn/parameter_groups.h"

namespace sinkhorn {
namespace {

constexpr ProductKeyOptions kSmall{5, 3, 4, 6, 2};  // D 5, 3 heads, 4 keys a half of width 6, 2 picks

ProductKeyMemory memory_of(const ProductKeyOptions& options, DType dtype = DType::f64) {
  Initializer init(Rng(1), dtype);
  ProductKeyMemory memory(options, init);
  std::uint32_t tag = 0;  // no parameter at a special value
  for_each_parameter(memory, [&](const std::string&, Parameter& p) {
    p.value = uniform(Rng(2).split(++tag), p.value.shape(), -1, 1, DType::f64).to(dtype);
  });
  return memory;
}

// One token through every value of the table.
std::vector<double> by_the_book(const ProductKeyMemory& m, const std::vector<double>& x) {
  const auto [dim, heads, keys, half, topk] = m.options;
  const auto at = [](const Parameter& p, std::int64_t i) { return p.value.data<double>()[i]; };
  std::vector<double> y(std::size_t(dim), 0.0);
  for (std::int64_t h = 0; h < heads; ++h) {
    std::vector<std::pair<double, std::int64_t>> slots;  // minus the score, and the slot: ascending order is ours
    std::vector<double> scores[2];
    for (std::int64_t p = 0; p < 2; ++p) {
      std::vector<double> q(std::size_t(half), 0.0);
      double mean = 0, variance = 0;
      for (std::int64_t e = 0; e < half; ++e) {
        for (std::int64_t d = 0; d < dim; ++d)
          q[e] += at(m.to_queries.weight, ((p * heads + h) * half + e) * dim + d) * x[d];
        mean += q[e] / double(half);
      }
      for (double value : q) variance += (value - mean) * (value - mean) / double(half);
      for (std::int64_t e = 0; e < half; ++e)
        q[e] = (q[e] - mean) / std::sqrt(variance + 1e-5) * at(m.norm.weight, e) + at(m.norm.bias, e);
      for (std::int64_t i = 0; i < keys; ++i) {
        double score = 0;
        for (std::int64_t e = 0; e < half; ++e) score += q[e] * at(m.keys, ((h * keys + i) * 2 + p) * half + e);
        scores[p].push_back(score);
      }
    }
    for (std::int64_t i = 0; i < keys; ++i)
      for (std::int64_t j = 0; j < keys; ++j) slots.emplace_back(-scores[0][i] - scores[1][j], i * keys + j);
    std::sort(slots.begin(), slots.end());
    slots.resize(std::size_t(std::min(topk, keys)));
    double total = 0;
    for (const auto& [minus, slot] : slots) total += std::exp(-minus);
    for (const auto& [minus, slot] : slots)
      for (std::int64_t d = 0; d < dim; ++d) y[d] += std::exp(-minus) / total * at(m.values.weight, slot * dim + d);
  }
  return y;
}

TEST(ProductKeyMemory, ReadsTheBestValuesOfEachHead) {
  for (const ProductKeyOptions& options :
       {kSmall, ProductKeyOptions{5, 1, 4, 3, 4}, {4, 2, 3, 5, 7}, {3, 2, 1, 2, 1}}) {  // 7 picks of 3 keys: clamped
    const ProductKeyMemory memory = memory_of(options);
    const Tensor x = uniform(Rng(7), {2, 6, options.dim}, -1, 1, DType::f64);
    std::vector<double> want;
    const std::vector<double> all = x.to_vector();
    for (auto token = all.begin(); token != all.end(); token += options.dim) {
      const std::vector<double> y = by_the_book(memory, {token, token + options.dim});
      want.insert(want.end(), y.begin(), y.end());
    }
    EXPECT_LE(relative_error(memory(Scope{}, x).value, Tensor::from(want, x.shape())), 1e-13);
  }
}

TEST(ProductKeyMemory, StartsAsDescribed) {
  Initializer init(Rng(1), DType::f32);
  ProductKeyMemory memory({64, 4, 32, 16, 8}, init);
  std::map<std::string, Tensor> values;
  std::string names;
  for_each_parameter(memory, [&](const std::string& name, const Parameter& p) {
    values[name] = p.value;
    names += name + " ";
  });
  EXPECT_EQ(names, "to_queries.weight norm.weight norm.bias keys values.weight ");
  EXPECT_EQ(values["to_queries.weight"].shape(), Shape({2 * 4 * 16, 64}));
  EXPECT_EQ(values["norm.weight"].shape(), Shape({16}));
  EXPECT_EQ(values["keys"].shape(), Shape({4, 32, 2, 16}));
  EXPECT_EQ(values["values.weight"].shape(), Shape({32 * 32, 64}));
  const auto deviation = [&](const std::string& name) {
    return global_norm({values[name]}) / std::sqrt(double(values[name].count()));
  };
  EXPECT_NEAR(deviation("keys"), 1 / std::sqrt(16), 0.02 / std::sqrt(16));
  EXPECT_NEAR(deviation("values.weight"), 1 / std::sqrt(64), 0.02 / std::sqrt(64));
  EXPECT_NEAR(deviation("to_queries.weight"), 1 / std::sqrt(3 * 64), 0.02 / std::sqrt(3 * 64));
}

// In training mode too, where a BatchNorm would let every token see all others.
TEST(ProductKeyMemory, ATokenReadsForItselfAlone) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    const ProductKeyMemory memory = memory_of(kSmall, dtype);
    const Tensor x = uniform(Rng(7), {2, 6, kSmall.dim}, -1, 1, DType::f64).to(dtype);
    const Scope training{{}, Rng(3), true};
    const Tensor before = memory(training, x).value;
    const std::size_t slot = before.bytes() / 12;
    for (std::int64_t changed = 0; changed < 12; ++changed) {
      const Tensor other = x.clone();
      std::fill_n(other.raw() + std::size_t(changed) * slot, slot, std::byte{0});
      const Tensor after = memory(training, other).value;
      for (std::int64_t t = 0; t < 12; ++t)
        EXPECT_EQ(std::equal(before.raw() + t * slot, before.raw() + (t + 1) * slot, after.raw() + t * slot),
                  t != changed)
            << dtype << ": token " << t << " after a change of token " << changed;
    }
  }
}

TEST(ProductKeyMemory, ReplaysItsPicks) {
  const ProductKeyMemory memory = memory_of(kSmall);
  const auto draw = [](std::uint64_t seed) { return uniform(Rng(seed), {1, 20, kSmall.dim}, -1, 1, DType::f64); };
  Tensors seen;
  const Observer observer = [&](std::string_view, const Tensor& picks) { seen.push_back(picks); };
  Choices choices;
  Scope scope;
  scope.observer = &observer;
  scope.choices = &choices;
  memory(scope, draw(1));
  ASSERT_EQ(choices.made().size(), 1u);
  choices.replay();
  memory(scope, draw(2));
  scope.choices = nullptr;
  memory(scope, draw(2));
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_TRUE(equal_bits(seen[0], choices.made()[0]));
  EXPECT_TRUE(equal_bits(seen[1], seen[0]));
  EXPECT_FALSE(equal_bits(seen[2], seen[0])) << "replaying must have mattered";
}

struct TwoMemories {
  explicit TwoMemories(Initializer& init)
      : first(kSmall, init), between(3, 2, true, init), second(kSmall, init), third(kSmall, init) {}
  template <class See>
  void visit(See&& see) {
    see("first", first);
    see("between", between);
    see("second", second);
    see("third", third.values);  // right behind another table
  }
  ProductKeyMemory first;
  Linear between;
  ProductKeyMemory second, third;
};

TEST(ParameterGroups, HoldEveryParameterOnce) {
  Initializer init(Rng(1), DType::f32);
  TwoMemories model(init);
  const FlatParameters parameters(model);
  const std::vector<ParameterGroup> groups = parameter_groups(parameters);
  ASSERT_EQ(groups.size(), 4u);
  std::int64_t at = 0;
  std::vector<bool> is_memory, decays;
  for (const ParameterGroup& group : groups) {
    EXPECT_EQ(group.begin, at);
    at = group.end;
    is_memory.resize(std::size_t(at), group.is_memory);
    decays.resize(std::size_t(at), false);
    for (const Range& range : group.decayed)
      std::fill(decays.begin() + group.begin + range.begin, decays.begin() + group.begin + range.end, true);
  }
  EXPECT_EQ(at, parameters.count());
  for (const FlatParameters::Entry& entry : parameters.entries())
    for (std::int64_t i = entry.begin; i < entry.end; ++i) {
      ASSERT_EQ(is_memory[i], entry.name == "third.weight" || entry.name.ends_with("values.weight")) << entry.name;
      ASSERT_EQ(decays[i], entry.parameter->decays) << entry.name;
    }
}

TEST(ParameterGroups, AreOneWithoutAMemory) {
  Initializer init(Rng(1), DType::f32);
  Linear model(3, 2, true, init);
  const FlatParameters parameters(model);
  const std::vector<ParameterGroup> groups = parameter_groups(parameters);
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(groups[0].begin, 0);
  EXPECT_EQ(groups[0].end, parameters.count());
  EXPECT_FALSE(groups[0].is_memory);
}

}  // namespace
}  // namespace sinkhorn
