// Model options: one table read, checked and written in every direction, and each refused combination with its reason.
#include "models/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "autograd/error.h"
#include "models/language_model.h"

namespace sinkhorn {
namespace {

ModelConfig small() {
  ModelConfig config;
  config.num_tokens = 31, config.dim = 16, config.depth = 2, config.max_seq_len = 32;
  config.heads = 2, config.bucket_size = 4;
  return config;
}

/// What `validate` says, or "" if it accepts.
template <class Change>
std::string refusal(Change change) {
  ModelConfig config = small();
  change(config);
  try {
    validate(config);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

void expect_says(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "expected: " << part << "\nit said:  " << text;
}

TEST(ModelConfig, DefaultsAreTheLanguageModels) {
  const ModelConfig c;
  EXPECT_EQ(c.heads, 8);
  EXPECT_EQ(c.bucket_size, 64);
  EXPECT_TRUE(c.non_permutative);
  EXPECT_EQ(c.n_top_buckets, 2);
  EXPECT_EQ(c.sinkhorn_iter, 5);
  EXPECT_EQ(c.temperature, 0.75);
  EXPECT_EQ(c.context_n_sortcut, 0);
  EXPECT_TRUE(c.context_kv_projection);
  EXPECT_FALSE(c.causal || c.reversible || c.ff_glu || c.weight_tie || c.use_rezero || c.use_simple_sort_net);
  EXPECT_FALSE(c.receives_context || c.return_embeddings || c.dim_head || c.emb_dim || c.kv_bucket_size);
}

TEST(ModelConfig, DerivedNumbers) {
  ModelConfig c = small();
  EXPECT_EQ(c.head_width(), 8);
  EXPECT_EQ(c.embedding_width(), 16);
  EXPECT_EQ(c.key_bucket(), 4);
  c.dim_head = 5, c.emb_dim = 7, c.n_local_attn_heads = 2, c.kv_bucket_size = 6, c.context_bucket_size = 3;
  EXPECT_EQ(c.head_width(), 5);
  EXPECT_EQ(c.embedding_width(), 7);
  EXPECT_EQ(c.sinkhorn_heads(), 0);
  EXPECT_EQ(c.key_bucket(), 6);
  EXPECT_EQ(c.context_bucket(), 3);
  EXPECT_EQ(c.length_multiple(), 12);
  c.max_seq_len = 8192, c.bucket_size = 75;
  EXPECT_EQ(c.max_buckets(), 110);
  EXPECT_EQ(c.max_length(), 8250);
  EXPECT_EQ(c.fixed_length(), std::nullopt);
  c.use_simple_sort_net = true;
  EXPECT_EQ(c.fixed_length(), 8250);
  c.causal = true;
  EXPECT_EQ(c.fixed_length(), std::nullopt);
  c.pkm_layers = {2};
  EXPECT_FALSE(c.has_pkm(0));
  EXPECT_TRUE(c.has_pkm(1));
}

TEST(ModelConfig, AcceptsWhatMakesSense) {
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_EQ(refusal([](auto& c) { c.causal = true, c.kv_bucket_size = 4; }), "");
  EXPECT_EQ(refusal([](auto& c) { c.causal = true, c.non_permutative = false, c.sinkhorn_iter = 9; }), "");
  EXPECT_EQ(refusal([](auto& c) { c.dim = 15, c.dim_head = 4; }), "");
  EXPECT_EQ(refusal([](auto& c) { c.n_local_attn_heads = 2, c.receives_context = true; }), "");
  EXPECT_EQ(refusal([](auto& c) { c.max_seq_len = 33; }), "");
  EXPECT_EQ(refusal([](auto& c) { c.num_tokens = 0, c.max_seq_len = 0; }), "");
  EXPECT_EQ(refusal([](auto& c) { c.n_sortcut = 2, c.kv_bucket_size = 8; }), "");
  EXPECT_EQ(refusal([](auto& c) { c.pkm_layers = {1, 2}, c.pkm_num_keys = 3; }), "");
}

TEST(ModelConfig, RefusedCombinationsSayWhy) {
  expect_says(refusal([](auto& c) { c.dim = 15; }), "dim 15 does not divide by heads 2");
  expect_says(refusal([](auto& c) { c.n_local_attn_heads = 3; }), "n_local_attn_heads 3 is more than heads 2");
  expect_says(refusal([](auto& c) { c.causal = true, c.n_sortcut = 1; }), "n_sortcut");
  expect_says(refusal([](auto& c) { c.causal = true, c.kv_bucket_size = 8; }), "kv_bucket_size 8, bucket_size 4");
  expect_says(refusal([](auto& c) { c.use_simple_sort_net = true, c.kv_bucket_size = 8; }), "must equal bucket_size 4");
  expect_says(refusal([](auto& c) { c.use_simple_sort_net = true, c.num_tokens = 0, c.max_seq_len = 0; }),
              "max_seq_len");
  expect_says(refusal([](auto& c) { c.max_seq_len = 0; }), "max_seq_len");
  expect_says(refusal([](auto& c) { c.pkm_layers = {3}; }), "layer 3, but depth is 2");
  expect_says(refusal([](auto& c) { c.receives_context = true, c.context_kv_projection = false, c.dim_head = 4; }),
              "context_kv_projection");
  expect_says(refusal([](auto& c) { c.num_tokens = 0, c.return_embeddings = true; }), "return_embeddings");
  const auto grouped = [](std::int64_t heads, std::int64_t local, std::int64_t groups, bool causal) {
    return refusal([=](auto& c) {
      c.reversible = true, c.causal = causal;
      c.heads = c.dim = heads, c.n_local_attn_heads = local, c.head_groups = groups;
    });
  };
  expect_says(grouped(8, 2, 4, false), "head_groups 4 does not divide n_local_attn_heads 2");
  expect_says(grouped(8, 0, 3, false), "head_groups 3 does not divide the 8 heads that are not local");
  expect_says(grouped(8, 2, 2, true), "head_groups 2 does not divide each half of the 6 heads that are not local");
  expect_says(grouped(7, 0, 7, true), "head_groups 7 does not divide each half of the 7");
  expect_says(refusal([](auto& c) { c.head_groups = 2; }), "set reversible true or head_groups 1");
  EXPECT_EQ(grouped(8, 2, 2, false) + grouped(8, 4, 2, true) + grouped(8, 8, 8, true) + grouped(6, 3, 3, false), "");
}

TEST(ModelConfig, OutOfRangeValuesAreNamed) {
  expect_says(refusal([](auto& c) { c.dim = 0; }), "dim wants a whole number of at least 1, not 0");
  expect_says(refusal([](auto& c) { c.temperature = 0; }), "temperature wants a number above 0, not 0");
  expect_says(refusal([](auto& c) { c.temperature = NAN; }), "not nan");
  expect_says(refusal([](auto& c) { c.attn_dropout = 1; }), "attn_dropout wants a number from 0 and below 1, not 1");
  expect_says(refusal([](auto& c) { c.pkm_layers = {0}; }), "pkm_layers");
  expect_says(refusal([](auto& c) { c.pkm_num_keys = 46341; }), "pkm_num_keys");
  expect_says(refusal([](auto& c) { c.bucket_size = -4; }), "bucket_size");
  expect_says(refusal([](auto& c) { c.depth = 65537; }), "depth wants a whole number from 1 to 65536, not 65537");
  expect_says(refusal([](auto& c) { c.heads = std::int64_t(1) << 40; }),
              "heads wants a whole number of at least 1 and at most 2147483647, not 1099511627776");
}

TEST(ModelConfig, LeastParametersCountContextsAndSortNets) {
  for (const bool projects : {true, false})
    for (const bool ties : {true, false})
      for (const bool causal : {true, false}) {
        ModelConfig c = small();
        c.receives_context = c.use_simple_sort_net = true;
        c.context_kv_projection = projects, c.weight_tie = ties, c.causal = causal;
        c.n_top_buckets = 40, c.n_local_attn_heads = 1, c.max_seq_len = 400;
        SinkhornTransformerLM model(c, Rng(1));
        double count = 0;
        for_each_parameter(model, [&](const std::string&, const Parameter& p) { count += double(p.value.count()); });
        EXPECT_LE(c.least_parameters(), count);
        EXPECT_GE(c.least_parameters(), 0.97 * count);
      }
}

/// A configuration in which every field differs from its default.
ModelConfig all_changed() {
  ModelConfig config;
  for (const auto& field : fields(config)) {
    if (auto* flag = std::get_if<bool*>(&field.slot)) **flag = !**flag;
    if (auto* whole = std::get_if<std::int64_t*>(&field.slot)) **whole += 3;
    if (auto* number = std::get_if<double*>(&field.slot)) **number += 0.1;
    if (auto* maybe = std::get_if<std::optional<std::int64_t>*>(&field.slot)) **maybe = 12;
    if (auto* list = std::get_if<std::vector<std::int64_t>*>(&field.slot)) **list = {1, 4};
  }
  return config;
}

TEST(ModelConfig, JsonHoldsEveryFieldBothWays) {
  EXPECT_EQ(model_config_from_json(to_json(all_changed())), all_changed());
  EXPECT_EQ(model_config_from_json(to_json(small())), small());
  EXPECT_EQ(model_config_from_json("{}"), ModelConfig());
  ModelConfig a = all_changed(), b;
  const Fields ours = fields(a), theirs = fields(b);
  const std::string lines = differences(ours, theirs, "here", "there");
  EXPECT_EQ(std::size_t(std::count(lines.begin(), lines.end(), '\n')) + 1, ours.size()) << lines;
  expect_says(lines, "heads: 11 here, 8 there");
}

TEST(ModelConfig, TableHasThePublishedNamesAndOneOfOurs) {
  const std::set<std::string> published = {"num_tokens",
                                           "dim",
                                           "depth",
                                           "max_seq_len",
                                           "heads",
                                           "dim_head",
                                           "bucket_size",
                                           "kv_bucket_size",
                                           "context_bucket_size",
                                           "causal",
                                           "non_permutative",
                                           "sinkhorn_iter",
                                           "n_sortcut",
                                           "temperature",
                                           "reversible",
                                           "ff_chunks",
                                           "ff_glu",
                                           "ff_dropout",
                                           "attn_dropout",
                                           "attn_layer_dropout",
                                           "layer_dropout",
                                           "emb_dropout",
                                           "weight_tie",
                                           "emb_dim",
                                           "return_embeddings",
                                           "use_simple_sort_net",
                                           "receives_context",
                                           "context_n_sortcut",
                                           "context_kv_projection",
                                           "n_local_attn_heads",
                                           "use_rezero",
                                           "n_top_buckets",
                                           "pkm_layers",
                                           "pkm_num_keys",
                                           "pkm_heads",
                                           "pkm_topk",
                                           "pkm_dim_head"};
  std::set<std::string> expected = published;
  expected.insert("head_groups");
  ModelConfig config;
  std::set<std::string> names;
  std::set<const void*> slots;
  for (const auto& field : fields(config)) {
    names.insert(field.name);
    std::visit([&](auto* slot) { slots.insert(slot); }, field.slot);
  }
  EXPECT_EQ(names, expected);
  EXPECT_EQ(slots.size(), expected.size());
}

std::string json_refusal(const std::string& json, const std::vector<std::string>& beside = {}) {
  try {
    model_config_from_json(json, "file.safetensors", beside);
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

TEST(ModelConfig, JsonOfOthers) {
  const std::string fixture =
      R"({"dim": 16, "heads": 2, "dim_head": null, "pkm_layers": [], "ff_dropout": 0.0, "autopad": "left"})";
  EXPECT_EQ(json_refusal(fixture, {"autopad"}), "");
  expect_says(json_refusal(fixture), "file.safetensors: unknown option \"autopad\"");
  expect_says(json_refusal(R"({"dmi": 16})"), "did you mean \"dim\"?");
  expect_says(json_refusal(R"({"n_top_bucket": 1})"), "did you mean \"n_top_buckets\"?");
  EXPECT_EQ(json_refusal(R"({"frobnicate": 1})").find("did you mean"), std::string::npos);
  expect_says(json_refusal(R"({"dim": "wide"})"), "dim wants a whole number of at least 1, not \"wide\"");
  expect_says(json_refusal(R"({"dim": 1.5})"), "not 1.5");
  expect_says(json_refusal(R"({"dim": 18446744073709551615})"), "dim wants");
  expect_says(json_refusal(R"({"causal": 1})"), "causal wants true or false");
  expect_says(json_refusal(R"({"pkm_layers": [1, "2"]})"), "pkm_layers wants whole numbers");
  expect_says(json_refusal(R"({"pkm_layers": 1})"), "pkm_layers wants whole numbers");
  expect_says(json_refusal("[]"), "expected a JSON object");
  expect_says(json_refusal("{\"dim\": "), "expected a JSON object");
  expect_says(json_refusal(""), "expected a JSON object");
}

TEST(Fields, NearestName) {
  EXPECT_EQ(nearest("teh", {"the", "train"}), "the");
  EXPECT_EQ(nearest("xyz", {"the", "train"}), "");
  EXPECT_EQ(nearest("bucket", {"bucket_size", "n_top_buckets"}), "bucket_size");
  EXPECT_EQ(nearest("badc", {"abcd"}), "abcd");  // two swaps of neighbours
  EXPECT_EQ(nearest("", {"dim"}), "");
}

}  // namespace
}  // namespace sinkhorn
