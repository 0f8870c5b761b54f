// Bucketed attention on the device, in the types and widths that tensor cores take, against the CPU in f64. On the
// emulated grid it is the scalar twin that runs, on the smaller shapes.
#include <gtest/gtest.h>

#include <tuple>

#include "autograd/ops.h"
#include "tests/cuda/agreement.h"

namespace sinkhorn {
namespace {

struct AttentionSetup {
  const char* label;
  AttentionPattern pattern;
  std::int64_t batch, length, key_length, heads, width, lists, n_top;
  bool masked = false;
  double dropout = 0;
  bool large = false;  // minutes on the emulated grid
  double least_weight = 0.2;
};

AttentionPattern causal(std::int64_t bucket, std::int64_t local) { return {bucket, bucket, local, true, true}; }
AttentionPattern free(std::int64_t bucket, std::int64_t key_bucket, std::int64_t local, bool own = true) {
  return {bucket, key_bucket, local, false, own};
}

const AttentionSetup kAttentionSetups[] = {
    {"buckets of 128, local and sorting heads", causal(128, 2), 2, 1024, 1024, 4, 64, 8, 2, false, 0, true},
    {"one hot bucket", causal(128, 0), 1, 2048, 2048, 2, 64, 16, 1, false, 0, true},
    {"one hot bucket of many", causal(8, 1), 1, 256, 256, 3, 32, 32, 2},
    {"long lists", causal(8, 0), 1, 8192, 8192, 2, 32, 1024, 2, false, 0, true},
    {"buckets of 64", causal(64, 3), 2, 256, 256, 6, 64, 4, 2, false, 0, true},
    {"buckets of 75", causal(75, 1), 1, 300, 300, 3, 64, 4, 2, false, 0, true},
    {"buckets of 200", causal(200, 1), 1, 800, 800, 3, 64, 4, 2, false, 0, true},
    {"buckets of 16", causal(16, 1), 2, 96, 96, 3, 32, 6, 2},
    {"buckets of 5", causal(5, 1), 1, 25, 25, 3, 32, 5, 3},
    {"width 32", causal(32, 1), 1, 128, 128, 3, 32, 4, 2},
    {"one bucket", causal(40, 1), 2, 40, 40, 3, 32, 1, 2},
    {"padding", causal(16, 1), 2, 64, 64, 3, 64, 4, 2, true},
    {"dropout", causal(16, 1), 2, 64, 64, 3, 64, 4, 2, false, 0.3},
    {"dropout, buckets of 5", causal(5, 1), 1, 25, 25, 3, 32, 5, 3, false, 0.3},
    {"weights of any sign", causal(16, 1), 1, 64, 64, 3, 64, 4, 2, false, 0, false, -1.5},
    {"weights of any sign, dropout", causal(16, 1), 1, 64, 64, 3, 64, 4, 2, false, 0.3, false, -1.5},
    {"weights of any sign, large", causal(128, 1), 1, 512, 512, 3, 64, 4, 2, false, 0, true, -1.5},
    {"dropout and padding, large", causal(128, 2), 1, 512, 512, 4, 64, 4, 2, true, 0.2, true},
    {"both directions", free(16, 16, 1), 2, 64, 64, 3, 64, 4, 2},
    {"both directions, padding and dropout", free(64, 64, 1), 1, 256, 256, 3, 64, 4, 2, true, 0.1, true},
    {"another key bucket", free(16, 24, 1), 2, 96, 96, 3, 32, 6, 2, true},
    {"small buckets, large key buckets", free(8, 48, 0), 1, 96, 96, 2, 32, 12, 1},
    {"small buckets, large key buckets, dropout", free(8, 48, 1), 1, 96, 96, 2, 32, 12, 1, true, 0.2},
    {"sortcut", free(16, 16, 1), 2, 64, 64, 3, 64, 1, 2, true},
    {"sortcut, many buckets", free(8, 16, 0), 2, 160, 160, 2, 32, 1, 2},
    {"context", free(16, 24, 0, false), 2, 48, 72, 2, 64, 3, 2, true},
    {"nothing to look at", free(16, 16, 0, false), 1, 32, 48, 2, 64, 2, 0},
    {"large context", free(128, 75, 0, false), 1, 512, 600, 2, 64, 4, 2, false, 0, true},
    {"width 128", causal(16, 1), 1, 48, 48, 3, 128, 3, 2, true, 0.2},
    {"width 128, buckets of 75", causal(75, 2), 1, 300, 300, 4, 128, 4, 2, false, 0, true},
    {"width 128, one hot bucket", causal(128, 0), 1, 2048, 2048, 2, 128, 16, 1, false, 0, true},
    {"width 128, both directions", free(128, 128, 1), 1, 512, 512, 3, 128, 4, 2, true, 0.1, true},
    {"width 128, large context and sortcut", free(128, 75, 0, false), 1, 512, 600, 2, 128, 1, 2, true, 0, true},
    {"width 96", causal(24, 1), 1, 96, 96, 3, 96, 4, 2, false, 0.2},
    {"width 72, large", causal(128, 1), 1, 512, 512, 3, 72, 4, 2, true, 0, true},
    {"width 40", free(16, 24, 1), 1, 48, 48, 3, 40, 3, 2, true},
    {"width 24", causal(16, 1), 1, 48, 48, 3, 24, 3, 2},
    {"width 8", causal(8, 1), 2, 40, 40, 4, 8, 5, 2, true, 0.1},
};

struct AttentionPrecision {
  const char* name;
  DType dtype;
  bool tf32;
  double limit;  // of squared errors
};
// Where TF32 is allowed, attention takes operands of 16 bits, beside which its 11 bits would err by 1e-7.
const AttentionPrecision kAttentionPrecisions[] = {
    {"bf16", DType::bf16, false, testing::limit_of(DType::bf16, testing::Arithmetic::attention)},
    {"f32", DType::f32, false, testing::limit_of(DType::f32, testing::Arithmetic::attention)},
    {"tf32", DType::f32, true, 1e-8},
};

// The picks are distinct within a row; causal ones are nulls and earlier buckets. `hot`: always the first buckets.
Tensor draw_picks(const AttentionSetup& s, bool hot) {
  const std::int64_t sorting = s.heads - s.pattern.local;
  Tensor picks(Shape{s.batch, sorting, s.lists, s.n_top}, DType::i32);
  const Tensor random = integers(Rng(1), picks.shape(), 1 << 20);
  const std::int64_t nulls = s.pattern.causal ? s.n_top : 0;
  for (std::int64_t i = 0; i < picks.count(); ++i) {
    const std::int64_t u = i / s.n_top % s.lists, start = random.data<std::int32_t>()[i - i % s.n_top];
    const std::int64_t choices = s.pattern.causal ? nulls + u : s.key_length / s.pattern.key_bucket;
    const std::int64_t pick = hot && u > 0 ? nulls : (start + i % s.n_top) % choices;
    picks.data<std::int32_t>()[i] = i % s.n_top < choices ? std::int32_t(pick) : -1;
  }
  return picks;
}

class AttentionOnTheDevice : public ::testing::TestWithParam<std::tuple<AttentionSetup, AttentionPrecision>> {};

TEST_P(AttentionOnTheDevice, AgreesWithTheCpu) {
  SINKHORN_NEEDS_DEVICE();
  const AttentionSetup& s = std::get<0>(GetParam());
  const AttentionPrecision& precision = std::get<1>(GetParam());
  if (testing::is_emulated() && s.large) GTEST_SKIP() << "minutes on the emulated grid";
  if (testing::is_emulated() && precision.tf32) GTEST_SKIP() << "f32 on the emulated grid";
  const testing::Tf32 tf32(precision.tf32);
  const std::int64_t sorting = s.heads - s.pattern.local;
  std::uint32_t tag = 0;
  const auto draw = [&](Shape shape) {
    return uniform(Rng(7).split(++tag), shape, -1.5, 1.5, DType::f64).to(precision.dtype);
  };
  const auto mask = [&](std::int64_t length) {
    return s.masked ? Draw(Rng(8).split(std::uint32_t(length))).mask({s.batch, length}) : Tensor();
  };
  const Tensor picks = draw_picks(s, std::string_view(s.label).starts_with("one hot"));
  const AttentionMasks masks{mask(s.length), mask(s.key_length)};
  const std::int64_t off = s.masked ? 1 : 0;  // parameters of a model begin anywhere in memory
  Tensors inputs{draw({s.batch, s.length, s.heads, s.width}), draw({s.batch, s.key_length, 2, s.heads, s.width}),
                 uniform(Rng(7).split(++tag), picks.shape(), s.least_weight, 1.5, DType::f64).to(DType::f32)};
  if (s.least_weight < 0)  // some that no exponent takes in
    for (std::int64_t i = 0; i < inputs[2].count(); i += 3) inputs[2].data<float>()[i] = i % 2 == 0 ? 0.0f : 1e-30f;
  if (s.pattern.causal)
    for (int k = 0; k < 2; ++k) inputs.push_back(draw({sorting * s.width + off}));
  const auto nulls_of = [&](const Tensor& flat) {
    return flat.slice(off, flat.count()).reshape({sorting, 1, s.width});
  };
  const Tensor cotangent = draw({s.batch, s.length, s.heads, s.width});
  const Shape packed{s.batch, s.length, 3, s.heads, s.width};
  const auto beside_keys = [&](const Tensor& q, const Tensor& kv) {
    return concat({reshape(q, packed.with(2, 1)), kv}, 2).value;
  };
  const auto run = [&](Device device, bool exact, bool packs = false) {
    Tensors there;
    for (const Tensor& x : inputs) there.push_back((exact ? x.to(DType::f64) : x).to(device));
    for (std::size_t k = 3; k < there.size(); ++k) there[k] = nulls_of(there[k]);
    if (packs) {
      there[0] = beside_keys(there[0], there[1]);
      there[1] = {};
    }
    const auto on = [&](const Tensor& x) { return x ? x.to(device) : x; };
    const Tape tape = Tape::record();
    std::vector<Var> x;
    for (const Tensor& input : there) x.push_back(input ? tape.leaf(input) : Var());
    const Var y = bucketed_attention(x[0], x[1], {x[2], on(picks)}, x.size() > 3 ? NullBlock{x[3], x[4]} : NullBlock{},
                                     s.pattern, {on(masks.queries), on(masks.keys)}, {s.dropout, Rng(5)});
    const Gradients gradients = tape.backward(y, cotangent.to(y.value.dtype()).to(device));
    Tensors results{y.value};
    for (const Var& leaf : x) results.push_back(gradients.of(leaf));
    for (Tensor& x : results)
      if (x) x = x.to(Device::cpu);
    return results;
  };
  const Tensors exact = run(Device::cpu, true);
  Tensors got, again;
  {
    const testing::Guarded guarded;
    got = run(Device::cuda, false);
    again = run(Device::cuda, false);
    if (s.pattern.own) {  // self-attention's tensors may be one
      const Tensors together = run(Device::cuda, false, true);
      EXPECT_TRUE(equal_bits(together[1], beside_keys(got[1], got[2]))) << "gradients of all packed";
      for (const std::size_t k : {0, 3, 4, 5})
        EXPECT_TRUE(k >= got.size() || equal_bits(together[k], got[k])) << k << ": packed, the bits differ";
    }
  }
  const char* const names[] = {"y", "dq", "dkv", "dweights", "dnull_keys", "dnull_values"};
  for (std::size_t k = 0; k < exact.size(); ++k) {
    if (exact[k].count() == 0) continue;
    EXPECT_LE(testing::squared_error(got[k], exact[k]), precision.limit) << names[k];
    EXPECT_TRUE(equal_bits(got[k], again[k])) << names[k] << ": two runs differ";
  }
}

INSTANTIATE_TEST_SUITE_P(Patterns, AttentionOnTheDevice,
                         ::testing::Combine(::testing::ValuesIn(kAttentionSetups),
                                            ::testing::ValuesIn(kAttentionPrecisions)),
                         [](const auto& info) {
                           std::string name =
                               std::string(std::get<0>(info.param).label) + " in " + std::get<1>(info.param).name;
                           for (char& c : name)
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           return name;
                         });

}  // namespace
}  // namespace sinkhorn
