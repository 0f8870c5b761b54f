// Single rules of the model, each by the plainest case that shows it.
#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "tests/models/random_model.h"

namespace sinkhorn::testing {
namespace {

/// A small model of two layers; `change` makes it the one under test.
ModelConfig small(const std::function<void(ModelConfig&)>& change = {}) {
  ModelConfig config{.num_tokens = 11, .dim = 12, .depth = 2, .max_seq_len = 24, .heads = 4, .bucket_size = 3};
  if (change) change(config);
  return config;
}

Tensor logits(const SinkhornTransformerLM& model, const Scope& scope = {}) {
  return model(scope, random_ids(5, 2, 24, model.config().num_tokens)).value;
}

TEST(AxialPositions, AreSumsOfTheirTables) {
  Initializer init(Rng(1), DType::f64);
  const AxialPositions positions(3, 2, 4, 1, init);
  const Tensor all = positions(Scope{}, 5).value;
  const double *rows = positions.rows.value.data<double>(), *columns = positions.columns.value.data<double>();
  for (std::int64_t t = 0; t < 5; ++t)
    for (std::int64_t e = 0; e < 4; ++e)
      EXPECT_EQ(all.data<double>()[t * 4 + e], rows[t / 2 * 4 + e] + columns[t % 2 * 4 + e]);
}

TEST(AxialPositions, OfTwoWidthsStandOneBehindTheOther) {
  Initializer init(Rng(1), DType::f64);
  const AxialPositions positions(3, 2, 5, {3, 2}, 1, init);
  const Tensor all = positions(Scope{}, 5).value;
  ASSERT_EQ(all.shape(), (Shape{5, 5}));
  for (std::int64_t t = 0; t < 5; ++t)
    for (std::int64_t e = 0; e < 5; ++e)
      EXPECT_EQ(all.data<double>()[t * 5 + e], e < 3 ? positions.rows.value.data<double>()[t / 2 * 3 + e]
                                                     : positions.columns.value.data<double>()[t % 2 * 2 + e - 3]);
  EXPECT_THROW(AxialPositions(3, 2, 4, {3, 2}, 1, init), Error);
}

TEST(ReZero, IsTheIdentityAtTheStart) {
  ModelConfig config = small([](ModelConfig& c) { c.use_rezero = true; });
  config.num_tokens = 0;
  Initializer init(Rng(1), DType::f64);
  const SinkhornTransformer model(config, init);
  const Tensor x = normal(Rng(2), {2, 24, 12}, 0, 1, DType::f64);
  EXPECT_TRUE(equal_bits(model(Scope{}, x).value, x));
}

TEST(Attention, HeadsNeedNotDivideTheWidth) {
  const SinkhornTransformerLM model(small([](ModelConfig& c) {
    c.dim = 1023;
    c.heads = 8;
    c.dim_head = 25;
    c.depth = 1;
  }));
  EXPECT_EQ(logits(model).shape(), (Shape{2, 24, 11}));
}

TEST(Attention, TakesEmptyBatchesSequencesAndContexts) {
  const std::vector<std::function<void(ModelConfig&)>> kinds = {
      [](ModelConfig& c) { c.causal = true; },
      [](ModelConfig&) {},
      [](ModelConfig& c) { c.n_local_attn_heads = 4; },
      [](ModelConfig& c) { c.n_sortcut = c.context_n_sortcut = 2; },
      [](ModelConfig& c) { c.non_permutative = false; },
      [](ModelConfig& c) { c.non_permutative = false, c.n_sortcut = c.context_n_sortcut = 2; },
  };
  for (const auto& kind : kinds) {
    ModelConfig config = small(kind);
    config.num_tokens = 0;
    config.receives_context = true;
    Initializer init(Rng(1), DType::f64);
    SinkhornTransformer model(config, init);
    const auto run = [&](std::int64_t batch, std::int64_t length, std::int64_t context, const Tensor& mask = {}) {
      const auto numbers = [&](std::int64_t tokens, std::uint64_t seed) {
        return Var(normal(Rng(seed), {batch, tokens, 12}, 0, 1, DType::f64));
      };
      return model(Scope{}, numbers(length, 2), {{}, numbers(context, 3), mask}).value;
    };
    for (const bool composed : {false, true}) {
      SCOPED_TRACE(describe(config) + (composed ? " composed" : ""));
      model.use_composed_attention(composed);
      EXPECT_EQ(run(0, 6, 3).shape(), (Shape{0, 6, 12}));
      EXPECT_EQ(run(2, 0, 3).shape(), (Shape{2, 0, 12}));
      // No context is what a context of padding is.
      EXPECT_TRUE(equal_bits(run(2, 6, 0), run(2, 6, 3, Tensor::zeros({2, 3}, DType::boolean))));
    }
  }
}

TEST(SimpleSortNet, LooksBothWaysOverOneLengthOnly) {
  const SinkhornTransformerLM model(small([](ModelConfig& c) { c.use_simple_sort_net = true; }));
  EXPECT_EQ(logits(model).shape(), (Shape{2, 24, 11}));
  EXPECT_THROW(model(Scope{}, random_ids(5, 2, 12, 11)), Error);
  // padding brings it to that length
  EXPECT_EQ(padded(model, Scope{}, random_ids(5, 2, 7, 11)).value.shape(), (Shape{2, 7, 11}));
}

TEST(Dropouts, ActInTrainingOnlyAndFollowTheirStream) {
  double ModelConfig::*const rates[] = {&ModelConfig::emb_dropout, &ModelConfig::attn_dropout,
                                        &ModelConfig::attn_layer_dropout, &ModelConfig::ff_dropout};
  const SinkhornTransformerLM without(small(), Rng(3));
  for (const auto rate : rates) {
    const SinkhornTransformerLM model(small([&](ModelConfig& c) { c.*rate = 0.3; }), Rng(3));
    const Tensor evaluated = logits(model);
    EXPECT_TRUE(equal_bits(evaluated, logits(without)));
    auto trained = [&](std::uint64_t stream) { return logits(model, {.rng = Rng(stream), .training = true}); };
    EXPECT_FALSE(equal_bits(trained(1), evaluated));
    EXPECT_FALSE(equal_bits(trained(1), trained(2)));
    EXPECT_TRUE(equal_bits(trained(1), trained(1)));
  }
}

TEST(GumbelNoise, ComesWithTrainingOnlyAndFollowsItsStream) {
  const SinkhornTransformerLM model(small([](ModelConfig& c) { c.non_permutative = false; }), Rng(3));
  auto trained = [&](std::uint64_t stream) { return logits(model, {.rng = Rng(stream), .training = true}); };
  EXPECT_FALSE(equal_bits(trained(1), logits(model)));
  EXPECT_FALSE(equal_bits(trained(1), trained(2)));
  EXPECT_TRUE(equal_bits(trained(1), trained(1)));
}

/// Attention over vectors of 8 in two heads of 4, buckets of 3.
AttentionOptions two_heads(bool causal, bool cross) {
  return {.dim = 8,
          .heads = 2,
          .width = 4,
          .bucket = 3,
          .key_bucket = 3,
          .max_buckets = 4,
          .causal = causal,
          .cross = cross};
}

Tensor attend(const SinkhornAttention& module, const Tensor& x) {
  const AttentionContext context({}, module.options.cross ? Var(normal(Rng(8), {2, 9, 8}, 0, 1, DType::f64)) : Var());
  return module(Scope{}, x, context).value;
}

/// Calls check(options) for every way in which a layer routes by top-k.
template <class Check>
void for_every_routing(Check check) {
  for (const bool cross : {false, true})
    for (const bool causal : {false, true})
      for (const bool simple : {false, true})
        for (const std::int64_t sortcut : {0, 2}) {
          if ((cross && simple) || (causal && !cross && sortcut > 0)) continue;
          AttentionOptions options = two_heads(causal, cross);
          options.simple_sort_net = simple;
          options.sortcut = sortcut;
          check(options);
        }
}

TEST(Temperature, IsHonouredInEveryTopK) {
  for_every_routing([](AttentionOptions options) {
    auto weights = [&](double temperature) {
      options.temperature = temperature;
      Initializer init(Rng(1), DType::f64);
      const SinkhornAttention module(options, init);
      const Tensor x = normal(Rng(2), {2, 12, 8}, 0, 1, DType::f64);
      const Var q = reshape(module.to_q(Scope{}, x), {2, 12, 2, 4});
      const Var source = options.cross ? normal(Rng(8), {2, 9, 8}, 0, 1, DType::f64) : x;
      const Var kv = reshape((*module.to_kv)(Scope{}, source), {2, -1, 2, 2, 4});
      if (module.is_causal())
        return module.causal_sort_net(Scope{}, q, kv, 3, 0, 1, temperature, {}).weights.value.to_vector();
      const SortOptions sort{module.pattern(), 1, options.sortcut, temperature, 1, options.causal};
      return module.sort_net.route(Scope{}, q, kv, sort, {}).weights.value.to_vector();
    };
    const std::vector<double> warm = weights(1), cold = weights(1e-9);
    EXPECT_LT(*std::min_element(warm.begin(), warm.end()), 0.9);
    // One-hot, but for rows whose largest logits are equal (scores that a ReLU made 0), which share.
    std::size_t one_hot = 0;
    for (const double w : cold) {
      EXPECT_NEAR(1 / w, std::round(1 / w), 1e-6);
      one_hot += w > 0.99;
    }
    EXPECT_GT(2 * one_hot, cold.size());
  });
}

// With the values' half of the projection at 0 nothing but the output's bias is left.
TEST(Attention, ValuesComeFromValues) {
  for_every_routing([](const AttentionOptions& options) {
    for (const bool by_top_k : {true, false}) {
      AttentionOptions o = options;
      o.by_top_k = by_top_k;
      Initializer init(Rng(1), DType::f64);
      SinkhornAttention module(o, init);
      std::fill_n(module.to_kv->weight.value.data<double>() + 8 * 8, 8 * 8, 0.0);
      if (module.is_causal()) module.null_values.value = Tensor::zeros({2, 1, 4}, DType::f64);
      const Tensor y = attend(module, normal(Rng(2), {2, 12, 8}, 0, 1, DType::f64));
      for (std::int64_t i = 0; i < y.count(); ++i)
        ASSERT_EQ(y.data<double>()[i], module.to_out.bias.value.data<double>()[i % 8]);
    }
  });
}

// Windows of 3: a query sees its own and the one before, and if not causal the one after.
TEST(LocalHeads, AreDenseAttentionUnderAMask) {
  for (const bool causal : {true, false}) {
    const std::int64_t length = 12, b = 3;
    const Var q = normal(Rng(1), {1, length, 1, 4}, 0, 1, DType::f64);
    const Var kv = normal(Rng(2), {1, length, 2, 1, 4}, 0, 1, DType::f64);
    const Tensor none(Shape{1, 0, length / b, 1}, DType::f64), no_picks(Shape{1, 0, length / b, 1}, DType::i32);
    const NullBlock null{Tensor(Shape{0, 1, 4}, DType::f64), Tensor(Shape{0, 1, 4}, DType::f64)};
    const Tensor got = bucketed_attention(q, kv, {none, no_picks}, null, {b, b, 1, causal}).value;
    Tensor allowed(Shape{length, length}, DType::boolean);
    for (std::int64_t i = 0; i < length; ++i)
      for (std::int64_t j = 0; j < length; ++j)
        allowed.data<bool>()[i * length + j] = std::abs(i / b - j / b) <= 1 && (!causal || j <= i);
    auto part = [&](std::int64_t i) { return reshape(slice(kv, 2, i, i + 1), {length, 4}); };
    const Var scores = scale(matmul(reshape(q, {length, 4}), part(0), false, true), 0.5);
    const Tensor want = matmul(softmax(scores, allowed), part(1)).value;
    EXPECT_LE(relative_error(got.reshape({length, 4}), want), 1e-14) << causal;
  }
}

// In bf16 the positions 4,000 and 4,001 are one number; here no position is ever rounded.
TEST(LocalHeads, KeepTheirOrderInBf16FarOut) {
  const std::int64_t length = 4096, b = 64;
  const Tensor q = normal(Rng(1), {1, length, 1, 4}, 0, 1, DType::bf16);
  const Tensor kv = normal(Rng(2), {1, length, 2, 1, 4}, 0, 1, DType::bf16);
  auto run = [&](const Tensor& keys) {
    const Tensor none(Shape{1, 0, length / b, 1}, DType::bf16), no_picks(Shape{1, 0, length / b, 1}, DType::i32);
    const NullBlock null{Tensor(Shape{0, 1, 4}, DType::bf16), Tensor(Shape{0, 1, 4}, DType::bf16)};
    return bucketed_attention(q, keys, {none, no_picks}, null, {b, b, 1, true}).value;
  };
  const Tensor before = run(kv);
  for (const std::int64_t changed : {257, 1023, 4001}) {
    Tensor other = kv.clone();
    for (std::int64_t e = 0; e < 8; ++e) other.data<bf16>()[changed * 8 + e] = bf16(3.0f);
    const Tensor after = run(other);
    EXPECT_TRUE(
        equal_bits(before.reshape({length, 4}).slice(0, changed), after.reshape({length, 4}).slice(0, changed)));
    EXPECT_FALSE(equal_bits(before, after));
  }
}

TEST(FeedForward, InUnevenChunksIsTheSame) {
  for (const bool gated : {false, true}) {
    auto output = [&](std::int64_t chunks) {
      Initializer init(Rng(1), DType::f64);
      const FeedForward module(4, gated, 0, chunks, init);
      return module(Scope{}, normal(Rng(2), {2, 7, 4}, 0, 1, DType::f64)).value;
    };
    for (const std::int64_t chunks : {0, 2, 3, 7, 20}) EXPECT_LE(relative_error(output(chunks), output(1)), 1e-14);
  }
}

// Pieces draw dropout each for itself, so that it tells of them.
TEST(FeedForward, DrawsForNoSmallerPiecesThanFillAGpu) {
  const auto output = [](std::int64_t chunks, std::int64_t least) {
    Initializer init(Rng(1), DType::f64);
    FeedForward module(4, false, 0.5, chunks, init);
    module.least_piece = least;
    return module(Scope{{}, Rng(4), true}, normal(Rng(2), {2, 7, 4}, 0, 1, DType::f64)).value;
  };
  EXPECT_TRUE(equal_bits(output(3, 14), output(1, 1)));
  EXPECT_TRUE(equal_bits(output(3, 7), output(2, 1)));
  EXPECT_FALSE(equal_bits(output(3, 7), output(3, 1)));
}

// The residual is added piece by piece, too, and in place where it may be.
TEST(FeedForward, AddsItsPiecesToTheResidual) {
  const auto drawn = [](std::uint64_t key) { return uniform(Rng(key), {2, 7, 4}, -1, 1, DType::f64); };
  const Tensor x = drawn(1), onto = drawn(2);
  for (const double dropout : {0.0, 0.3}) {
    for (const std::int64_t chunks : {1, 3}) {
      Initializer init(Rng(3), DType::f64);
      FeedForward module(4, false, dropout, chunks, init);
      module.least_piece = 1;
      const Scope without{{}, Rng(4), true}, with{Tape::record(), Rng(4), true};
      const Tensor alone = module(without, x).value, sum = add(onto, alone).value;
      EXPECT_LE(relative_error(module(with, x).value, alone), 1e-14);
      for (const Scope& scope : {without, with}) {
        EXPECT_LE(relative_error(module(scope, x, {onto}).value, sum), 1e-14);
        const Tensor stream = onto.clone();
        const Tensor there = module(scope, x, {.onto = stream, .in_place = true}).value;
        EXPECT_LE(relative_error(there, sum), 1e-14);
        EXPECT_TRUE(scope.tape || there.raw() == stream.raw());
        EXPECT_LE(relative_error(module(scope, x, {.onto = there, .undo = true}).value, onto), 1e-14);
      }
    }
  }
}

TEST(EncoderDecoder, WithoutAContextMaskAllOfTheContextIsReal) {
  Dice dice(4);
  EncoderDecoderConfig pair = random_pair_config(dice);
  const SinkhornTransformerLM decoder(pair.decoder, Rng(1), DType::f64);
  const std::int64_t length = pair.decoder.fixed_length().value_or(pair.decoder.length_multiple() * 2);
  const std::int64_t context_length = pair.decoder.context_bucket() * 3;
  const Var context = normal(Rng(2), {2, context_length, pair.decoder.dim}, 0, 1, DType::f64);
  const Tensor ids = random_ids(1, 2, length, 7), mask = random_mask(dice, Padding::left, 2, length);
  const Tensor all = Tensor::full({2, context_length}, 1, DType::boolean);
  EXPECT_TRUE(
      equal_bits(decoder(Scope{}, ids, {mask, context}).value, decoder(Scope{}, ids, {mask, context, all}).value));
}

TEST(EncoderDecoder, ConfigsThatDoNotFitAreRefused) {
  EncoderDecoderConfig good{small([](ModelConfig& c) { c.return_embeddings = true; }),
                            small([](ModelConfig& c) { c.causal = c.receives_context = true; })};
  validate(good);
  auto refused = [&](auto change, const char* part) {
    EncoderDecoderConfig bad = good;
    change(bad);
    try {
      validate(bad);
      ADD_FAILURE() << part;
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  refused([](auto& c) { c.encoder.return_embeddings = false; }, "return_embeddings");
  refused([](auto& c) { c.decoder.receives_context = false; }, "receives_context");
  refused([](auto& c) { c.encoder.dim = 16; }, "must be the decoder's dim 12");
  refused([](auto& c) { c.decoder.num_tokens = 0; }, "num_tokens");
  const EncoderDecoder model(good, Rng(1), DType::f64);
  const MaskedIds some{random_ids(1, 1, 5, 11), {}};
  EXPECT_EQ(model(Scope{}, some, {random_ids(2, 1, 4, 11), {}}).value.shape(), (Shape{1, 4, 11}));
  EXPECT_THROW(model.decoder()(Scope{}, random_ids(2, 1, 3, 11)), Error);  // no context
}

}  // namespace
}  // namespace sinkhorn::testing
