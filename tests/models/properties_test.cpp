// P1 to P5: no future, prefixes, padding, reversible gradients, repeatable evaluation; over random configurations.
#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "nn/attention.h"
#include "tests/models/random_model.h"

namespace sinkhorn::testing {
namespace {

using Function = std::function<Tensor(const Tensor& x)>;

/// The first position whose output changes a bit when position `changed` > it does, as "output i moves with input j";
/// empty if none. `change` gives x with one position altered. Outputs are (B, T, ...).
std::string find_leak(const Tensor& x, const Function& f,
                      const std::function<Tensor(const Tensor&, std::int64_t)>& change) {
  const Tensor before = f(x);
  const std::int64_t batch = x.shape()[0], length = x.shape()[1];
  const std::size_t slot = before.bytes() / std::size_t(batch * length);
  for (std::int64_t j = 1; j < length; ++j) {
    const Tensor after = f(change(x, j));
    for (std::int64_t row = 0; row < batch; ++row)
      for (std::int64_t i = 0; i < j; ++i) {
        const std::byte* at = before.raw() + std::size_t(row * length + i) * slot;
        if (!std::equal(at, at + slot, after.raw() + (at - before.raw())))
          return "output " + std::to_string(i) + " moves with input " + std::to_string(j);
      }
  }
  return "";
}

Tensor next_id(const Tensor& ids, std::int64_t j, std::int64_t vocabulary) {
  Tensor changed = ids.clone();
  for (std::int64_t row = 0; row < ids.shape()[0]; ++row) {
    std::int32_t& id = changed.data<std::int32_t>()[row * ids.shape()[1] + j];
    id = std::int32_t((id + 1 + j % (vocabulary - 1)) % vocabulary);
  }
  return changed;
}

struct Trial {
  explicit Trial(std::uint64_t seed, DType dtype) : dice(seed), config(random_config(dice)) {
    model = random_model(config, seed, dtype);
    length = config.bucket_size * dice.between(1, 5);
    padding = Padding(dice.upto(3));
    mask = random_mask(dice, padding, 2, length);
    ids = random_ids(seed, 2, length, config.num_tokens);
  }
  Tensor logits(const Tensor& ids, const Tensor& mask) const { return (*model)(Scope{}, ids, mask).value; }

