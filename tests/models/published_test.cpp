// Weights of the published package: its prefixes, tied names, rounded tables and buffers, and what was corrected.
#include "models/published.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "models/corrected_defects.h"
#include "models/weights.h"
#include "tests/models/random_model.h"

namespace sinkhorn::published {
namespace {

using testing::random_model;

/// A file in memory of named tensors.
struct Package {
  explicit Package(std::vector<std::pair<std::string, Tensor>> tensors) : tensors(std::move(tensors)) {}
  explicit Package(SinkhornTransformerLM& model, const std::string& prefix = "") : tensors(tensors_of(model)) {
    for (auto& [name, tensor] : tensors) name = prefix + name;
  }
  safetensors::File file() const {
    const testing::TemporaryFolder folder;
    std::vector<safetensors::Item> items;
    for (const auto& [name, tensor] : tensors) items.push_back(to_item(name, tensor));
    safetensors::write(folder.path / "file", {}, items);
    return safetensors::read(folder.path / "file");
  }
  Tensor& at(const std::string& name) {
    return std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.first == name; })->second;
  }
  void erase(const std::string& name) {
    std::erase_if(tensors, [&](const auto& t) { return t.first == name; });
  }
  std::vector<std::pair<std::string, Tensor>> tensors;
};

ModelConfig small() {
  ModelConfig c;
  c.causal = true;
  c.num_tokens = 7;
  c.dim = 8;
  c.heads = 2;
  c.depth = 3;
  c.bucket_size = 4;
  c.max_seq_len = 16;
  return c;
}

int count(const Matching& matching, Fate fate) {
  return int(std::ranges::count_if(matching.tensors, [&](const Match& m) { return m.fate == fate; }));
}

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

bool equal_parameters(SinkhornTransformerLM& a, SinkhornTransformerLM& b) {
  const auto x = parameters_of(a), y = parameters_of(b);
  return std::ranges::equal(x, y, [](const auto* p, const auto* q) { return equal_bits(p->value, q->value); });
}

TEST(Published, EveryCausalModelComesBackToTheBitUnderAnyPrefix) {
  for (int seed = 0; seed < testing::configurations(40, 300); ++seed) {
    testing::Dice dice(std::uint64_t(seed) + 1000);
    ModelConfig config = testing::random_config(dice);
    config.max_seq_len = config.max_buckets() * config.bucket_size;  // rounding has a test of its own
    const auto from = random_model(config, std::uint64_t(seed), DType::f32);
    const auto to = random_model(config, std::uint64_t(seed) + 1, DType::f32);
    const std::string prefix = seed % 2 ? "net.net." : "";
    const safetensors::File file = Package(*from, prefix).file();
    EXPECT_EQ(find_prefix(file), prefix);
    const Matching matching = match(file, prefix, *to);
    EXPECT_TRUE(matching.missing.empty() && matching.differences.empty()) << testing::describe(config);
    EXPECT_EQ(count(matching, Fate::unknown) + count(matching, Fate::ignored), 0) << testing::describe(config);
    ASSERT_FALSE(equal_parameters(*from, *to));
    load(file, matching, Rng(1));
    EXPECT_TRUE(equal_parameters(*from, *to)) << testing::describe(config);
  }
}

TEST(Published, PrefixesAreThatOfTheTokenTable) {
  const Tensor x = Tensor::zeros({2, 3});
  const auto prefix = [&](const std::vector<std::string>& names) {
    std::vector<std::pair<std::string, Tensor>> tensors;
    tensors.reserve(names.size());
    for (const auto& name : names) tensors.emplace_back(name, x);
    return find_prefix(Package(tensors).file());
  };
  EXPECT_EQ(prefix({"to_token_emb.weight", "a"}), "");
  EXPECT_EQ(prefix({"module.net.net.to_token_emb.weight"}), "module.net.net.");
  EXPECT_NE(refusal([&] { prefix({"bert.embeddings.weight"}); }).find("its first tensor is bert.embeddings.weight"),
            std::string::npos);
  EXPECT_NE(refusal([&] { prefix({"not_to_token_emb.weight"}); }), "");
  const std::string two = refusal([&] { prefix({"enc.to_token_emb.weight", "dec.to_token_emb.weight"}); });
  EXPECT_NE(two.find("choose one with --prefix: 'dec.', 'enc.'"), std::string::npos) << two;
  EXPECT_NE(origin_of("net.net.").find("AutoregressiveWrapper"), std::string::npos);
}

