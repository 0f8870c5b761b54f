// Weights of the published package through the program: in, used and out again; and everything that is refused.
#include "tools/import.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "autograd/gradcheck.h"
#include "models/run_folder.h"
#include "models/weights.h"
#include "tests/shared.h"
#include "tests/tools/program.h"
#include "tools/checkpoint.h"

namespace sinkhorn {
namespace {

namespace fs = std::filesystem;
using testing::contains;
using testing::content_of;
using testing::Outcome;
using testing::run_program;
using testing::Words;

using Named = std::map<std::string, Tensor>;

constexpr const char* symbols = "abcdefghijklmnopqrstuvwxyz ABCD";  // 31, as the reference models have

/// A folder with the weights of a reference model in a file as the package writes it, and its config.
class Import : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::shared_folder()) GTEST_SKIP() << "the reference files are not here";
    std::ofstream(in("symbols.txt")) << symbols;
  }
  fs::path in(const std::string& name) const { return place.path / name; }

  /// Parameters of a reference file in `dtype`, under `prefix`.
  Named weights(const std::string& fixture, const std::string& prefix = "net.net.", DType dtype = DType::f32) {
    reference = safetensors::read(*testing::shared_folder() / "fixtures" / (fixture + ".safetensors"));
    const auto options = nlohmann::json::parse(reference.metadata.at("config"));
    std::ofstream toml(in("model.toml"));
    toml << "[model]\n";
    for (const auto& [name, value] : options.items())
      if (name != "autopad" && name != "pad_left") toml << name << " = " << value << "\n";
    Named tensors;
    for (const safetensors::Entry& entry : reference.entries)
      if (entry.name.starts_with("param."))
        tensors[prefix + entry.name.substr(6)] = read_tensor(reference, entry, dtype);
    return tensors;
  }
  void write(const Named& tensors, const std::string& name = "model.safetensors") const {
    std::vector<safetensors::Item> items;
    for (const auto& [tensor_name, tensor] : tensors) items.push_back(to_item(tensor_name, tensor));
    safetensors::write(in(name), {{"format", "pt"}}, items);
  }
  Words command(const Words& more = {}) const {
    Words words = {"import", "model.safetensors", "--config", "model.toml", "-o", "out", "--symbols", "symbols.txt"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  Outcome run(const Words& words) const { return run_program(place.path, words); }

  /// Exit code and one line on stderr that holds all `parts`; nothing written.
  void expect_refusal(int code, const Words& words, const Words& parts) const {
    const auto files = [&] {
      std::vector<std::string> names;
      for (const auto& entry : fs::recursive_directory_iterator(place.path)) names.push_back(entry.path());
      std::erase_if(names, [](const std::string& n) { return contains(n, "/.std"); });
      std::sort(names.begin(), names.end());
      return names;
    };
    const auto before = files();
    const Outcome got = run(words);
    EXPECT_EQ(got.code, code) << got.out << got.err;
    EXPECT_EQ(std::count(got.err.begin(), got.err.end(), '\n'), 1) << got.err;
    for (const auto& part : parts) EXPECT_TRUE(contains(got.err, part)) << part << " is not in: " << got.err;
    EXPECT_EQ(files(), before);
  }

  testing::TemporaryFolder place;
  safetensors::File reference;
};

TEST_F(Import, ComputesTheReferenceLogits) {
  for (const std::string fixture : {"lm_causal", "lm_weight_tie", "lm_local_mix", "lm_emb_dim", "lm_glu",
                                    "lm_pkm_layernorm", "lm_tied_pkm_two_layers", "lm_reversible_chunked"}) {
    Named tensors = weights(fixture);
    tensors["net.net.position_ids"] = Tensor::zeros({5}, DType::i32);
    write(tensors);
    fs::remove_all(in("out"));
    const Outcome got = run(command());
    ASSERT_EQ(got.code, 0) << fixture << got.out << got.err;
    EXPECT_EQ(got.err, "");
    for (const auto& [name, tensor] : tensors) EXPECT_TRUE(contains(got.out, " " + name + " ")) << name;
    for (const char* part : {"net.net. is taken off (AutoregressiveWrapper", "ignored     net.net.position_ids",
                             "1 ignored", "corrected ", "31 characters", "next: sinkhorn generate --checkpoint out"})
      EXPECT_TRUE(contains(got.out, part)) << part << " is not in:\n" << got.out;
    const TrainedModel trained = load_trained_model(in("out"));
    const Tensor ids = read_tensor(reference, reference.require("in.ids"), DType::i32);
    const Tensor want = read_tensor(reference, reference.require("out"), DType::f64);
    EXPECT_LE(relative_error(trained.model->language_model()(Scope{}, ids).value.to(DType::f64), want), 1e-5)
        << fixture;
    EXPECT_EQ(trained.record.tokenizer.piece(26), " ");
  }
}

TEST_F(Import, GenerateWorksWithTheResult) {
  write(weights("lm_causal"));
  std::ofstream(in("symbols.txt")) << symbols << "\n";  // an editor's newline is no symbol
  ASSERT_EQ(run(command()).code, 0);
  const Outcome got = run({"generate", "--checkpoint", "out", "--prompt", "cab", "--length", "9"});
  EXPECT_EQ(got.code, 0) << got.err;
  EXPECT_EQ(got.out.size(), 3u + 9 + 1) << got.out;
  EXPECT_EQ(got.out.find_first_not_of(std::string(symbols) + "\n"), std::string::npos) << got.out;
  const Outcome resumed = run({"train", "--resume", "--out", "out", "--data", "symbols.txt"});
  EXPECT_EQ(resumed.code, 3);
  EXPECT_TRUE(contains(resumed.err, "imported weights alone")) << resumed.err;
}

TEST_F(Import, ModelsThatPredictNothingAreRefusedWhereThatIsNeeded) {
  write(weights("lm_reversible_bidirectional"));
  ASSERT_EQ(run(command()).code, 0);
  for (const char* name : {"eval", "generate", "leak-check"})
    expect_refusal(2, {name, "--checkpoint", "out"},
                   {std::string(name) + ": out/step-000000.safetensors", "not causal"});
}

TEST_F(Import, ExportGivesTheSameBitsBack) {
  for (const std::string fixture : {"lm_causal", "lm_weight_tie", "lm_emb_dim"}) {
    const Named tensors = weights(fixture);
    write(tensors);
    fs::remove_all(in("out"));
    fs::remove(in("back.safetensors"));
    ASSERT_EQ(run(command()).code, 0);
    const Outcome got = run({"export", "out", "-o", "back.safetensors", "--prefix", "net.net."});
    ASSERT_EQ(got.code, 0) << got.err;
    const safetensors::File back = safetensors::read(in("back.safetensors"));
    EXPECT_EQ(back.metadata.at("format"), "pt");
    for (const auto& [name, tensor] : tensors) {
      ASSERT_NE(back.find(name), nullptr) << name;
      EXPECT_TRUE(equal_bits(read_tensor(back, *back.find(name), DType::f32), tensor)) << name;
    }
    // A tied model's tensors stand under every block, as a strict load_state_dict wants them.
    EXPECT_EQ(back.entries.size() > tensors.size(), fixture == "lm_weight_tie");
    expect_refusal(3, {"export", "out", "-o", "back.safetensors"}, {"back.safetensors exists"});
    expect_refusal(3, {"export", "nowhere", "-o", "other.safetensors"}, {"nowhere"});
    expect_refusal(2, {"export", "out"}, {"--out is required"});
  }
}

TEST_F(Import, HalfAndDoublePrecisionAreConverted) {
  write(weights("lm_local_mix", "", DType::bf16));
  const Outcome half = run(command());
  ASSERT_EQ(half.code, 0) << half.err;
  EXPECT_TRUE(contains(half.out, "BF16 become f32, exactly")) << half.out;
  EXPECT_TRUE(contains(half.out, "rounded to half precision")) << half.out;
  EXPECT_FALSE(contains(half.out, "is taken off"));
  fs::remove_all(in("out"));
  write(weights("lm_local_mix", "", DType::f64));
  const Outcome wide = run(command());
  ASSERT_EQ(wide.code, 0) << wide.err;
  EXPECT_TRUE(contains(wide.out, "F64 becomes f32")) << wide.out;
  EXPECT_FALSE(contains(wide.out, "half precision")) << wide.out;
}

TEST_F(Import, AppendsWhatAPartialBucketNeedsAndExportTakesItAway) {
  Named tensors = weights("lm_causal");
  std::string toml = content_of(in("model.toml"));
  toml.replace(toml.find("max_seq_len = 32"), 16, "max_seq_len = 34");
  std::ofstream(in("model.toml")) << toml;
  write(tensors);
  const Outcome got = run(command());
  ASSERT_EQ(got.code, 0) << got.err;
  EXPECT_TRUE(contains(got.out, "appended    net.net.axial_pos_emb.weights_0  F32 (1, 8, 1, 16)")) << got.out;
  EXPECT_TRUE(contains(got.out, "1 appended")) << got.out;
  const TrainedModel trained = load_trained_model(in("out"));
  EXPECT_EQ(trained.model->language_model()(Scope{}, Tensor::zeros({1, 36}, DType::i32)).shape(), Shape({1, 36, 31}));
  ASSERT_EQ(run({"export", "out", "-o", "back.safetensors", "--prefix", "net.net."}).code, 0);
  const safetensors::File back = safetensors::read(in("back.safetensors"));
  for (const auto& [name, tensor] : tensors)
    EXPECT_TRUE(equal_bits(read_tensor(back, back.require(name), DType::f32), tensor)) << name;
}

TEST_F(Import, RefusesWhatDoesNotFit) {
  const Named good = weights("lm_causal");
  const std::string table = "net.net.axial_pos_emb.weights_0", norm = "net.net.norm.weight";
  Named bad = good;
  bad.erase(norm);
  bad.erase("net.net.norm.bias");
  write(bad);
  expect_refusal(3, command(), {"model.safetensors: lacks 2 of the model's tensors: norm.weight, norm.bias"});
  EXPECT_TRUE(contains(run(command()).out, "missing     norm.bias"));
  bad = good;
  bad[norm] = Tensor::zeros({15});
  write(bad);
  expect_refusal(3, command(), {"tensor net.net.norm.weight is (15), the model's is (16)"});
  bad = good;
  bad[table] = Tensor::zeros({1, 7, 1, 16});  // short, although max_seq_len is a multiple of the bucket
  write(bad);
  expect_refusal(3, command(), {table, "(1, 7, 1, 16)", "(1, 8, 1, 16)"});
  bad = good;
  bad["net.net.extra.weight"] = Tensor::zeros({2});
  write(bad);
  expect_refusal(3, command(), {"1 tensors that the model has no place for: net.net.extra.weight"});
  bad = good;
  bad[norm] = Tensor::full({16}, std::numeric_limits<double>::quiet_NaN());
  write(bad);
  expect_refusal(3, command(), {norm, "not finite"});
  bad = good;
  bad["net.net.sinkhorn_transformer.layers.layers.0.1.fn.norm.running_mean"] = Tensor::zeros({2});
  write(bad);
  expect_refusal(3, command(), {"BatchNorm", "train the model anew"});
  write({{"bert.pooler.weight", Tensor::zeros({2})}});
  expect_refusal(3, command(), {"bert.pooler.weight", "no language model of the package"});

  write(good);
  const std::string toml = content_of(in("model.toml")), bytes = content_of(in("model.safetensors"));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = toml;
    changed.replace(changed.find(from), from.size(), to);
    std::ofstream(in("model.toml")) << changed;
  };
  with("num_tokens = 31", "num_tokens = 30");
  expect_refusal(3, command(), {"has 31 tokens, but num_tokens is 30 in model.toml"});
  with("depth = 2", "depth = 60000");
  expect_refusal(3, command(), {"is smaller than the model of model.toml"});
  with("depth = 2", "depth = 65537");
  expect_refusal(2, command(), {"depth wants a whole number from 1 to 65536"});
  with("dim = 16", "dmi = 16");
  expect_refusal(2, command(), {"did you mean \"dim\""});
  with("dim = 16", "dim = 17");
  expect_refusal(2, command(), {"dim 17 does not divide by heads 2"});
  with("num_tokens = 31\n", "");  // the file says it
  EXPECT_EQ(run(command()).code, 0);
  expect_refusal(3, command(), {"the folder out exists and is not empty"});
  fs::remove_all(in("out"));
  std::ofstream(in("out")) << "a file";
  expect_refusal(3, command(), {"out is a file"});
  fs::remove(in("out"));

  std::ofstream(in("model.safetensors"), std::ios::binary) << bytes.substr(0, bytes.size() - 100);
  expect_refusal(3, command(), {"model.safetensors"});
  std::ofstream(in("model.safetensors")) << "PK\x03\x04 a pickle, as torch.save writes it";
  expect_refusal(3, command(), {"model.safetensors", "not a safetensors file"});
  fs::remove(in("model.safetensors"));
  expect_refusal(3, command(), {"model.safetensors"});
}

