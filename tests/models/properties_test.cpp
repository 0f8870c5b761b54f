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

/// What is tried: a causal language model, one that looks both ways, or a decoder that reads an encoder.
enum class Family { causal, both_ways, encoder_decoder };
constexpr Family kFamilies[] = {Family::causal, Family::both_ways, Family::encoder_decoder};

/// One random model with ids and a mask. Of an encoder-decoder they are the decoder's; the source stays.
class Trial {
 public:
  Trial(Family family, std::uint64_t seed, DType dtype, const std::function<void(ModelConfig&)>& change = {})
      : dice_(seed * 3 + std::uint64_t(family)) {
    if (family == Family::encoder_decoder) {
      EncoderDecoderConfig pair = random_pair_config(dice_);
      if (change) change(pair.encoder), change(pair.decoder);
      pair_ = std::make_unique<EncoderDecoder>(pair, Rng(seed), dtype);
      move_parameters(*pair_, seed);
      config = pair.decoder;
      description = describe(pair.encoder) + " " + describe(config);
      const std::int64_t length = length_for(pair.encoder);
      source = {random_ids(seed + 1, 2, length, pair.encoder.num_tokens),
                random_mask(dice_, Padding(dice_.upto(3)), 2, length)};
    } else {
      config = family == Family::causal ? random_config(dice_) : random_config_both_ways(dice_);
      if (change) change(config);
      model_ = random_model(config, seed, dtype);
      description = describe(config);
    }
    length = length_for(config);
    mask = random_mask(dice_, Padding(dice_.upto(3)), 2, length);
    ids = random_ids(seed, 2, length, config.num_tokens);
  }

  Var logits(const Tensor& ids, const Tensor& mask, const Scope& scope = {}) const {
    return pair_ ? (*pair_)(scope, source, {ids, mask}) : (*model_)(scope, ids, mask);
  }
  Tensor padded_logits(const Tensor& ids) const {
    return pair_ ? (*pair_)(Scope{}, source, {ids, {}}).value : padded(*model_, Scope{}, ids).value;
  }
  void keep_activations(bool keep) {
    for (SinkhornTransformerLM* model :
         pair_ ? std::vector{&pair_->encoder(), &pair_->decoder()} : std::vector{model_.get()})
      model->stack().keep_activations(keep);
  }
  template <class Use>
  void each_parameter(Use use) {
    if (pair_)
      for_each_parameter(*pair_, use);
    else
      for_each_parameter(*model_, use);
  }
  bool has_source() const { return bool(pair_); }

  ModelConfig config;
  std::string description;
  std::int64_t length;
  Tensor mask, ids;
  MaskedIds source;

 private:
  std::int64_t length_for(const ModelConfig& c) {
    return c.fixed_length().value_or(c.length_multiple() * dice_.between(1, 5));
  }
  Dice dice_;
  std::unique_ptr<SinkhornTransformerLM> model_;
  std::unique_ptr<EncoderDecoder> pair_;
};

/// Calls check(trial, seed) for random models of the given families.
template <class Check>
void for_trials(std::initializer_list<Family> families, DType dtype, int usual, int lengthy, Check check) {
  for (const Family family : families)
    for (int seed = 0; seed < configurations(usual, lengthy); ++seed) {
      Trial trial(family, seed, dtype);
      SCOPED_TRACE(::testing::Message() << "family " << int(family) << " seed " << seed << " " << trial.description);
      check(trial, seed);
    }
}

class Properties : public ::testing::TestWithParam<DType> {};

TEST_P(Properties, P1NoOutputDependsOnTheFuture) {
  for_trials({Family::causal, Family::encoder_decoder}, GetParam(), 30, 500, [&](const Trial& trial, int seed) {
    if (!trial.config.causal) return;
    const Scope scope{{}, Rng(seed), seed % 2 == 1};  // in evaluation, and in training, where statistics could leak
    EXPECT_EQ(find_leak(
                  trial.ids, [&](const Tensor& ids) { return trial.logits(ids, trial.mask, scope).value; },
                  [&](const Tensor& ids, std::int64_t j) { return next_id(ids, j, trial.config.num_tokens); }),
              "");
  });
}

// In bf16 a matmul of another height may round a whole digit differently, so prefixes are compared in f64 and f32.
TEST(Prefix, P2HasTheLogitsOfTheWhole) {
  for (DType dtype : {DType::f64, DType::f32}) {
    for_trials({Family::causal, Family::encoder_decoder}, dtype, 30, 500, [&](const Trial& trial, int) {
      if (!trial.config.causal) return;
      const Tensor whole = trial.logits(trial.ids, {}).value;
      for (std::int64_t t = 1; t <= trial.length; ++t) {  // whole buckets, and others after padding on the right
        const Tensor prefix = trial.padded_logits(slice(Var(trial.ids), 1, 0, t).value);
        EXPECT_LE(relative_error(prefix, slice(Var(whole), 1, 0, t).value), dtype == DType::f64 ? 1e-12 : 1e-5)
            << dtype << " t " << t;
      }
    });
  }
}