TEST(Published, TiedTensorsMayComeUnderEveryNameOrOne) {
  for (const bool reversible : {false, true}) {
    ModelConfig config = small();
    config.weight_tie = true;
    config.reversible = reversible;
    const auto from = random_model(config, 1, DType::f32), to = random_model(config, 2, DType::f32);
    Package package(*from);
    const std::string stack =
        reversible ? "sinkhorn_transformer.layers.blocks." : "sinkhorn_transformer.layers.layers.";
    const std::string rest = reversible ? ".f.net.fn.to_q.weight" : ".0.fn.to_q.weight";
    // Two more blocks list the attention's 6 tensors and the feed-forward's 4 again.
    EXPECT_EQ(count(match(package.file(), "", *to), Fate::tied), 20);
    package.erase(stack + "0" + rest);
    package.erase(stack + "1" + rest);
    const safetensors::File file = package.file();
    const Matching matching = match(file, "", *to);
    EXPECT_TRUE(matching.missing.empty());
    load(file, matching, Rng(1));
    EXPECT_TRUE(equal_parameters(*from, *to));

    Package other(*from);
    Tensor& again = other.at(stack + "2" + rest);
    again = again.clone();
    again.data<float>()[3] += 1;
    const Matching differing = match(other.file(), "", *to);
    ASSERT_EQ(differing.differences.size(), 1u);
    EXPECT_NE(differing.differences[0].find("set weight_tie = false"), std::string::npos) << differing.differences[0];
  }
}

TEST(Published, TablesAreRoundedDownThereAndUpHere) {
  for (const bool simple : {false, true}) {
    ModelConfig config = small();
    config.max_seq_len = 14;  // 3 whole buckets there, 4 here
    config.use_simple_sort_net = simple;
    const auto from = random_model(config, 1, DType::f32), to = random_model(config, 2, DType::f32);
    Package package(*from);
    EXPECT_EQ(package.at("axial_pos_emb.weights_0").shape(), Shape({1, 3, 1, 8}));
    const safetensors::File file = package.file();
    const Matching matching = match(file, "", *to);
    EXPECT_TRUE(matching.differences.empty());
    EXPECT_EQ(count(matching, Fate::appended), simple ? 4 : 1);
    load(file, matching, Rng(1));
    const Package back(*to);
    for (std::size_t i = 0; i < package.tensors.size(); ++i)
      EXPECT_TRUE(equal_bits(package.tensors[i].second, back.tensors[i].second)) << package.tensors[i].first;
    // What is appended is drawn, by the seed.
    std::vector<double> first, again;
    for_each_parameter(*to, [&](const std::string& name, const Parameter& p) {
      if (name == "axial_pos_emb.weights_0") first = p.value.to_vector();
    });
    load(file, matching, Rng(2));
    for_each_parameter(*to, [&](const std::string& name, const Parameter& p) {
      if (name == "axial_pos_emb.weights_0") again = p.value.to_vector();
    });
    EXPECT_TRUE(std::equal(first.begin(), first.begin() + 24, again.begin()));
    for (std::size_t i = 24; i < 32; ++i) {
      EXPECT_NE(first[i], again[i]);
      EXPECT_LE(std::abs(first[i]), 6);
    }
  }
}

TEST(Published, SaysWhatDoesNotFit) {
  const auto model = random_model(small(), 1, DType::f32);
  Package package(*model, "net.");
  package.tensors.emplace_back("net.ids", Tensor::zeros({3}, DType::i32));
  package.tensors.emplace_back("net.mask", Tensor::zeros({3}, DType::boolean));
  package.tensors.emplace_back("net.adapter.weight", Tensor::zeros({3}));
  package.tensors.emplace_back("optimizer.step", Tensor::zeros({3}));
  package.erase("net.norm.bias");
  package.at("net.norm.weight") = Tensor::zeros({9});
  const safetensors::File file = package.file();
  const Matching matching = match(file, "net.", *model);
  EXPECT_EQ(matching.missing, std::vector<std::string>{"norm.bias"});
  ASSERT_EQ(matching.differences.size(), 1u);
  EXPECT_EQ(matching.differences[0], "tensor net.norm.weight is (9), the model's is (8)");
  for (const Match& m : matching.tensors) {
    const std::string& name = m.entry->name;
    const bool outside = name == "net.ids" || name == "net.mask" || name == "optimizer.step";
    const Fate fate = name == "net.adapter.weight" ? Fate::unknown : outside ? Fate::ignored : m.fate;
    EXPECT_EQ(m.fate, fate) << name;
    EXPECT_EQ(m.note.empty(), !outside && name != "net.norm.weight" ? true : m.note.empty()) << name;
    EXPECT_EQ(m.parameter != nullptr, m.fate == Fate::used || m.fate == Fate::appended) << name;
  }
  EXPECT_EQ(count(matching, Fate::ignored), 3);
  EXPECT_EQ(count(matching, Fate::unknown), 1);
}

