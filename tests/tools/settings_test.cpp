// Settings in layers: which layer wins, where each value came from, and files that are wrong.
#include "tools/settings.h"

#include <gtest/gtest.h>

#include <fstream>

#include "autograd/error.h"

namespace sinkhorn {
namespace {

std::string temporary_file(const std::string& text) {
  std::string path = testing::TempDir() + "settings_test.toml";
  std::ofstream(path) << text;
  return path;
}

/// What reading a file says, without the path that it begins with.
std::string refusal(const std::string& toml, const Flags& flags = {}) {
  const std::string path = temporary_file(toml);
  try {
    resolve(path, flags);
  } catch (const UsageError& error) {
    const std::string line = error.what();
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
    return line.rfind(path, 0) == 0 ? line.substr(path.size()) : line;
  }
  return "";
}

void expect_says(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "expected: " << part << "\nit said:  " << text;
}

TEST(Settings, LaterLayersWin) {
  const std::string path =
      temporary_file("[train]\npreset = \"shakespeare\"\nsteps = 7\nseed = 3\n[model]\ndim = 60\n");
  const Settings settings = resolve(path, {{"seed", "4"}});
  EXPECT_EQ(settings.train.preset, "shakespeare");
  EXPECT_EQ(settings.train.seed, 4);
  EXPECT_EQ(settings.train.steps, 7);
  EXPECT_EQ(settings.model.dim, 60);
  EXPECT_EQ(settings.model.depth, 6);
  EXPECT_EQ(settings.origins.at("seed"), "flag --seed");
  EXPECT_EQ(settings.origins.at("steps"), path + ":3");
  EXPECT_EQ(settings.origins.at("preset"), path + ":2");
  EXPECT_EQ(settings.origins.at("depth"), "preset shakespeare");
  EXPECT_EQ(settings.origins.count("beta1"), 0u);
  EXPECT_EQ(settings.train.out, "runs/shakespeare");
  EXPECT_EQ(settings.model.max_seq_len, settings.train.seq_len);

  EXPECT_EQ(resolve(path, {{"preset", "cpu-small"}}).model.depth, 4);  // a flag's preset replaces the file's
  EXPECT_EQ(resolve("", {}).train.preset, "cpu-small");
}

TEST(Settings, EveryPresetIsValid) {
  for (const auto& preset : presets()) {
    const Settings settings = resolve("", {{"preset", preset.name}});
    EXPECT_TRUE(settings.model.causal) << preset.name;
    EXPECT_EQ(settings.train.preset, preset.name);
  }
}

TEST(Settings, WrongFilesNameTheLine) {
  expect_says(refusal("[train]\nsteps = 5\nstpes = 6\n"), ":3: unknown option \"stpes\"; did you mean \"steps\"?");
  expect_says(refusal("[model]\ndim = \"wide\"\n"), ":2: dim wants a whole number of at least 1, not \"wide\"");
  expect_says(refusal("[model]\ndim = 1.5\n"), ":2: dim wants a whole number");
  expect_says(refusal("[model]\ndim = 2020-01-01\n"), ":2: dim wants a whole number");
  expect_says(refusal("[model]\npkm_layers = [1, \"a\"]\n"), ":2: pkm_layers wants whole numbers");
  expect_says(refusal("[model]\ndim = {a = 1}\n"), ":2: dim wants a whole number");
  expect_says(refusal("[train]\nlearning_rate = nan\n"), ":2: learning_rate wants");
  expect_says(refusal("[train]\ndim = 8\n"), ":2: dim belongs in the table [model]");
  expect_says(refusal("[model]\nsteps = 8\n"), ":2: steps belongs in the table [train]");
  expect_says(refusal("steps = 8\n"), ":1: steps belongs in the table [train]");
  expect_says(refusal("[modle]\n"), ":1: unknown table [modle]; did you mean [model]?");
  expect_says(refusal("model = 3\n"), ":1: model must be a table");
  expect_says(refusal("[train]\nsteps = \n"), ":2: ");
  expect_says(refusal("[train]\nsteps = 1\nsteps = 2\n"), ":3: ");
  expect_says(refusal("[train]\nsteps = 99999999999999999999\n"), ":2: ");
  expect_says(refusal("\xFF\xFE"), ":1: ");
}

TEST(Settings, WrongCombinations) {
  expect_says(refusal("[model]\nbucket_size = 32\n[train]\nseq_len = 250\n"),
              "seq_len 250 is not a multiple of bucket_size 32; the next one is 256");
  expect_says(refusal("[model]\nmax_seq_len = 64\n[train]\nseq_len = 256\n"),
              "seq_len 256 is longer than max_seq_len 64");
  expect_says(refusal("[model]\ncausal = false\n"), "causal");
  expect_says(refusal("[train]\nlearning_rate = 1e-5\n"), "min_learning_rate");
  expect_says(refusal("[train]\nbatch_size = 100000000\n"), "2^31");
  expect_says(refusal("[model]\nn_local_attn_heads = 5\n"), "n_local_attn_heads 5 is more than heads 4");
  expect_says(refusal("", {{"no_such", "1"}}), "unknown option \"no_such\"");
}

TEST(Settings, TableHasEachMemberOnce) {
  TrainConfig config;
  std::size_t bytes = 0;
  for (const auto& field : fields(config)) std::visit([&](auto* slot) { bytes += sizeof *slot; }, field.slot);
  EXPECT_LT(sizeof(TrainConfig) - bytes, 8u);  // only padding is left over
  EXPECT_GE(sizeof(TrainConfig), bytes);
}

TEST(Settings, TableOfOptionsNamesEachOne) {
  const std::string page = options_markdown();
  Settings settings;
  for (const auto& field : settings.all_fields())
    expect_says(page, "| " + field.name + " | `" + flag_of(field.name) + "` |");
}

}  // namespace
}  // namespace sinkhorn
