// The safetensors reader's rules, its conversions, and that what is written is what is read.
#include "models/safetensors.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "autograd/error.h"
#include "models/xxh64.h"
#include "tests/shared.h"

namespace sinkhorn {
namespace {

using namespace sinkhorn::safetensors;
using sinkhorn::testing::TemporaryFolder;

/// The bytes of a file with this header and data.
std::string raw(const std::string& header, const std::string& data = "") {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

/// A view of the bytes, which must outlive it.
File parsed(const std::string& bytes) { return parse(std::as_bytes(std::span(bytes)), "x.safetensors"); }
File parsed(std::string&&) = delete;

/// The message with which the reader refuses these bytes; "" if it accepts them.
std::string refusal(const std::string& bytes) {
  try {
    parsed(bytes);
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

TEST(Safetensors, ReadsWhatItWrote) {
  TemporaryFolder folder;
  const std::vector<float> weight = {1.5f, -2, 3, 4, 5, 6};
  const std::vector<double> moment = {1e-300};
  const std::vector<std::uint8_t> mask = {1, 0, 1};
  const auto path = folder.path / "a.safetensors";
  const Metadata metadata = {{"step", "7"}, {"text", "line\nquote\" \xC3\xA9 \x01"}};
  write(path, metadata,
        std::vector<Item>{{"mask", Type::BOOL, {3}, bytes_of(mask)},
                          {"weight", Type::F32, {2, 3}, bytes_of(weight)},
                          {"none", Type::F32, {0, 5}, {}},
                          {"moment", Type::F64, {}, bytes_of(moment)}});
  const File file = read(path);
  EXPECT_EQ(file.metadata, metadata);
  ASSERT_EQ(file.entries.size(), 4u);
  EXPECT_EQ(file.require("weight").shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(as_f32(file, file.require("weight")), weight);
  EXPECT_EQ(as_f64(file, file.require("moment")), moment);
  EXPECT_EQ(as_i64(file, file.require("mask")), (std::vector<std::int64_t>{1, 0, 1}));
  EXPECT_TRUE(as_f64(file, file.require("none")).empty());
  EXPECT_EQ(file.find("absent"), nullptr);
  EXPECT_THROW(file.require("absent"), DataError);
  for (const Entry& entry : file.entries)
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(file.bytes(entry).data()) % type_size(entry.type), 0u) << entry.name;
}

TEST(Safetensors, DataBeginsAtAMultipleOfEightBytes) {
  TemporaryFolder folder;
  for (std::size_t length = 0; length < 9; ++length) {
    write(folder.path / "a", {{"key", std::string(length, 'x')}}, {});
    EXPECT_EQ(std::filesystem::file_size(folder.path / "a") % 8, 0u);
  }
}

TEST(Safetensors, EveryRuleHasItsOwnMessage) {
  const std::string eight(8, '\0');
  const std::string good = tensor("a", "F32", "[2]", "[0,8]");
  ASSERT_EQ(refusal(raw("{" + good + "}", eight)), "");
  const auto huge_length = [](std::uint64_t length) {
    return std::string(reinterpret_cast<const char*>(&length), 8) + "{}";
  };
  const struct {
    std::string bytes, words;
  } cases[] = {
      {"", "has 0 bytes"},
      {"1234567", "has 7 bytes"},
      {huge_length(100'000'001), "more than the limit of 100000000"},
      {huge_length(~0ull), "more than the limit"},
      {huge_length(3), "but only 2 follow"},
      {raw(""), "does not begin with '{'"},
      {raw(" {}"), "does not begin with '{'"},
      {raw("\xEF\xBB\xBF{}"), "does not begin with '{'"},
      {raw("[]"), "does not begin with '{'"},
      {raw("{"), "not JSON"},
      {raw("{}x"), "not JSON"},
      {raw("{}{}"), "not JSON"},
      {raw(std::string("{}\0x", 4)), "has a NUL at its byte 2"},
      {raw("{\"\xFF\":1}"), "UTF-8"},
      {raw("{\"\xC0\x80\":1}"), "UTF-8"},
      {raw("{/**/}"), "not JSON"},
      {raw("{" + good + ",}", eight), "not JSON"},
      {raw("{\"__metadata__\":{\"k\":1}}"), "the metadata of 'k' is a number, not text"},
      {raw("{\"__metadata__\":{\"k\":{}}}"), "the metadata of 'k' is an object"},
      {raw("{\"__metadata__\":{\"k\":\"1\",\"k\":\"1\"}}"), "the key 'k' twice"},
      {raw("{\"__metadata__\":{},\"__metadata__\":{}}"), "__metadata__ appears twice"},
      {raw("{\"__metadata__\":null}"), "'__metadata__' is null"},
      {raw("{\"a\":3}"), "'a' is a number"},
      {raw("{\"a\":[]}"), "'a' is a list"},
      {raw("{\"a\":{}}"), "'a' has no dtype"},
      {raw("{\"a\":{\"dtype\":\"F32\",\"shape\":[0]}}"), "'a' has no data_offsets"},
      {raw("{\"a\":{\"dtype\":{}}}"), "'a' has an object in dtype"},
      {raw("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}"), "'a' has the field dtype twice"},
      {raw("{\"a\":{\"strides\":[1]}}"), "'a' has an unknown field 'strides'"},
      {raw("{" + tensor("a", "F33", "[2]", "[0,8]") + "}", eight), "'a' has the unknown dtype 'F33' (known: F64, F32,"},
      {raw("{" + tensor("a", "F32", "[-2]", "[0,8]") + "}", eight), "'a' has the negative extent -2"},
      {raw("{" + tensor("a", "F32", "[2.0]", "[0,8]") + "}", eight), "'a' has '2.0' where an integer is needed"},
      {raw("{" + tensor("a", "F32", "[1e400]", "[0,8]") + "}", eight), "not JSON"},
      {raw("{" + tensor("a", "F32", "[true]", "[0,8]") + "}", eight), "'a' has a boolean in shape"},
      {raw("{" + tensor("a", "F32", "[[2]]", "[0,8]") + "}", eight), "'a' has a list in shape"},
      {raw("{" + tensor("a", "F32", "[9223372036854775808]", "[0,8]") + "}", eight), "beyond 2^63 - 1"},
      {raw("{" + tensor("a", "F32", "[18446744073709551618]", "[0,8]") + "}", eight), "where an integer is needed"},
      {raw("{" + tensor("a", "F32", "[1,1,1,1,1,1,2]", "[0,8]") + "}", eight), "'a' has more than 6 dimensions"},
      {raw("{" + tensor("a", "F32", "[4611686018427387904,2]", "[0,8]") + "}", eight),
       "'a' has a shape whose size overflows"},
      {raw("{" + tensor("a", "F32", "[0,4611686018427387904]", "[0,0]") + "}"), "'a' has a shape whose size overflows"},
      {raw("{" + tensor("a", "F32", "[3]", "[0,8]") + "}", eight), "'a' needs 12 bytes"},
      {raw("{" + tensor("a", "F32", "[1099511627776]", "[0,8]") + "}", eight), "'a' needs 4398046511104 bytes"},
      {raw("{" + tensor("a", "F32", "[2]", "[0]") + "}", eight), "'a' has 1 data_offsets"},
      {raw("{" + tensor("a", "F32", "[2]", "[0,8,8]") + "}", eight), "'a' has more than two data_offsets"},
      {raw("{" + tensor("a", "F32", "[2]", "[8,0]") + "}", eight), "'a' ends at byte 0, before it begins at 8"},
      {raw("{" + tensor("a", "F32", "[2]", "[-8,0]") + "}", eight), "'a' has the negative data offset -8"},
      {raw("{" + good + "}", eight.substr(1)), "'a' ends at byte 8 of a data area of 7 bytes"},
      {raw("{" + good + "}", eight + "x"), "the tensors end at byte 8 of a data area of 9 bytes"},
      {raw("{}", "x"), "the tensors end at byte 0 of a data area of 1"},
      {raw("{" + tensor("a", "U8", "[4]", "[0,4]") + "," + tensor("b", "U8", "[3]", "[5,8]") + "}", eight),
       "'b' begins at byte 5 of the data, which leaves a hole"},
      {raw("{" + tensor("a", "U8", "[5]", "[0,5]") + "," + tensor("b", "U8", "[4]", "[4,8]") + "}", eight),
       "'b' begins at byte 4 of the data, which overlaps"},
      {raw("{" + tensor("a", "U8", "[8]", "[0,8]") + "," + tensor("b", "U8", "[0]", "[4,4]") + "}", eight),
       "'b' begins at byte 4 of the data, which overlaps"},
      {raw("{" + tensor("a", "U8", "[4]", "[0,4]") + "," + tensor("a", "U8", "[4]", "[4,8]") + "}", eight),
       "'a' appears twice"},
      {raw("{" + std::string(100'000, '[')), "not JSON"},
      {raw("{\"a\":" + std::string(100'000, '[')), "'a' is a list"},
  };
  for (const auto& [bytes, words] : cases) {
    const std::string message = refusal(bytes);
    EXPECT_NE(message.find(words), message.npos) << "wanted: " << words << "\ngot:    " << message;
    EXPECT_TRUE(message.starts_with("x.safetensors: ")) << message;
  }
}

TEST(Safetensors, MessagesStayOnOneShortLine) {
  const std::string message = refusal(raw("{\"\\u001b[31m\\n" + std::string(100'000, 'a') + "\":3}"));
  ASSERT_FALSE(message.empty());
  EXPECT_LT(message.size(), 400u);
  for (const char c : message) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << message;
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  EXPECT_EQ(refusal(raw("{}")), "");
  EXPECT_EQ(refusal(raw("{}   \n")), "");
  EXPECT_EQ(refusal(raw("{\"__metadata__\":{}}")), "");
  const std::string bytes = raw("{" + tensor("b", "U8", "[]", "[0,1]") + "," + tensor("z", "F64", "[3,0]", "[1,1]") +
                                    "," + tensor("a", "I16", "[1,1,1,1,1,1]", "[1,3]") + "}",
                                "\x05\xFE\xFF");
  const File file = parsed(bytes);
  EXPECT_EQ(as_i64(file, file.require("b")), std::vector<std::int64_t>{5});
  EXPECT_EQ(as_i64(file, file.require("a")), std::vector<std::int64_t>{-2});
  EXPECT_EQ(file.require("a").shape.size(), max_rank);
}

TEST(Safetensors, ConvertsEveryType) {
  const auto convert = [](const std::string& dtype, const std::string& bytes) {
    const std::size_t count =
        bytes.size() / (dtype == "BOOL" ? 1 : std::stoul(dtype.substr(dtype.find_first_of("0123456789"))) / 8);
    const std::string all = raw(
        "{" + tensor("a", dtype, "[" + std::to_string(count) + "]", "[0," + std::to_string(bytes.size()) + "]") + "}",
        bytes);
    const File file = parsed(all);
    const std::vector<float> narrow = as_f32(file, file.entries[0]);
    std::vector<double> wide = as_f64(file, file.entries[0]);
    EXPECT_EQ(narrow, std::vector<float>(wide.begin(), wide.end())) << dtype;
    return wide;
  };
  const auto words = [](std::initializer_list<std::uint16_t> list) {
    return std::string(reinterpret_cast<const char*>(std::data(list)), list.size() * 2);
  };
  using Values = std::vector<double>;
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(convert("F16", words({0x3C00, 0xC000, 0x7BFF, 0x0400, 0x0001, 0x03FF, 0x7C00, 0xFC00})),
            (Values{1, -2, 65504, std::ldexp(1, -14), std::ldexp(1, -24), std::ldexp(1023, -24), infinity, -infinity}));
  EXPECT_EQ(convert("BF16", words({0x3F80, 0xC000, 0x0001, 0x7F80})), (Values{1, -2, std::ldexp(1, -133), infinity}));
  EXPECT_EQ(convert("I8", "\x7F\x80"), (Values{127, -128}));
  EXPECT_EQ(convert("U8", "\x7F\x80"), (Values{127, 128}));
  EXPECT_EQ(convert("BOOL", std::string("\0\1\2", 3)), (Values{0, 1, 1}));
  EXPECT_EQ(convert("I16", words({0xFFFF})), Values{-1});
  EXPECT_EQ(convert("U16", words({0xFFFF})), Values{65535});
  EXPECT_EQ(convert("I32", words({0, 0x8000})), Values{-2147483648.0});
  EXPECT_EQ(convert("U32", words({0, 0x8000})), Values{2147483648.0});
  EXPECT_EQ(convert("I64", words({0, 0, 0, 0x8000})), Values{-9223372036854775808.0});
  EXPECT_EQ(convert("U64", words({0, 0, 0, 0x8000})), Values{9223372036854775808.0});
  const std::string not_a_number = raw("{" + tensor("a", "F16", "[2]", "[0,4]") + "}", words({0x7C01, 0x8000}));
  const std::vector<float> values = as_f32(parsed(not_a_number), parsed(not_a_number).entries[0]);
  EXPECT_TRUE(std::isnan(values[0]));
  EXPECT_TRUE(std::signbit(values[1]));
}

TEST(Safetensors, IntegersAreExactOrRefused) {
  const std::int64_t big = (std::int64_t{1} << 53) + 1;
  const std::string bytes =
      raw("{" + tensor("a", "I64", "[1]", "[0,8]") + "}", {reinterpret_cast<const char*>(&big), 8});
  EXPECT_EQ(as_i64(parsed(bytes), parsed(bytes).entries[0]), std::vector<std::int64_t>{big});
  const std::string over = raw("{" + tensor("a", "U64", "[1]", "[0,8]") + "}", std::string(8, '\xFF'));
  EXPECT_THROW(as_i64(parsed(over), parsed(over).entries[0]), DataError);
  const std::string real = raw("{" + tensor("a", "F64", "[1]", "[0,8]") + "}", std::string(8, '\0'));
  EXPECT_THROW(as_i64(parsed(real), parsed(real).entries[0]), DataError);
}

TEST(Safetensors, WriterRefusesWhatNoReaderAccepts) {
  TemporaryFolder folder;
  const std::vector<float> two = {1, 2};
  const auto refused = [&](std::vector<Item> items, const Metadata& metadata = {}) {
    EXPECT_THROW(write(folder.path / "a.safetensors", metadata, items), Error);
    EXPECT_TRUE(std::filesystem::is_empty(folder.path));
  };
  refused({{"a", Type::F32, {3}, bytes_of(two)}});
  refused({{"a", Type::F32, {-1, -2}, bytes_of(two)}});
  refused({{"a", Type::F32, {1, 1, 1, 1, 1, 1, 2}, bytes_of(two)}});
  refused({{"a", Type::F32, {2}, bytes_of(two)}, {"a", Type::F32, {2}, bytes_of(two)}});
  refused({{"__metadata__", Type::F32, {2}, bytes_of(two)}});
  refused({{"\xFF", Type::F32, {2}, bytes_of(two)}});
  refused({}, {{"path", "caf\xE9"}});
}

TEST(Safetensors, OnlyRegularFilesAreRead) {
  TemporaryFolder folder;
  ASSERT_EQ(mkfifo((folder.path / "pipe").c_str(), 0600), 0);  // must not make us wait for a writer
  const auto refused = [](const std::filesystem::path& path, const std::string& words) {
    try {
      read(path);
      ADD_FAILURE() << path;
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
  };
  refused(folder.path / "absent", "No such file or directory");
  for (const auto& path : {folder.path, folder.path / "pipe", std::filesystem::path("/dev/zero")})
    refused(path, "is not a file; give the path of");
}

TEST(Safetensors, AnyFlippedBitIsFound) {
  TemporaryFolder folder;
  const std::vector<float> weight = {1, 2, 3, 4};
  const std::vector<std::int64_t> step = {77};
  const std::vector<Item> items = {{"weight", Type::F32, {2, 2}, bytes_of(weight)},
                                   {"step", Type::I64, {1}, bytes_of(step)}};
  const auto path = folder.path / "a.safetensors";
  write(path, with_digests({{"config", "dim = 16"}, {"step", "77"}}, items), items);
  std::string bytes;
  {
    std::ifstream in(path, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  verify(parsed(bytes));
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ 1 << bit % 8);
    EXPECT_THROW(verify(parsed(bytes)), DataError) << "bit " << bit % 8 << " of byte " << bit / 8;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ 1 << bit % 8);
  }
}

TEST(Safetensors, DigestsCoverEveryTensorAndItsShape) {
  TemporaryFolder folder;
  const std::vector<float> values = {1, 2, 3, 4};
  const Item square = {"a", Type::F32, {2, 2}, bytes_of(values)}, flat = {"a", Type::F32, {4}, bytes_of(values)};
  const Item other = {"b", Type::F32, {4}, bytes_of(values)};
  const auto refusal_of = [&](const Metadata& metadata, const std::vector<Item>& items) -> std::string {
    const auto path = folder.path / "a.safetensors";
    write(path, metadata, items);
    try {
      verify(read(path));
    } catch (const DataError& error) {
      return error.what();
    }
    return "";
  };
  const auto refused = [&](const std::string& words, const Metadata& metadata, const std::vector<Item>& items) {
    const std::string message = refusal_of(metadata, items);
    EXPECT_NE(message.find(words), message.npos) << message;
  };
  const std::vector<Item> both = {square, other}, one = {square};
  EXPECT_EQ(refusal_of(with_digests({}, both), both), "");
  EXPECT_EQ(refusal_of(with_digests({}, {}), {}), "");
  refused("the metadata has no digest", {}, both);
  refused("tensor 'b' has no digest", with_digests({}, one), both);
  refused("tensor 'b' is missing", with_digests({}, both), one);
  refused("tensor 'a' does not match its digest", with_digests({}, one), {flat});
  Metadata changed = with_digests({{"step", "1"}}, one);
  changed["step"] = "2";
  refused("the metadata does not match its digest", changed, one);
}

TEST(Safetensors, ReadsTheReferenceFiles) {
  const auto shared = sinkhorn::testing::shared_folder();
  if (!shared || !std::filesystem::is_directory(*shared / "fixtures")) GTEST_SKIP() << "no reference files here";
  int count = 0;
  for (const auto& each : std::filesystem::directory_iterator(*shared / "fixtures")) {
    if (each.path().extension() != ".safetensors") continue;
    const File file = read(each.path());
    EXPECT_EQ(file.metadata.at("case"), each.path().stem().string());
    EXPECT_TRUE(nlohmann::json::accept(file.metadata.at("config"))) << each.path();
    const bool has_output = file.find("out") != nullptr || file.find("loss") != nullptr;
    EXPECT_TRUE(has_output) << each.path();
    for (const Entry& entry : file.entries)
      for (const double value : as_f64(file, entry))
        ASSERT_TRUE(std::isfinite(value)) << each.path() << " " << entry.name;
    ++count;
  }
  EXPECT_GT(count, 0);
}

TEST(Xxh64, KnownAnswers) {
  EXPECT_EQ(xxh64(""), 0xEF46DB3751D8E999u);
  EXPECT_EQ(xxh64("a"), 0xD24EC4F1A98C6E5Bu);
  EXPECT_EQ(xxh64("abc"), 0x44BC2CF5AD770999u);
  EXPECT_EQ(xxh64("Nobody inspects the spammish repetition"), 0xFBCEA83C8A378BF1u);
}

}  // namespace
}  // namespace sinkhorn