TEST(Published, ValuesThatAreNotFiniteAreRefused) {
  const auto model = random_model(small(), 1, DType::f32);
  Package package(*model);
  Tensor& bias = package.at("to_logits.bias");
  bias = Tensor::full(bias.shape(), 1e300, DType::f64);  // too large for f32
  const safetensors::File file = package.file();
  const Matching matching = match(file, "", *model);
  const std::string line = refusal([&] { load(file, matching, Rng(1)); });
  EXPECT_NE(line.find("to_logits.bias holds a value that is not finite"), std::string::npos) << line;
}

TEST(Published, BatchNormIsRefusedWithTheReason) {
  const Tensor x = Tensor::zeros({2});
  const safetensors::File file =
      Package({{"sinkhorn_transformer.layers.layers.1.1.fn.norm.running_mean", x}, {"to_token_emb.weight", x}}).file();
  const std::string line = refusal([&] { refuse_batch_norm(file, ""); });
  EXPECT_NE(line.find("layers.1.1.fn.norm.running_mean"), std::string::npos) << line;
  EXPECT_NE(line.find("see the future"), std::string::npos) << line;
  EXPECT_EQ(refusal([&] { refuse_batch_norm(file, "net."); }), "");
}

TEST(CorrectedDefects, AreThoseOfTheConfig) {
  const auto has = [](const ModelConfig& config, const std::string& part, bool half = false) {
    const auto all = corrected_defects(config, half);
    return std::ranges::any_of(all, [&](const std::string& s) { return s.find(part) != std::string::npos; });
  };
  ModelConfig c = small();
  for (const char* part : {"values", "temperature", "Gumbel", "SortCut", "cross-attention", "half precision"})
    EXPECT_FALSE(has(c, part)) << part;
  EXPECT_TRUE(has(c, "padding"));
  EXPECT_TRUE(has(c, "fewer buckets than n_top_buckets"));
  c.n_top_buckets = 1;
  EXPECT_FALSE(has(c, "fewer buckets than n_top_buckets"));
  c.n_local_attn_heads = 1;
  EXPECT_TRUE(has(c, "half precision", true));
  EXPECT_FALSE(has(c, "half precision", false));

  c.causal = false;
  EXPECT_TRUE(has(c, "in place of values"));
  EXPECT_TRUE(has(c, "temperature"));
  EXPECT_FALSE(has(c, "Gumbel"));
  c.temperature = 1;
  EXPECT_FALSE(has(c, "temperature"));
  c.non_permutative = false;
  EXPECT_TRUE(has(c, "Gumbel noise"));
  EXPECT_FALSE(has(c, "SortCut"));
  c.n_sortcut = 2;
  EXPECT_FALSE(has(c, "in place of values"));
  EXPECT_TRUE(has(c, "SortCut with Gumbel-Sinkhorn"));
  c.kv_bucket_size = 2;
  EXPECT_TRUE(has(c, "lost its own bucket"));
  c.n_local_attn_heads = c.heads;
  for (const char* part : {"in place of values", "Gumbel", "SortCut", "lost its own bucket"})
    EXPECT_FALSE(has(c, part));

  c = small();
  c.receives_context = true;
  EXPECT_TRUE(has(c, "include later ones"));
  EXPECT_TRUE(has(c, "context mask"));
  c.causal = false;
  EXPECT_FALSE(has(c, "include later ones"));
}

}  // namespace
}  // namespace sinkhorn::published
