// Tokens read from a mapped file: the same as from a text in memory, with little memory, and an error if it changes.
#include "tools/tokens.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>

#include "autograd/error.h"
#include "build_info.h"
#include "tests/shared.h"
#include "tools/dataset.h"

namespace sinkhorn {
namespace {

std::string write(const testing::TemporaryFolder& place, const std::string& text) {
  std::string path = place.path / "text.txt";
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

std::string error_of(const Tokens& tokens) {
  try {
    std::int32_t token = 0;
    tokens.copy(0, 1, &token);
  } catch (const DataError& error) {
    return error.what();
  }
  return "no error";
}

// Characters of one to four bytes, so many that the offsets kept for them matter.
std::string long_text() {
  std::string text;
  for (int i = 0; i < 4000; ++i) text += std::to_string(i) + "é€𝄞\n";
  return text;
}

TEST(Tokens, AnyPartIsWhatEncodeMakesOfIt) {
  const testing::TemporaryFolder place;
  const std::string text = long_text(), path = write(place, text);
  const TextBytes mapped = TextBytes::of_file(path, "data");
  ASSERT_TRUE(mapped.is_mapped());
  for (const Tokenizer& tokenizer : {Tokenizer::characters(text), Tokenizer::bytes()}) {
    const std::vector<std::int32_t> want = tokenizer.encode(text, "data");
    for (const TextBytes& bytes : {mapped, TextBytes(text)}) {
      const Tokens tokens(bytes, tokenizer, "data");
      ASSERT_EQ(tokens.to_vector(), want);
      for (const auto& [begin, end] : {std::pair<std::int64_t, std::int64_t>{0, 1},
                                       {4095, 4097},
                                       {4096, 8192},
                                       {5000, 20000},
                                       {tokens.size() - 3, tokens.size()},
                                       {7, 7}}) {
        const std::vector<std::int32_t> part(want.begin() + begin, want.begin() + end);
        EXPECT_EQ(tokens.slice(begin, end).to_vector(), part) << begin;
        EXPECT_EQ(tokens.slice(begin, end).bytes(),
                  tokenizer.is_bytes() ? text.substr(begin, end - begin) : tokenizer.decode(part));
        const Tokens rest = tokens.slice(begin / 2, tokens.size());
        EXPECT_EQ(rest.slice(begin - begin / 2, end - begin / 2).to_vector(), part) << begin;
      }
    }
  }
}

TEST(Tokens, StayInsideTheText) {
  const Tokens tokens(std::vector<std::int32_t>{1, 2, 3});
  std::int32_t two[2];
  EXPECT_THROW(tokens.slice(1, 4), Error);
  EXPECT_THROW(tokens.slice(1, 3).copy(1, 2, two), Error);
  EXPECT_THROW(tokens.copy(-1, 1, two), Error);
}

TEST(Tokens, UnknownCharactersAreRefusedWhereverTheyStand) {
  const std::string text(10000, 'a');
  const Tokenizer known = Tokenizer::characters("abc");
  EXPECT_EQ(Tokens(TextBytes(text), known, "data").size(), 10000);
  EXPECT_THROW(Tokens(TextBytes(text + "x"), known, "data"), DataError);
  EXPECT_THROW(Tokens(TextBytes(text + "\xff"), known, "data"), DataError);
}

TEST(Tokens, AFileThatChangesIsAnError) {
  const testing::TemporaryFolder place;
  const std::string text = long_text();
  for (const bool shorter : {false, true}) {
    const std::string path = write(place, text);
    std::filesystem::last_write_time(path, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
    const Tokens tokens(TextBytes::of_file(path, "data"), Tokenizer::characters(text), "data");
    EXPECT_EQ(error_of(tokens), "no error");
    if (shorter)
      std::filesystem::resize_file(path, text.size() / 2);
    else
      std::fstream(path, std::ios::in | std::ios::out).put('9');
    EXPECT_EQ(error_of(tokens), "data: " + path + (shorter ? " was cut short" : " was written to") +
                                    " while it was in use; give a copy that nobody changes");
  }
}

// The access itself fails where the file is cut between the look at its size and the read.
TEST(TokensDeathTest, ReadsBeyondTheNewEndOfAFileEndInOneLine) {
  const testing::TemporaryFolder place;
  const std::string path = write(place, long_text());
  const TextBytes text = TextBytes::of_file(path, "data");
  EXPECT_EXIT(
      {
        std::filesystem::resize_file(path, 0);
        std::exit(text.view()[20000] == 'x' ? 1 : 0);
      },
      ::testing::ExitedWithCode(3), "^\nsinkhorn: data: .*text.txt was cut short while it was in use; [^\n]*\n$");
}

TEST(Tokens, WhatCannotBeMappedIsRead) {
  const testing::TemporaryFolder place;
  const std::string path = place.path / "text.gz";
  const gzFile file = gzopen(path.c_str(), "wb");
  gzputs(file, "some text");
  gzclose(file);
  const TextBytes text = TextBytes::of_file(path, "data");
  EXPECT_FALSE(text.is_mapped());
  EXPECT_EQ(text.view(), "some text");
  EXPECT_THROW(TextBytes::of_file(place.path, "data"), DataError);
}

/// Memory of this process that no file stands behind, in bytes.
std::int64_t anonymous_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (std::int64_t kib = 0; word == "RssAnon:" && status >> kib) return kib * 1024;
  return 0;
}

TEST(Dataset, ALargeTextTakesLittleMemory) {
  if (!build_info::sanitizers.empty()) GTEST_SKIP() << "a sanitizer keeps shadows of the file's pages";
  const testing::TemporaryFolder place;
  std::string piece = long_text();
  const std::string path = place.path / "text.txt";
  std::ofstream file(path, std::ios::binary);
  std::int64_t bytes = 0;
  for (; bytes < 32 << 20; bytes += std::int64_t(piece.size())) file << piece;
  file.close();
  for (const char* vocabulary : {"char", "byte"}) {
    const std::int64_t before = anonymous_memory();
    ASSERT_GT(before, 0);
    const Dataset data = load_dataset(path, vocabulary, 64);
    EXPECT_LT(anonymous_memory() - before, 8 << 20) << vocabulary;
    EXPECT_EQ(data.bytes, bytes);
    EXPECT_EQ(data.split.train.size() + data.split.validation.size(), data.tokens.size());
  }
}

}  // namespace
}  // namespace sinkhorn
