// Incremental decoding: the logits of the full forward, position by position, at a cost that does not grow.
#include "models/decoder.h"

#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "autograd/pool.h"
#include "tests/models/random_model.h"

namespace sinkhorn::testing {
namespace {

using Tokens = std::vector<std::int32_t>;

enum class Reads { nothing, context };

/// A causal decoder's options for its context.
ModelConfig with_context(ModelConfig c, Dice& dice) {
  c.receives_context = true;
  c.context_bucket_size = dice.between(1, 4);
  c.context_n_sortcut = dice.chance(0.4) ? dice.between(1, 3) : 0;
  c.context_kv_projection = c.heads * c.head_width() != c.dim || dice.chance(0.7);
  return c;
}

/// A random model and texts that fill it, with the logits (T, V) of a full forward over each.
struct Texts {
  Texts(std::uint64_t seed, DType dtype, int rows, Reads reads = Reads::nothing)
      : dice(seed), config(random_config(dice)) {
    if (reads == Reads::context) {
      config = with_context(config, dice);
      const std::int64_t length = dice.between(1, 12);
      around.context = uniform(Rng(seed).split(7), {rows, length, config.dim}, -1, 1, dtype);
      around.context_mask = random_mask(dice, Padding(dice.upto(3)), rows, length);
      if (around.context_mask && dice.chance(0.2)) std::fill_n(around.context_mask.data<bool>(), length, false);
    }
    model = random_model(config, seed, dtype);
    const auto exact = twin();
    for (int row = 0; row < rows; ++row) {
      const Tensor ids = random_ids(seed * 100 + std::uint64_t(row), 1, config.max_length(), config.num_tokens);
      const std::span<std::int32_t> span = ids.span<std::int32_t>();
      texts.emplace_back(span.begin(), span.end());
      const auto logits = [&](const SinkhornTransformerLM& m, DType as) {
        return padded(m, Scope{}, ids, around_row(row, as)).value.reshape({-1, config.num_tokens});
      };
      full.push_back(logits(*model, dtype));
      rounding.push_back(relative_error(full.back().to(DType::f64), logits(*exact, DType::f64)));
    }
  }
  /// The context of one row.
  AttentionContext around_row(std::int64_t row, DType as) const {
    if (!around.context.value) return {};
    const Tensor& mask = around.context_mask;
    return {{}, around.context.value.slice(row, row + 1).to(as), mask ? mask.slice(row, row + 1) : Tensor()};
  }
  /// The same model in f64.
  std::unique_ptr<SinkhornTransformerLM> twin() const {
    Tensors values;
    for_each_parameter(*model, [&](const std::string&, Parameter& p) { values.push_back(p.value.to(DType::f64)); });
    auto exact = random_model(config, 0, DType::f64);
    std::size_t next = 0;
    for_each_parameter(*exact, [&](const std::string&, Parameter& p) { p.value = values[next++]; });
    return exact;
  }
  /// 1e-12 in f64 and 1e-5 in f32, unless the model multiplies roundings, which the full forward's show. The decoder's
  /// fall elsewhere, so that theirs may come out some times as large.
  double tolerance(std::size_t row) const { return model_is_f64() ? 1e-12 : std::max(1e-5, 8 * rounding[row]); }
  bool model_is_f64() const { return full[0].dtype() == DType::f64; }
  Tokens prefix(std::size_t row, std::int64_t length) const {
    return {texts[row].begin(), texts[row].begin() + std::ptrdiff_t(length)};
  }
  /// How far logits (1, V) are from those of the full forward, measured by the largest logit of the text.
  double error(const Tensor& logits, std::size_t row, std::int64_t position) const {
    const Tensor mixed = full[row].clone();
    EXPECT_EQ(logits.bytes(), mixed.slice(position, position + 1).bytes());
    std::copy_n(logits.raw(), logits.bytes(), mixed.slice(position, position + 1).raw());
    return relative_error(mixed, full[row]);
  }

