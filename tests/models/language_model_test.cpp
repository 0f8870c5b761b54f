// Padding, loss, truncation, initialisation and names of the language model.
#include "models/language_model.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/gradcheck.h"
#include "nn/flat_parameters.h"
#include "tests/models/random_model.h"

namespace sinkhorn {
namespace {

ModelConfig config_of_seven() {
  ModelConfig config;
  config.causal = true;
  config.num_tokens = 7;
  config.dim = 8;
  config.depth = 2;
  config.heads = 2;
  config.bucket_size = 4;
  config.max_seq_len = 16;
  return config;
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(LanguageModel, NamesWhatDoesNotFit) {
  const auto model = testing::random_model(config_of_seven(), 1, DType::f64);
  auto run = [&](const Tensor& ids) { return [&model, ids] { (*model)(Scope{}, ids); }; };
  EXPECT_EQ(message_of(run(testing::random_ids(1, 1, 6, 7))),
            "attention: the length 6 is not a multiple of bucket_size 4; pad to 8");
  EXPECT_EQ(message_of(run(testing::random_ids(1, 1, 20, 7))),
            "language model: length 20 exceeds max_seq_len 16 (16 in whole buckets)");
  EXPECT_NE(message_of(run(Tensor::full({1, 4}, 7, DType::i32))).find('7'), std::string::npos);
}

TEST(LanguageModel, MasksAreCheckedBeforeTheyArePaddedOrRead) {
  const auto model = testing::random_model(config_of_seven(), 1, DType::f64);
  const Tensor ids = testing::random_ids(1, 2, 5, 7);
  for (const Tensor& mask : {Tensor::full({2, 4}, 1, DType::boolean), Tensor::full({1, 5}, 1, DType::boolean),
                             Tensor::full({2, 5}, 1, DType::i32)}) {
    const std::string expected = "expected a mask of booleans (2, 5), got ";
    for (const std::string& message : {message_of([&] { padded(*model, Scope{}, ids, mask); }),
                                       message_of([&] { autoregressive_loss(*model, Scope{}, ids, mask); }),
                                       message_of([&] { randomly_truncate(ids, mask, Rng(1)); })})
      EXPECT_NE(message.find(expected), std::string::npos) << message;
  }
}

TEST(LanguageModel, PaddedOnTheRightGivesTheLogitsOfEachSequenceAlone) {
  const auto model = testing::random_model(config_of_seven(), 2, DType::f64);
  const std::vector<std::vector<std::int32_t>> sequences{{1, 2, 3, 4, 5, 6, 0, 1, 2}, {3, 3}, {5, 4, 3, 2, 1}};
  const MaskedIds batch = from_sequences(sequences);
  const Tensor together = padded(*model, Scope{}, batch.ids, batch.mask).value;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const Tensor alone = padded(*model, Scope{}, from_sequences({sequences[i]}).ids).value;
    const Tensor row =
        slice(Var(together.slice(std::int64_t(i), std::int64_t(i) + 1)), 1, 0, std::int64_t(sequences[i].size())).value;
    EXPECT_LE(relative_error(row, alone), 1e-12) << i;
  }
}

TEST(AutoregressiveLoss, CountsPositionsWhoseInputAndTargetAreReal) {
  const auto model = testing::random_model(config_of_seven(), 2, DType::f64);
  const MaskedIds batch = from_sequences({{1, 2, 3, 4, 5}, {3, 3}, {6}});
  const LanguageModelLoss result = autoregressive_loss(*model, Scope{}, batch.ids, batch.mask);
  EXPECT_EQ(result.counted, 4 + 1 + 0);
  const Tensor mask = slice(Var(batch.mask), 1, 0, 4).value;
  const std::vector<double> logits =
      padded(*model, Scope{}, slice(Var(batch.ids), 1, 0, 4).value, mask).value.to_vector();
  double total = 0;
  for (const auto& [row, t, target] :
       std::vector<std::array<int, 3>>{{0, 0, 2}, {0, 1, 3}, {0, 2, 4}, {0, 3, 5}, {1, 0, 3}}) {
    const double* at = &logits[(row * 4 + t) * 7];
    double sum = 0;
    for (int v = 0; v < 7; ++v) sum += std::exp(at[v]);
    total += std::log(sum) - at[target];
  }
  EXPECT_NEAR(result.loss.value.item(), total / 5, 1e-12);
}

TEST(AutoregressiveLoss, NeedsLogits) {
  ModelConfig config = config_of_seven();
  config.return_embeddings = true;  // eight numbers, which would do as logits of seven tokens
  const auto model = testing::random_model(config, 2, DType::f64);
  EXPECT_EQ(message_of([&] { autoregressive_loss(*model, Scope{}, testing::random_ids(1, 2, 5, 7)); }),
            "autoregressive loss: the model returns embeddings; set return_embeddings = false");
}

TEST(AutoregressiveLoss, TokenZeroIsTrainedUnlessIgnored) {
  const auto model = testing::random_model(config_of_seven(), 2, DType::f64);
  const Tensor zeros = Tensor::zeros({1, 5}, DType::i32);
  EXPECT_EQ(autoregressive_loss(*model, Scope{}, zeros).counted, 4);
  const LanguageModelLoss ignored = autoregressive_loss(*model, Scope{}, zeros, {}, Side::right, 0);
  EXPECT_EQ(ignored.counted, 0);
  EXPECT_EQ(ignored.loss.value.item(), 0);
}

TEST(AutoregressiveLoss, NothingCountedGivesZeroGradients) {
  const auto model = testing::random_model(config_of_seven(), 2, DType::f64);
  const Scope scope{Tape::record()};
  const Tensor none = Tensor::zeros({1, 5}, DType::boolean);
  const Gradients gradients =
      scope.tape.backward(autoregressive_loss(*model, scope, testing::random_ids(1, 1, 5, 7), none).loss);
  for_each_parameter(*model, [&](const std::string& name, Parameter& p) {
    if (const Tensor g = gradients.of(p)) {
      for (double x : g.to_vector()) EXPECT_EQ(x, 0) << name;
    }
  });
}

TEST(RandomTruncation, KeepsAPrefixOfAtLeastTwo) {
  const Tensor ids = Tensor::full({64, 6}, 5, DType::i32);
  const MaskedIds cut = randomly_truncate(ids, {}, Rng(3));
  std::array<int, 7> lengths{};
  for (int row = 0; row < 64; ++row) {
    const bool* m = cut.mask.data<bool>() + row * 6;
    const auto length = std::count(m, m + 6, true);
    ++lengths[std::size_t(length)];
    for (int i = 0; i < 6; ++i) {
      EXPECT_EQ(m[i], i < length);
      EXPECT_EQ(cut.ids.data<std::int32_t>()[row * 6 + i], i < length ? 5 : 0);
    }
  }
  EXPECT_EQ(lengths[0] + lengths[1], 0);
  for (int length = 2; length <= 6; ++length) EXPECT_GT(lengths[std::size_t(length)], 0) << length;
}

TEST(RandomTruncation, RespectsTheUsersMask) {
  const MaskedIds batch = from_sequences({{1, 2, 3, 4, 5, 6}, {1, 2, 3}, {1, 2}});
  for (int seed = 0; seed < 20; ++seed) {
    const MaskedIds cut = randomly_truncate(batch.ids, batch.mask, Rng(seed));
    for (std::int64_t i = 0; i < cut.mask.count(); ++i) EXPECT_LE(cut.mask.data<bool>()[i], batch.mask.data<bool>()[i]);
  }
}

TEST(Initialisation, HasTheMomentsOfThePublishedPackage) {
  ModelConfig config = config_of_seven();
  config.num_tokens = 400;
  config.dim = 64;
  SinkhornTransformerLM model(config, Rng(1));
  for_each_parameter(model, [](const std::string& name, Parameter& p) {
    double mean = 0, square = 0;
    const std::vector<double> values = p.value.to_vector();
    for (double x : values) {
      mean += x / double(values.size());
      square += x * x / double(values.size());
    }
    const double slack = 6 / std::sqrt(double(values.size()));
    auto expect = [&](double want_mean, double want_stddev) {
      EXPECT_NEAR(mean, want_mean, slack * want_stddev + 1e-9) << name;
      EXPECT_NEAR(std::sqrt(square - mean * mean), want_stddev, slack * want_stddev + 1e-9) << name;
    };
    if (name.find("norm.weight") != std::string::npos) return expect(1, 0);
    if (name.find("norm.bias") != std::string::npos) return expect(0, 0);
    if (name.find("emb") != std::string::npos || name.find("null") != std::string::npos) return expect(0, 1);
    const double fan_in = name.find("w2") != std::string::npos ? 256 : 64;
    expect(0, 1 / std::sqrt(3 * fan_in));  // uniform within 1 / sqrt(fan_in)
  });
}

TEST(WeightTie, SharesModulesButNotNorms) {
  ModelConfig config = config_of_seven();
  config.weight_tie = true;
  SinkhornTransformerLM model(config, Rng(1));
  std::vector<std::string> names;
  for_each_parameter(model.stack(), [&](const std::string& name, Parameter&) { names.push_back(name); });
  auto has = [&](const std::string& name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  EXPECT_TRUE(has("layers.layers.0.0.fn.to_q.weight"));
  EXPECT_FALSE(has("layers.layers.1.0.fn.to_q.weight"));
  EXPECT_TRUE(has("layers.layers.1.0.norm.weight"));
}

TEST(LayerDropout, SkipsBlocksInTrainingOnlyAndKeepsOne) {
  ModelConfig config = config_of_seven();
  config.depth = 6;
  config.layer_dropout = 0.5;
  const auto model = testing::random_model(config, 2, DType::f64);
  ModelConfig first_only = config;
  const Tensor ids = testing::random_ids(1, 1, 8, 7);
  auto logits = [&](bool training, int seed) { return (*model)(Scope{{}, Rng(seed), training}, ids).value; };
  EXPECT_TRUE(equal_bits(logits(false, 1), logits(false, 2)));
  EXPECT_TRUE(equal_bits(logits(true, 1), logits(true, 1)));
  int different = 0;
  for (int seed = 0; seed < 10; ++seed) different += !equal_bits(logits(true, seed), logits(true, seed + 1));
  EXPECT_GE(different, 7);
}

TEST(FlatParameters, PointEveryParameterAtItsSlice) {
  SinkhornTransformerLM model(config_of_seven(), Rng(1));
  std::vector<double> before;
  for_each_parameter(model, [&](const std::string&, Parameter& p) {
    for (double x : p.value.to_vector()) before.push_back(x);
  });
  FlatParameters flat(model);
  EXPECT_EQ(flat.values.to_vector(), before);
  flat.values.data<float>()[flat.find("norm.bias")->begin] = 42;
  double seen = 0;
  for_each_parameter(model, [&](const std::string& name, Parameter& p) {
    if (name == "norm.bias") seen = p.value.to_vector()[0];
  });
  EXPECT_EQ(seen, 42);
}

}  // namespace
}  // namespace sinkhorn
