// Characters and bytes as tokens: round trips, refusals that name the character, and UTF-8 that arrives in pieces.
#include "tools/tokenizer.h"

#include <gtest/gtest.h>

#include "autograd/error.h"
#include "autograd/rng.h"
#include "tools/utf8.h"

namespace sinkhorn {
namespace {

const std::string kText = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\n a";  // 1, 2, 3 and 4 bytes: a é € 😀

template <class Run>
std::string refusal(Run run) {
  try {
    run();
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

TEST(Utf8, AcceptsExactlyUtf8) {
  for (const char* good : {"", "abc", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
                           "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"})
    EXPECT_EQ(first_invalid_byte(good), std::nullopt) << good;
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
                          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xC3", "\xE2\x82", "\xC3(", "\xE2\x82("})
    EXPECT_EQ(first_invalid_byte(std::string("ok") + bad), 2u);
}

TEST(Utf8, EveryCodePointRoundTrips) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_utf8(text, c);
    const CodePoint back = first_code_point(text);
    ASSERT_EQ(back.value, c);
    ASSERT_EQ(std::size_t(back.length), text.size());
  }
}

TEST(Utf8, StreamJoinsPiecesAndRepairsTheRest) {
  Utf8Stream stream;
  std::string text;
  for (const char byte : kText) {
    const std::string piece = stream.push(std::string(1, byte));
    EXPECT_EQ(first_invalid_byte(piece), std::nullopt);
    text += piece;
  }
  EXPECT_EQ(text + stream.finish(), kText);
  EXPECT_EQ(stream.push("\xE2\x82"), "");
  EXPECT_EQ(stream.push("x"), "\xEF\xBF\xBD\xEF\xBF\xBDx");
  EXPECT_EQ(stream.push("\xF0\x9F"), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8, AnyBytesBecomeValidText) {
  const RandomBits random{11, 0};
  for (std::uint64_t trial = 0; trial < 2000; ++trial) {
    Utf8Stream stream;
    std::string text;
    for (std::uint64_t i = 0; i < 12; ++i)
      text += stream.push(std::string(1, char(random.word(trial * 12 + i) | 0x80)));
    text += stream.finish();
    ASSERT_EQ(first_invalid_byte(text), std::nullopt);
  }
}

TEST(Tokenizer, CharactersAreOrderedCodePoints) {
  const Tokenizer tokenizer = Tokenizer::characters(kText);
  EXPECT_EQ(tokenizer.size(), 6);
  const auto ids = tokenizer.encode(kText, "data");
  EXPECT_EQ(ids, (std::vector<std::int32_t>{2, 3, 4, 5, 0, 1, 2}));
  EXPECT_EQ(tokenizer.decode(ids), kText);
  EXPECT_EQ(tokenizer.piece(4), "\xE2\x82\xAC");
  EXPECT_THROW(tokenizer.piece(6), Error);
  EXPECT_THROW(tokenizer.piece(-1), Error);
}

TEST(Tokenizer, BytesTakeEverything) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += char(byte);
  const auto ids = Tokenizer::bytes().encode(all, "data");
  EXPECT_EQ(ids.back(), 255);
  EXPECT_EQ(Tokenizer::bytes().decode(Tokenizer::bytes().encode(kText, "data")), kText);
  EXPECT_EQ(first_invalid_byte(Tokenizer::bytes().decode(ids)), std::nullopt);
}

TEST(Tokenizer, RefusesWhatItCannotEncode) {
  const Tokenizer tokenizer = Tokenizer::characters("abc");
  const std::string unknown = refusal([&] { tokenizer.encode("ab\xC3\xA9", "--prompt"); });
  EXPECT_NE(unknown.find("--prompt: the character '\xC3\xA9' (U+00E9)"), std::string::npos) << unknown;
  EXPECT_NE(refusal([&] { tokenizer.encode("a\nb", "--prompt"); }).find("character U+000A is"), std::string::npos);
  const std::string invalid = refusal([&] { Tokenizer::characters("abc\xFFxyz"); });
  EXPECT_NE(invalid.find("offset 3"), std::string::npos) << invalid;
  EXPECT_NE(invalid.find("--vocabulary byte"), std::string::npos) << invalid;
}

TEST(Tokenizer, SymbolsKeepTheirOrder) {
  const Tokenizer tokenizer = Tokenizer::symbols("z\xC3\xA9 \na", "--symbols");
  EXPECT_EQ(tokenizer.size(), 5);
  EXPECT_EQ(tokenizer.encode("a\n\xC3\xA9z", "prompt"), (std::vector<std::int32_t>{4, 3, 1, 0}));
  EXPECT_EQ(tokenizer.piece(2), " ");
  EXPECT_EQ(Tokenizer::from_json(tokenizer.to_json(), "file"), tokenizer);
  const std::string twice = refusal([] { Tokenizer::symbols("abca", "--symbols: x.txt"); });
  EXPECT_NE(twice.find("--symbols: x.txt: the character 'a' (U+0061) stands at places 0 and 3"), std::string::npos)
      << twice;
}

TEST(Tokenizer, JsonBothWays) {
  const Tokenizer characters = Tokenizer::characters(kText + "\"\\\x01\x7F");
  EXPECT_EQ(Tokenizer::from_json(characters.to_json(), "file"), characters);
  EXPECT_EQ(Tokenizer::from_json(Tokenizer::bytes().to_json(), "file"), Tokenizer::bytes());
  for (const char* bad :
       {"", "[]", "{}", R"({"kind": "word"})", R"({"kind": "char"})", R"({"kind": "char", "characters": ""})",
        R"({"kind": "char", "characters": "aab"})", R"({"kind": 3})"})
    EXPECT_NE(refusal([&] { Tokenizer::from_json(bad, "file.safetensors"); }).find("file.safetensors"),
              std::string::npos)
        << bad;
}

TEST(Tokenizer, VocabularyMismatchNamesTheDifference) {
  const Tokenizer abc = Tokenizer::characters("abc"), abd = Tokenizer::characters("abd"), bytes = Tokenizer::bytes();
  EXPECT_EQ(refusal([&] { require_same_vocabulary(abc, Tokenizer::characters("cba"), "x"); }), "");
  const std::string other = refusal([&] { require_same_vocabulary(abc, abd, "step-000600.safetensors"); });
  EXPECT_NE(other.find("'c' (U+0063) is only in the data"), std::string::npos) << other;
  EXPECT_NE(other.find("step-000600.safetensors"), std::string::npos) << other;
  EXPECT_NE(refusal([&] {
              require_same_vocabulary(Tokenizer::characters("ab"), abd, "x");
            }).find("'d' (U+0064) is only in the checkpoint"),
            std::string::npos);
  EXPECT_NE(refusal([&] { require_same_vocabulary(bytes, abd, "x"); }).find("256 bytes"), std::string::npos);
}

}  // namespace
}  // namespace sinkhorn
