// The parity command on the reference fixtures: what this version has must agree, the rest must say why it fails.
#include "tools/parity.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <sstream>

#include "autograd/error.h"
#include "models/safetensors.h"
#include "tests/shared.h"

namespace sinkhorn {
namespace {

namespace fs = std::filesystem;
using testing::shared_folder;
using testing::TemporaryFolder;

struct Outcome {
  int code;
  std::string text;
};

Outcome run(const std::vector<fs::path>& paths, double tolerance = 1e-9) {
  ParityOptions options{.paths = {}, .tolerance = tolerance};
  for (const fs::path& path : paths) options.paths.push_back(path.string());
  std::ostringstream out;
  const int code = parity(options, out);
  return {code, out.str()};
}

class Parity : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!shared_folder()) GTEST_SKIP() << "the reference files are not here";
    fixtures = *shared_folder() / "fixtures";
  }
  fs::path file(const std::string& name) const { return fixtures / (name + ".safetensors"); }
  fs::path fixtures;
};

TEST_F(Parity, AgreesOnEveryFixture) {
  const Outcome outcome = run({fixtures});
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_TRUE(outcome.text.ends_with("\n66 passed, 0 failed\n")) << outcome.text;
}

TEST_F(Parity, FailsWhereOneNumberIsOff) {
  std::ifstream in(file("causal_topk2"), std::ios::binary);
  std::stringstream bytes;
  bytes << in.rdbuf();
  std::string text = bytes.str();
  const safetensors::File original = safetensors::read(file("causal_topk2"));
  const safetensors::Entry& entry = original.require("grad.layers.layers.0.0.norm.weight");
  // One element of one gradient, by a millionth of itself.
  const std::size_t at = std::size_t(text.size() - original.data.size() + entry.begin);
  double value;
  std::memcpy(&value, &text[at], sizeof value);
  value *= 1 + 1e-6;
  std::memcpy(&text[at], &value, sizeof value);
  const TemporaryFolder folder;
  const fs::path changed = folder.path / "changed.safetensors";
  std::ofstream(changed, std::ios::binary) << text;
  const Outcome outcome = run({changed, file("causal_topk2")});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_NE(outcome.text.find("FAIL  changed"), std::string::npos) << outcome.text;
  EXPECT_NE(outcome.text.find("(grad.layers.layers.0.0.norm.weight)"), std::string::npos) << outcome.text;
  EXPECT_TRUE(outcome.text.ends_with("\n1 passed, 1 failed\n")) << outcome.text;
}

TEST(ParityInput, IsRefusedWithTheReason) {
  const TemporaryFolder folder;
  EXPECT_THROW(run({folder.path / "missing"}), DataError);
  EXPECT_THROW(run({folder.path}), DataError);
  EXPECT_THROW(run({}), UsageError);
  EXPECT_THROW(run({folder.path}, 0), UsageError);
  const fs::path foreign = folder.path / "foreign.safetensors";
  std::ofstream(foreign) << "not a fixture";
  const Outcome outcome = run({foreign});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_TRUE(outcome.text.ends_with("0 passed, 1 failed\n")) << outcome.text;
}

}  // namespace
}  // namespace sinkhorn