// Every padded id replaced by another one.
Tensor other_padding(const MaskedIds& given, std::int64_t vocabulary) {
  Tensor other = given.ids.clone();
  for (std::int64_t i = 0; i < other.count(); ++i)
    if (!given.mask.data<bool>()[i])
      other.data<std::int32_t>()[i] = std::int32_t((other.data<std::int32_t>()[i] + 3) % vocabulary);
  return other;
}

TEST_P(Properties, P3PaddedContentNeverChangesARealOutput) {
  for_trials({kFamilies[0], kFamilies[1], kFamilies[2]}, GetParam(), 40, 500, [&](Trial& trial, int) {
    const Tensor before = trial.logits(trial.ids, trial.mask).value;
    auto expect_same = [&](const Tensor& after, const char* changed) {
      const std::size_t slot = before.bytes() / std::size_t(trial.ids.count());
      for (std::int64_t i = 0; i < trial.ids.count(); ++i) {
        if (!trial.mask || trial.mask.data<bool>()[i]) {
          EXPECT_TRUE(std::equal(before.raw() + i * slot, before.raw() + (i + 1) * slot, after.raw() + i * slot))
              << "position " << i << " moves with padded " << changed;
        }
      }
    };
    if (trial.mask) expect_same(trial.logits(other_padding({trial.ids, trial.mask}, 7), trial.mask).value, "ids");
    if (trial.has_source() && trial.source.mask) {
      trial.source.ids = other_padding(trial.source, 7);
      expect_same(trial.logits(trial.ids, trial.mask).value, "source ids");
    }
  });
}

TEST_P(Properties, P5TwoEvaluationsAgree) {
  for_trials({kFamilies[0], kFamilies[1], kFamilies[2]}, GetParam(), 10, 100, [&](const Trial& trial, int) {
    EXPECT_TRUE(equal_bits(trial.logits(trial.ids, trial.mask).value, trial.logits(trial.ids, trial.mask).value));
  });
}

INSTANTIATE_TEST_SUITE_P(InDtype, Properties, ::testing::Values(DType::f64, DType::f32, DType::bf16),
                         [](const auto& info) {
                           std::ostringstream name;
                           name << info.param;
                           return name.str();
                         });

// P4: reversible execution against the same equations on the plain tape, with dropout, noise and masks.
TEST(Reversible, P4GradientsEqualThoseOfThePlainTape) {
  auto reversible_with_dropout = [](ModelConfig& config) {
    config.reversible = true;
    config.attn_dropout = config.ff_dropout = config.attn_layer_dropout = 0.2;
    config.layer_dropout = 0.2;
    if (has_even_kinds_of_heads(config)) config.head_groups = 2;
  };
  for (const Family family : kFamilies) {
    for (int seed = 0; seed < configurations(25, 500); ++seed) {
      Trial trial(family, seed, DType::f64, reversible_with_dropout);
      auto gradients = [&](bool keep) {
        trial.keep_activations(keep);
        const Scope scope{Tape::record(), Rng(seed), true};
        const Var logits = trial.logits(trial.ids, trial.mask, scope);
        const Gradients g = scope.tape.backward(logits, uniform(Rng(9), logits.shape(), -1, 1, DType::f64));
        std::vector<Tensor> all{logits.value};
        trial.each_parameter([&](const std::string&, const Parameter& p) { all.push_back(g.of(p)); });
        return all;
      };
      const std::vector<Tensor> plain = gradients(true), reversible = gradients(false);
      double largest = 0;
      for (std::size_t i = 1; i < plain.size(); ++i)
        if (plain[i])
          for (double x : plain[i].to_vector()) largest = std::max(largest, std::abs(x));
      for (std::size_t i = 0; i < plain.size(); ++i) {
        ASSERT_EQ(bool(plain[i]), bool(reversible[i])) << trial.description;
        if (plain[i]) {
          EXPECT_LE(relative_error(reversible[i], plain[i], i == 0 ? 0 : largest), 1e-11)
              << "tensor " << i << " family " << int(family) << " seed " << seed << " " << trial.description;
        }
      }
    }
  }
}

// The package ran the encoder's backward once for each decoder layer.
TEST(EncoderDecoder, TheEncoderIsWalkedBackOnce) {
  for (const bool reversible : {false, true}) {
    Dice dice(3);
    EncoderDecoderConfig pair = random_pair_config(dice);
    while (!pair.decoder.causal) pair = random_pair_config(dice);
    pair.decoder.depth = 3;
    pair.decoder.reversible = reversible;
    pair.decoder.weight_tie = false;
    pair.decoder.pkm_layers = {};
    const EncoderDecoder model(pair, Rng(1), DType::f64);
    const Scope scope{Tape::record(), Rng(2), true};
    const Tensor source = random_ids(1, 2, pair.encoder.max_length(), 7);
    const Var loss = model.loss(scope, {source, {}}, {random_ids(2, 2, pair.decoder.max_length(), 7), {}}).loss;
    int embeddings = 0;
    scope.tape.watch(
        [&](const TapeEvent& event) { embeddings += event.kind == TapeEvent::Kind::flow && event.op == "embedding"; });
    scope.tape.backward(loss);
    EXPECT_EQ(embeddings, 2);  // the encoder's and the decoder's, once each
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
