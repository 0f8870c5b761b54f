// Keys from the bytes that terminals send, whole or in pieces.
#include "tools/raw_terminal.h"

#include <gtest/gtest.h>

#include "autograd/error.h"

namespace sinkhorn {
namespace {

using Kind = Key::Kind;

std::vector<Key> keys_of(const std::string& bytes) {
  KeyDecoder decoder;
  std::vector<Key> keys = decoder.push(bytes);
  for (const Key& key : decoder.finish()) keys.push_back(key);
  EXPECT_FALSE(decoder.waiting());
  return keys;
}

std::vector<Key> one(Kind kind) { return {{kind, 0}}; }

TEST(KeyDecoder, KnowsTheSequencesOfCommonTerminals) {
  const std::vector<std::pair<std::string, Kind>> table = {
      {"\x1b[A", Kind::up},    {"\x1b[B", Kind::down},    {"\x1b[C", Kind::right},    {"\x1b[D", Kind::left},
      {"\x1bOA", Kind::up},    {"\x1bOD", Kind::left},    {"\x1b[1;5C", Kind::right}, {"\x1b[H", Kind::home},
      {"\x1b[F", Kind::end},   {"\x1bOH", Kind::home},    {"\x1b[1~", Kind::home},    {"\x1b[4~", Kind::end},
      {"\x1b[7~", Kind::home}, {"\x1b[8~", Kind::end},    {"\x1b[5~", Kind::page_up}, {"\x1b[6~", Kind::page_down},
      {"\r", Kind::enter},     {"\n", Kind::enter},       {"\x7f", Kind::backspace},  {"\b", Kind::backspace},
      {"\x1b", Kind::escape},  {"\x03", Kind::interrupt}, {"\x1a", Kind::suspend}};
  for (const auto& [bytes, kind] : table) EXPECT_EQ(keys_of(bytes), one(kind)) << bytes.substr(1);
  for (const char* unknown : {"\x1b[3~", "\x1b[200~", "\x1b[15~", "\x01", "\xff", "\xc3"})
    EXPECT_TRUE(keys_of(unknown).empty()) << unknown;
}

TEST(KeyDecoder, ReadsCharactersOfAnyScript) {
  const std::vector<Key> want = {{Kind::character, U'a'},
                                 {Kind::character, U'é'},
                                 {Kind::character, U'√'},
                                 {Kind::character, U'\t'},
                                 {Kind::character, U'?'}};
  EXPECT_EQ(keys_of("aé√\t?"), want);
}

TEST(KeyDecoder, WaitsForTheRestOfWhatIsCut) {
  const std::string bytes = "é\x1b[1;5Dx\x1bOC";
  const std::vector<Key> want = {{Kind::character, U'é'}, {Kind::left, 0}, {Kind::character, U'x'}, {Kind::right, 0}};
  for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
    KeyDecoder decoder;
    std::vector<Key> keys = decoder.push(bytes.substr(0, cut));
    for (const Key& key : decoder.push(bytes.substr(cut))) keys.push_back(key);
    EXPECT_EQ(keys, want) << cut;
  }
}

TEST(KeyDecoder, AnEscapeBeforeAnotherKeyIsAKeyOfItsOwn) {
  const std::vector<Key> want = {{Kind::escape, 0}, {Kind::character, U'q'}, {Kind::escape, 0}, {Kind::left, 0}};
  EXPECT_EQ(keys_of("\x1bq\x1b\x1b[D"), want);
  EXPECT_TRUE(keys_of("\x1b[").empty());
  KeyDecoder decoder;
  EXPECT_TRUE(decoder.push("\x1b[" + std::string(40, '1')).empty());
  EXPECT_EQ(decoder.push("A"), (std::vector<Key>{{Kind::character, U'A'}})) << "what never ends must not swallow on";
}

TEST(RawTerminal, NeedsATerminal) {
  if (RawTerminal::available()) GTEST_SKIP() << "this test runs on a terminal";
  EXPECT_THROW(RawTerminal(), Error);
}

}  // namespace
}  // namespace sinkhorn
