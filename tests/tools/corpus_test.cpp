// Text on its way to the model: reading, cleaning, splitting, and every way in which data can be unusable.
#include "tools/corpus.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "autograd/error.h"
#include "tools/read_file.h"

namespace sinkhorn {
namespace {

std::string temporary_path(const std::string& name) { return testing::TempDir() + "corpus_test_" + name; }

std::string write_file(const std::string& name, const std::string& bytes) {
  std::string path = temporary_path(name);
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

std::string write_gzip(const std::string& name, const std::string& bytes) {
  std::string path = temporary_path(name);
  gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, bytes.data(), unsigned(bytes.size()));
  gzclose(file);
  return path;
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <class Run>
void expect_data_error(Run run, const std::vector<std::string>& parts) {
  try {
    run();
    ADD_FAILURE() << "nothing was refused";
  } catch (const DataError& error) {
    const std::string line = error.what();
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
    for (const auto& part : parts) EXPECT_NE(line.find(part), std::string::npos) << part << " is not in " << line;
  }
}

/// Sets an environment variable for one test.
struct Environment {
  explicit Environment(const std::string& value) {
    const char* before = std::getenv("SINKHORN_JARGON");
    if (before) before_ = before;
    setenv("SINKHORN_JARGON", value.c_str(), 1);
  }
  ~Environment() { before_.empty() ? unsetenv("SINKHORN_JARGON") : setenv("SINKHORN_JARGON", before_.c_str(), 1); }
  std::string before_;
};

TEST(ReadFile, PlainAndGzip) {
  std::string text;
  for (int i = 0; i < 400000; ++i) text += "line " + std::to_string(i) + "\n";  // several read chunks
  EXPECT_EQ(read_file(write_file("plain", text), "data"), text);
  EXPECT_EQ(read_file(write_gzip("packed", text), "data"), text);
  EXPECT_EQ(read_file(write_file("empty", ""), "data"), "");
}

TEST(ReadFile, SaysWhatIsWrong) {
  expect_data_error([] { read_file("/nonexistent/file", "data"); }, {"data: /nonexistent/file", "does not exist"});
  expect_data_error([] { read_file(testing::TempDir(), "data"); }, {testing::TempDir(), "is a folder"});
  const std::string inside_file = write_file("plain", "text") + "/x";
  expect_data_error([&] { read_file(inside_file, "data"); }, {inside_file, "cannot be opened: Not a directory"});
  const std::string packed = bytes_of(write_gzip("whole", std::string(100000, 'a') + "bcd"));
  for (const std::size_t length : {packed.size() - 1, packed.size() / 2, std::size_t(15)}) {
    const std::string path = write_file("cut", packed.substr(0, length));
    expect_data_error([&] { read_file(path, "data"); }, {path, "ends too early"});
  }
  std::string damaged = packed;
  damaged[packed.size() - 6] ^= 1;  // in the checksum
  const std::string path = write_file("damaged", damaged);
  expect_data_error([&] { read_file(path, "data"); }, {path, "damaged"});
}

TEST(ReadFile, StandardInput) {
  const std::string path = write_file("stdin", "from a pipe");
  const int saved = dup(STDIN_FILENO);
  ASSERT_NE(std::freopen(path.c_str(), "rb", stdin), nullptr);
  EXPECT_EQ(read_file("-", "data"), "from a pipe");
  dup2(saved, STDIN_FILENO);
  close(saved);
}

TEST(Corpus, FileAndFingerprint) {
  const std::string path = write_file("text", "some text");
  const Corpus corpus = load_corpus(path);
  EXPECT_EQ(corpus.text.view(), "some text");
  EXPECT_EQ(corpus.name, path);
  EXPECT_EQ(corpus.note, "");
  EXPECT_EQ(corpus.fingerprint(), load_corpus(write_gzip("text.gz", "some text")).fingerprint());
  EXPECT_NE(corpus.fingerprint(), load_corpus(write_file("other", "some texT")).fingerprint());
  expect_data_error([] { load_corpus(write_file("empty", "")); }, {"is empty"});
}

TEST(Corpus, CleansTheJargonFile) {
  const std::string raw =
      "                    The Jargon File\n\n   Table of Contents\n\n   Welcome to the Jargon File\n\n   Foreword\n\n"
      "                          Welcome to the Jargon File\n\n\n   This is \xE2\x80\x9Cprose\xE2\x80\x9D.\n"
      "   \xE2\x94\x82 a table \xE2\x94\x82\n\n"
      "Glossary\n\n   0\n\n   zero\n\n  0\n\n   zero\n\n   :zero: /zee\xC2\xB7roh/, n.\n\n   Na\xC3\xAFve\xC2\xA0"
      "text \xCE\xBB.\n\n  A\n\n   abbrev\n\n   :abbrev: /@-breev/\n\n   Common.\n";
  EXPECT_EQ(clean_jargon(raw),
            "Welcome to the Jargon File\n\nThis is \"prose\".\n\n:zero: /zee-roh/, n.\n\nNaive text .\n\n:abbrev: "
            "/@-breev/\n\nCommon.\n");
}

TEST(Corpus, DefaultIsProseOfTheJargonFile) {
  const Corpus corpus = load_corpus("");
  if (!corpus.note.empty()) GTEST_SKIP() << corpus.note;
  const std::string_view text = corpus.text.view();
  EXPECT_GT(text.size(), 1400000u);
  EXPECT_LT(text.size(), 1500000u);
  EXPECT_TRUE(std::all_of(text.begin(), text.end(), [](char c) { return c == '\n' || (c >= ' ' && c < 127); }));
  EXPECT_EQ(text.find("\n\n\n"), std::string::npos);
  EXPECT_EQ(text.find("\n "), std::string::npos);
}

TEST(Corpus, MadeUpWhereTheDefaultIsMissing) {
  const Environment environment("/nonexistent/jargon.txt.gz");
  const Corpus corpus = load_corpus("");
  EXPECT_NE(corpus.note.find("/nonexistent/jargon.txt.gz does not exist"), std::string::npos) << corpus.note;
  EXPECT_NE(corpus.note.find("jargon-text"), std::string::npos) << corpus.note;
  EXPECT_GE(corpus.text.view().size(), 1u << 20);
  EXPECT_EQ(corpus.text.view(), load_corpus("").text.view());
  const Environment foreign(write_file("foreign", "not that file"));
  EXPECT_NE(load_corpus("").note.find("does not hold it"), std::string::npos);
}

TEST(Corpus, Split) {
  std::vector<std::int32_t> tokens(1000);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = std::int32_t(i);
  const Split split = split_tokens(tokens, 16, "text");
  EXPECT_EQ(split.train.size(), 900);
  EXPECT_EQ(split.validation.size(), 100);
  EXPECT_EQ(split.train.to_vector().back() + 1, split.validation.to_vector().front());
  const Split short_text = split_tokens(std::vector<std::int32_t>(64), 31, "text");
  EXPECT_EQ(short_text.train.size(), 32);
  EXPECT_EQ(short_text.validation.size(), 32);
  expect_data_error([] { split_tokens(std::vector<std::int32_t>(63), 31, "book.txt"); },
                    {"book.txt has 63 tokens", "at least 64"});
}

}  // namespace
}  // namespace sinkhorn