TEST_F(Import, SizesThatTheFileDoesNotBackUpAreRefusedBeforeTheyAreAllocated) {
  write(weights("lm_causal"));
  const std::string toml = content_of(in("model.toml"));
  using Changes = std::map<std::string, std::string>;
  for (const Changes& changes : {Changes{{"depth", "65536"}, {"weight_tie", "true"}, {"use_rezero", "true"}},
                                 Changes{{"use_simple_sort_net", "true"}, {"n_top_buckets", "2000000000"}},
                                 Changes{{"receives_context", "true"}, {"depth", "3"}}}) {
    std::istringstream lines(toml);
    std::ofstream changed(in("model.toml"));
    for (std::string line; std::getline(lines, line);) {
      const auto change = changes.find(line.substr(0, line.find(' ')));
      changed << (change == changes.end() ? line : change->first + " = " + change->second) << "\n";
    }
    changed.close();
    expect_refusal(3, command(), {"is smaller than the model of model.toml"});
  }
}

TEST_F(Import, NeedsACharacterForEveryToken) {
  write(weights("lm_causal"));
  const Words bare = {"import", "model.safetensors", "--config", "model.toml", "-o", "out"};
  const auto with = [&](Words more) {
    Words words = bare;
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  expect_refusal(2, bare, {"31 tokens", "--symbols FILE"});
  expect_refusal(2, with({"--vocabulary", "byte"}), {"256 tokens", "31"});
  expect_refusal(2, with({"--vocabulary", "byte", "--symbols", "symbols.txt"}), {"exclude each other"});
  expect_refusal(3, with({"--symbols", "nowhere.txt"}), {"nowhere.txt does not exist"});
  std::ofstream(in("symbols.txt")) << "abc";
  expect_refusal(3, command(), {"symbols.txt has 3 characters, the model 31 tokens"});
  std::ofstream(in("symbols.txt")) << "abca";
  expect_refusal(3, command(), {"'a' (U+0061) stands at places 0 and 3"});
  expect_refusal(2, {"import", "model.safetensors", "--config", "model.toml"}, {"--out is required"});
  expect_refusal(2, {"import", "model.safetensors", "-o", "out"}, {"--config is required"});
  expect_refusal(2, {"import", "--config", "model.toml", "-o", "out"}, {"give the safetensors file"});
  expect_refusal(2, {"import", "model.safetensors", "--config", "nowhere.toml", "-o", "out"}, {"nowhere.toml"});
}

TEST_F(Import, TwoModelsInAFileNeedAPrefix) {
  Named both = weights("lm_causal", "enc.");
  both.merge(weights("lm_causal", "dec."));
  write(both);
  expect_refusal(3, command(), {"holds 2 models", "'dec.', 'enc.'"});
  const Outcome got = run(command({"--prefix", "dec."}));
  EXPECT_EQ(got.code, 0) << got.err;
  EXPECT_TRUE(contains(got.out, "35 used, 35 ignored")) << got.out;
}

TEST_F(Import, AFullDiskLeavesNoCheckpoint) {
  write(weights("lm_causal"));
  const testing::Setup small_files{.in_child = [] {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4096, 4096};
    setrlimit(RLIMIT_FSIZE, &limit);
  }};
  const Outcome got = run_program(place.path, command(), small_files);
  EXPECT_EQ(got.code, 3) << got.err;
  for (const auto& entry : fs::recursive_directory_iterator(in("out")))
    EXPECT_EQ(entry.path().filename(), RunFolder::lock_name);
  EXPECT_EQ(run(command()).code, 0) << "a second try works";
}

}  // namespace
}  // namespace sinkhorn