  Dice dice;
  ModelConfig config;
  std::unique_ptr<SinkhornTransformerLM> model;
  std::vector<Tokens> texts;
  Tensors full;
  AttentionContext around;       // of all rows
  std::vector<double> rounding;  // how far `full` is from the logits in f64
};

class DecodedLogits : public ::testing::TestWithParam<std::tuple<DType, Reads>> {
 protected:
  Texts texts(int seed, int rows) const {
    return {std::uint64_t(seed), std::get<0>(GetParam()), rows, std::get<1>(GetParam())};
  }
};

TEST_P(DecodedLogits, FromTheFirstTokenOn) {
  for (int seed = 0; seed < configurations(150, 1500); ++seed) {
    const Texts t = texts(seed, 1);
    IncrementalDecoder decoder(*t.model, 1, 0, t.around);
    for (std::int64_t p = 0; p < t.config.max_length(); ++p) {
      const Tensor logits = decoder.step(Tokens{0}, Tokens{t.texts[0][std::size_t(p)]});
      ASSERT_LE(t.error(logits, 0, p), t.tolerance(0))
          << "position " << p << " seed " << seed << " " << describe(t.config);
    }
  }
}

TEST_P(DecodedLogits, AfterPromptsOfUnequalLength) {
  for (int seed = 0; seed < configurations(100, 1000); ++seed) {
    Texts t = texts(seed, 3);
    const std::int64_t longest = t.config.max_length();
    IncrementalDecoder decoder(*t.model, 3, 0, t.around);
    const Tokens rows{2, 0, 1};  // the order of a batch is its own
    std::vector<Tokens> prompts;
    for (const std::int32_t row : rows) prompts.push_back(t.prefix(std::size_t(row), t.dice.between(1, longest)));
    Tensor logits = decoder.prefill(rows, prompts);
    Tokens active = rows;
    while (!active.empty()) {
      for (std::size_t i = 0; i < active.size(); ++i) {
        const std::int64_t position = decoder.length(active[i]) - 1;
        ASSERT_LE(t.error(logits.slice(std::int64_t(i), std::int64_t(i) + 1), std::size_t(active[i]), position),
                  t.tolerance(std::size_t(active[i])))
            << "row " << active[i] << " position " << position << " seed " << seed << " " << describe(t.config);
      }
      std::erase_if(active, [&](std::int32_t row) { return decoder.length(row) == longest; });
      Tokens next;
      for (const std::int32_t row : active) next.push_back(t.texts[std::size_t(row)][std::size_t(decoder.length(row))]);
      logits = decoder.step(active, next);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Of, DecodedLogits,
                         ::testing::Combine(::testing::Values(DType::f64, DType::f32),
                                            ::testing::Values(Reads::nothing, Reads::context)),
                         [](const auto& info) {
                           std::ostringstream name;
                           name << std::get<0>(info.param)
                                << (std::get<1>(info.param) == Reads::context ? "WithContext" : "");
                           return name.str();
                         });

// In bf16 the roundings of a token's own products and of a whole matrix differ, and may tip a choice of buckets;
// without sorting heads only the last digits differ.
TEST(DecodingInBf16, LocalHeads) {
  ModelConfig config;
  config.causal = true;
  config.num_tokens = 7;
  config.dim = 16;
  config.depth = 2;
  config.heads = config.n_local_attn_heads = 2;
  config.bucket_size = 4;
  config.max_seq_len = 16;
  const auto model = random_model(config, 1, DType::bf16);
  const Tensor ids = random_ids(1, 1, 16, 7), full = (*model)(Scope{}, ids).value.reshape({16, 7});
  IncrementalDecoder decoder(*model, 1);
  for (std::int64_t p = 0; p < 16; ++p)
    EXPECT_LE(relative_error(decoder.step(Tokens{0}, Tokens{ids.data<std::int32_t>()[p]}), full.slice(p, p + 1)), 0.05);
}

TEST(Decoding, ARowThatBeginsAnewIsAsNew) {
  for (int seed = 0; seed < 20; ++seed) {
    const Texts t(std::uint64_t(seed), DType::f32, 1, seed % 2 ? Reads::context : Reads::nothing);
    const std::int64_t longest = t.config.max_length();
    IncrementalDecoder used(*t.model, 1, 0, t.around), fresh(*t.model, 1, 0, t.around);
    used.prefill(Tokens{0}, {t.texts[0]});
    const Tokens text(t.texts[0].begin() + std::ptrdiff_t(longest / 2), t.texts[0].end());
    EXPECT_TRUE(equal_bits(used.prefill(Tokens{0}, {text}), fresh.prefill(Tokens{0}, {text})));
    for (std::int64_t p = std::int64_t(text.size()); p < longest; ++p)
      EXPECT_TRUE(equal_bits(used.step(Tokens{0}, Tokens{1}), fresh.step(Tokens{0}, Tokens{1}))) << p;
  }
}

// What a step computes lives in the pool; what that needs at most does not grow with the text.
TEST(Decoding, AStepNeedsTheSameMemoryHoweverLongTheText) {
  ModelConfig config;
  config.causal = true;
  config.num_tokens = 16;
  config.dim = 32;
  config.depth = 2;
  config.heads = 4;
  config.n_local_attn_heads = 1;
  config.bucket_size = 8;
  config.max_seq_len = 1024;
  const auto model = random_model(config, 1, DType::f32);
  Pool& pool = Pool::of(Device::cpu);
  const auto cost = [&](auto&& work) {
    const std::size_t before = pool.stats().in_use;
    pool.reset_peak();
    work();
    return pool.stats().peak - before;
  };
  IncrementalDecoder decoder(*model, 1);
  const Tokens text(512, 3);
  const std::size_t early = cost([&] { decoder.step(Tokens{0}, Tokens{3}); });
  const std::size_t whole = cost([&] { decoder.prefill(Tokens{0}, {text}); });
  for (int i = 0; i < 20; ++i) EXPECT_LE(cost([&] { decoder.step(Tokens{0}, Tokens{3}); }), early) << i;
  EXPECT_LT(early * 100, whole);
}

TEST(Decoding, RefusesWhatDoesNotFit) {
  const Texts t(1, DType::f64, 1);
  const std::int32_t longest = std::int32_t(t.config.max_length());
  IncrementalDecoder decoder(*t.model, 2);
  EXPECT_EQ(decoder.capacity(), longest);
  EXPECT_THROW(decoder.prefill(Tokens{0}, {{}}), Error);
  EXPECT_THROW(decoder.prefill(Tokens{0}, {Tokens(std::size_t(longest) + 1)}), Error);
  EXPECT_THROW(decoder.prefill(Tokens{0}, {{1}, {2}}), Error);
  EXPECT_THROW(decoder.prefill(Tokens{0, 0}, {{1}, {2}}), Error);
  EXPECT_THROW(decoder.step(Tokens{2}, Tokens{1}), Error);
  EXPECT_THROW(decoder.step(Tokens{-1}, Tokens{1}), Error);
  EXPECT_THROW(decoder.step(Tokens{0, 1}, Tokens{1}), Error);
  EXPECT_THROW(decoder.step(Tokens{0}, Tokens{7}), UsageError);
  decoder.prefill(Tokens{0}, {t.texts[0]});
  EXPECT_THROW(decoder.step(Tokens{0}, Tokens{1}), Error);  // full
  EXPECT_THROW(IncrementalDecoder(*t.model, 1, longest + 1), Error);
  const Texts reader(1, DType::f64, 1, Reads::context);
  EXPECT_THROW(IncrementalDecoder(*reader.model, 1), Error);                    // no context
  EXPECT_THROW(IncrementalDecoder(*reader.model, 2, 0, reader.around), Error);  // of one row
  EXPECT_THROW(IncrementalDecoder(*t.model, 1, 0, reader.around), Error);       // a context that nothing would read
  EXPECT_THROW(IncrementalDecoder(*t.model, 2, 0, Tensor::full({2, longest}, 1, DType::boolean)), Error);
  AttentionContext no_booleans = reader.around;
  no_booleans.context_mask = Tensor::zeros(Shape{1, no_booleans.context.shape()[1]}, DType::f32);
  EXPECT_THROW(IncrementalDecoder(*reader.model, 1, 0, no_booleans), Error);
  ModelConfig features = t.config;
  features.return_embeddings = true;
  EXPECT_THROW(IncrementalDecoder(*random_model(features, 1, DType::f64), 1), UsageError);
}

}  // namespace
}  // namespace sinkhorn::testing