  Dice dice;
  ModelConfig config;
  std::unique_ptr<SinkhornTransformerLM> model;
  std::int64_t length;
  Padding padding;
  Tensor mask, ids;
};

class Properties : public ::testing::TestWithParam<DType> {};

TEST_P(Properties, P1NoOutputDependsOnTheFuture) {
  for (int seed = 0; seed < configurations(40, 500); ++seed) {
    const Trial trial(seed, GetParam());
    EXPECT_EQ(find_leak(
                  trial.ids, [&](const Tensor& ids) { return trial.logits(ids, trial.mask); },
                  [&](const Tensor& ids, std::int64_t j) { return next_id(ids, j, trial.config.num_tokens); }),
              "")
        << "seed " << seed << " " << describe(trial.config);
  }
}

// In bf16 a matmul of another height may round a whole digit differently, so prefixes are compared in f64 and f32.
TEST(Prefix, P2HasTheLogitsOfTheWhole) {
  for (DType dtype : {DType::f64, DType::f32}) {
    for (int seed = 0; seed < configurations(40, 500); ++seed) {
      const Trial trial(seed, dtype);
      const Tensor whole = trial.logits(trial.ids, {});
      for (std::int64_t t = 1; t <= trial.length; ++t) {  // whole buckets, and others after padding on the right
        const Tensor prefix = padded(*trial.model, Scope{}, slice(Var(trial.ids), 1, 0, t).value).value;
        EXPECT_LE(relative_error(prefix, slice(Var(whole), 1, 0, t).value), dtype == DType::f64 ? 1e-12 : 1e-5)
            << dtype << " t " << t << " seed " << seed << " " << describe(trial.config);
      }
    }
  }
}

TEST_P(Properties, P3PaddedContentNeverChangesARealOutput) {
  for (int seed = 0; seed < configurations(40, 500); ++seed) {
    const Trial trial(seed, GetParam());
    if (!trial.mask) continue;
    Tensor other = trial.ids.clone();
    for (std::int64_t i = 0; i < other.count(); ++i)
      if (!trial.mask.data<bool>()[i]) other.data<std::int32_t>()[i] = (other.data<std::int32_t>()[i] + 3) % 7;
    const Tensor a = trial.logits(trial.ids, trial.mask), b = trial.logits(other, trial.mask);
    const std::size_t slot = a.bytes() / std::size_t(trial.mask.count());
    for (std::int64_t i = 0; i < trial.mask.count(); ++i) {
      if (trial.mask.data<bool>()[i]) {
        EXPECT_TRUE(std::equal(a.raw() + i * slot, a.raw() + (i + 1) * slot, b.raw() + i * slot))
            << "position " << i << " seed " << seed << " " << describe(trial.config);
      }
    }
  }
}

TEST_P(Properties, P5TwoEvaluationsAgree) {
  for (int seed = 0; seed < configurations(20, 100); ++seed) {
    const Trial trial(seed, GetParam());
    EXPECT_TRUE(equal_bits(trial.logits(trial.ids, trial.mask), trial.logits(trial.ids, trial.mask)));
  }
}

INSTANTIATE_TEST_SUITE_P(InDtype, Properties, ::testing::Values(DType::f64, DType::f32, DType::bf16),
                         [](const auto& info) {
                           std::ostringstream name;
                           name << info.param;
                           return name.str();
                         });

// P4: reversible execution against the same equations on the plain tape, with dropout and masks.
TEST(Reversible, P4GradientsEqualThoseOfThePlainTape) {
  for (int seed = 0; seed < configurations(40, 500); ++seed) {
    Trial trial(seed, DType::f64);
    trial.config.reversible = true;
    trial.config.attn_dropout = trial.config.ff_dropout = trial.config.attn_layer_dropout = 0.2;
    trial.config.layer_dropout = 0.2;
    trial.model = random_model(trial.config, seed, DType::f64);
    auto gradients = [&](bool keep) {
      trial.model->stack().keep_activations(keep);
      const Scope scope{Tape::record(), Rng(seed), true};
      const Var logits = (*trial.model)(scope, trial.ids, trial.mask);
      const Gradients g = scope.tape.backward(logits, uniform(Rng(9), logits.shape(), -1, 1, DType::f64));
      std::vector<Tensor> all{logits.value};
      for_each_parameter(*trial.model, [&](const std::string&, const Parameter& p) { all.push_back(g.of(p)); });
      return all;
    };
    const std::vector<Tensor> plain = gradients(true), reversible = gradients(false);
    double largest = 0;
    for (std::size_t i = 1; i < plain.size(); ++i)
      if (plain[i])
        for (double x : plain[i].to_vector()) largest = std::max(largest, std::abs(x));
    for (std::size_t i = 0; i < plain.size(); ++i) {
      ASSERT_EQ(bool(plain[i]), bool(reversible[i]));
      if (plain[i]) {
        EXPECT_LE(relative_error(reversible[i], plain[i], i == 0 ? 0 : largest), 1e-11)
            << "tensor " << i << " seed " << seed << " " << describe(trial.config);
      }
    }
  }
}

// --- planted leaks: the search must find each ---------------------------------------------------------------------

struct Planted {
  const char* name;
  std::function<Var(const Var& q, const Var& kv, std::int64_t bucket, const Var& nulls)> attend;
};

constexpr std::int64_t kHeads = 2, kWidth = 3, kBucket = 3, kTop = 2;

Routing route(const Var& queries, const Var& keys, const Tensor& allowed) {
  const Shape s = keys.shape();
  const Var scores =
      concat({Var(Tensor::zeros({s[0], s[1], s[2], kTop}, DType::f64)), matmul(queries, keys, false, true)}, -1);
  const TopK chosen = top_k(mask_fill(scores, allowed, -std::numeric_limits<double>::infinity()), kTop, 0.75);
  return {chosen.weights, chosen.picks};
}

Var attend(const Var& q, const Var& kv, const Routing& routing, const Var& nulls) {
  return bucketed_attention(q, kv, routing, {nulls, nulls}, {kBucket, kBucket});
}

std::vector<Planted> planted_leaks() {
  auto summaries = [](const Var& q, const Var& kv, Summary of_queries) {
    return std::pair(bucket_summary(q, of_queries, kBucket, 0), bucket_summary(kv, Summary::sum_of_means, kBucket, 0));
  };
  auto choices = [](const Var& q) {
    return causal_choices(q.shape()[0], kHeads, q.shape()[1] / kBucket, kBucket, kTop, {});
  };
  return {
      {"none",
       [=](const Var& q, const Var& kv, std::int64_t, const Var& nulls) {
         const auto [queries, keys] = summaries(q, kv, Summary::mean_at_first);
         return attend(q, kv, route(queries, keys, choices(q)), nulls);
       }},
      {"a bucket may choose itself",
       [=](const Var& q, const Var& kv, std::int64_t, const Var& nulls) {
         const auto [queries, keys] = summaries(q, kv, Summary::mean_at_first);
         const Tensor allowed = choices(q).clone();
         const std::int64_t columns = allowed.shape()[3];
         for (std::int64_t r = 0; r < allowed.count() / columns; ++r)
           allowed.data<bool>()[r * columns + kTop + r % allowed.shape()[2]] = true;
         return attend(q, kv, route(queries, keys, allowed), nulls);
       }},
      {"routing reads the whole query bucket",
       [=](const Var& q, const Var& kv, std::int64_t, const Var& nulls) {
         const auto [queries, keys] = summaries(q, kv, Summary::sum_of_means);
         return attend(q, kv, route(queries, keys, choices(q)), nulls);
       }},
      {"the last bucket of rotated heads lacks its mask",
       [=](const Var& q, const Var& kv, std::int64_t, const Var& nulls) {
         const Var turned_q = rotate(q, 1, kBucket - 1), turned_kv = rotate(kv, 1, kBucket - 1);
         const auto [queries, keys] = summaries(turned_q, turned_kv, Summary::mean_at_first);
         return rotate(attend(turned_q, turned_kv, route(queries, keys, choices(q)), nulls), 1, -(kBucket - 1));
       }},
      {"softmax before the mask",
       [=](const Var& q, const Var& kv, std::int64_t, const Var&) {
         const Var k = reshape(slice(kv, 2, 0, 1), q.shape()), v = reshape(slice(kv, 2, 1, 2), q.shape());
         auto by_head = [](const Var& x) { return permute(x, {0, 2, 1, 3}); };
         const Var p = softmax(matmul(by_head(q), by_head(k), false, true));
         Tensor causal(p.shape(), DType::boolean);
         const std::int64_t length = p.shape()[3];
         for (std::int64_t i = 0; i < causal.count(); ++i) causal.data<bool>()[i] = i % length <= i / length % length;
         return permute(matmul(mask_fill(p, causal, 0), by_head(v)), {0, 2, 1, 3});
       }},
  };
}

TEST(PlantedLeaks, AreFound) {
  const std::int64_t length = 4 * kBucket;
  const Tensor wq = uniform(Rng(1), {kHeads * kWidth, 5}, -1, 1, DType::f64);
  const Tensor wkv = uniform(Rng(2), {2 * kHeads * kWidth, 5}, -1, 1, DType::f64);
  const Tensor nulls = uniform(Rng(3), {kHeads, 1, kWidth}, -1, 1, DType::f64);
  for (const Planted& leak : planted_leaks()) {
    auto f = [&](const Tensor& x) {
      const Var q = reshape(linear(x, wq), {1, length, kHeads, kWidth});
      const Var kv = reshape(linear(x, wkv), {1, length, 2, kHeads, kWidth});
      return leak.attend(q, kv, kBucket, nulls).value;
    };
    auto change = [](const Tensor& x, std::int64_t j) {
      Tensor changed = x.clone();
      for (int e = 0; e < 5; ++e) changed.data<double>()[j * 5 + e] *= -1.5;
      return changed;
    };
    bool found = false;
    for (int seed = 10; seed < 20; ++seed)
      found |= !find_leak(uniform(Rng(seed), {1, length, 5}, -2, 2, DType::f64), f, change).empty();
    EXPECT_EQ(found, std::string(leak.name) != "none") << leak.name;
  }
}

}  // namespace
}  // namespace sinkhorn::testing
