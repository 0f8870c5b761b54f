// Texts made ready for training, bits per character for both vocabularies, and the loss over a whole text.
#include "tools/dataset.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <numbers>

#include "autograd/error.h"
#include "tests/shared.h"
#include "tools/eval.h"

namespace sinkhorn {
namespace {

std::string file_with(const testing::TemporaryFolder& place, const std::string& text) {
  std::string path = place.path / "text.txt";
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

TEST(Dataset, BitsPerCharacterCountCharactersNotTokens) {
  const testing::TemporaryFolder place;
  std::string text;
  for (int i = 0; i < 500; ++i) text += "aé";  // 2 characters, 3 bytes
  const std::string path = file_with(place, text);
  const Dataset characters = load_dataset(path, "char", 16), bytes = load_dataset(path, "byte", 16);
  EXPECT_EQ(characters.characters, 1000);
  EXPECT_EQ(bytes.characters, 1000);
  EXPECT_EQ(characters.bytes, 1500);
  EXPECT_EQ(characters.split.validation.size(), 100);
  EXPECT_EQ(bytes.split.validation.size(), 150);
  EXPECT_NEAR(characters.bits_per_character(std::numbers::ln2), 1, 1e-12);
  EXPECT_NEAR(bytes.bits_per_character(std::numbers::ln2), 1.5, 1e-12);
  EXPECT_EQ(characters.validation_text, text.substr(text.size() - 150));
  EXPECT_EQ(bytes.validation_text, text.substr(text.size() - 150));
}

TEST(Dataset, WithoutTextACharacterIsAByte) {
  const testing::TemporaryFolder place;
  const Dataset data = load_dataset(file_with(place, std::string(1000, '\xff')), "byte", 16);
  EXPECT_EQ(data.characters, 1000);
  EXPECT_NEAR(data.bits_per_character(std::numbers::ln2), 1, 1e-12);
}

TEST(Dataset, TheWholeTextIsBothParts) {
  const testing::TemporaryFolder place;
  std::string text;
  for (int i = 0; i < 300; ++i) text += std::to_string(i) + " ";
  Dataset data = load_dataset(file_with(place, text), "char", 16);
  data.use_whole_text();
  EXPECT_EQ(data.validation_text, text);
  EXPECT_EQ(data.tokenizer.decode(data.split.validation.to_vector()), text);
  EXPECT_NEAR(data.bits_per_character(std::numbers::ln2), 1, 1e-12);
}

TEST(Dataset, AKnownTokenizerIsKept) {
  const testing::TemporaryFolder place;
  const std::string path = file_with(place, std::string(1000, 'a'));
  const Tokenizer known = Tokenizer::characters("abc");
  EXPECT_EQ(load_dataset(path, "char", 16, known).tokenizer, known);
  EXPECT_THROW(load_dataset(path, "char", 16, Tokenizer::characters("xyz")), DataError);
}

TEST(Eval, EveryTokenIsPredictedOnce) {
  ModelConfig config;
  config.num_tokens = 11;
  config.dim = 16;
  config.depth = 1;
  config.heads = 2;
  config.bucket_size = 4;
  config.max_seq_len = 16;
  config.causal = true;
  const SinkhornTransformerLM model(config, Rng(1));
  const Tensor drawn = integers(Rng(2), {77}, 11);
  const std::vector<std::int32_t> tokens(drawn.span<std::int32_t>().begin(), drawn.span<std::int32_t>().end());
  // 76 predictions: four windows of 16 and one of 12.
  double sum = 0;
  for (std::int64_t at = 0; at < 76; at += 16) {
    const std::int64_t end = std::min<std::int64_t>(at + 17, 77);
    const auto part = autoregressive_loss(model, Scope{}, drawn.slice(at, end).reshape({1, end - at}));
    EXPECT_EQ(part.counted, end - at - 1);
    sum += part.loss.value.item() * double(part.counted);
  }
  for (const std::int64_t batch_size : {1, 2, 8}) EXPECT_NEAR(loss_over(model, tokens, 16, batch_size), sum / 76, 1e-5);
}

}  // namespace
}  // namespace sinkhorn
