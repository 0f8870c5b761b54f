// Random damage, to bytes and to structure: the reader must accept or refuse it with a DataError, and nothing else.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>

#include "autograd/error.h"
#include "models/safetensors.h"
#include "tests/models/model_disk.h"
#include "tests/shared.h"

namespace sinkhorn {
namespace {

using namespace sinkhorn::safetensors;

/// Makes files that are almost right: a valid header as tokens, a few of which are changed, and then a few bytes.
class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}

  std::size_t below(std::size_t bound) { return random_() % bound; }
  bool one_in(std::size_t n) { return below(n) == 0; }

  std::string file() {
    valid();
    for (std::size_t n = one_in(8) ? 0 : 1 + below(3); n > 0; --n) damage_token();
    std::string header;
    for (const std::string& token : tokens_) header += token;
    header += std::string(below(4), ' ');
    std::uint64_t length = header.size();
    if (one_in(32)) length = one_in(2) ? length + below(16) - 8 : random_() >> below(64);
    if (one_in(16)) data_bytes_ += below(9) - std::min<std::size_t>(data_bytes_, 4);
    std::string all(reinterpret_cast<const char*>(&length), 8);
    all += header;
    for (std::size_t n = data_bytes_; n > 0; --n) all += static_cast<char>(random_());
    if (one_in(4))
      for (std::size_t n = below(3); n > 0 && !all.empty(); --n) damage_byte(all);
    return all;
  }

 private:
  template <std::size_t N>
  std::string any_of(const char* const (&choices)[N]) {
    return choices[below(N)];
  }
  void add(std::initializer_list<std::string> tokens) { tokens_.insert(tokens_.end(), tokens); }

  /// A header that every rule allows, and the size of its data.
  void valid() {
    tokens_.clear();
    data_bytes_ = 0;
    add({"{"});
    bool first = true;
    if (one_in(2)) {
      add({"\"__metadata__\"", ":", "{"});
      for (std::size_t i = 0, n = below(3); i < n; ++i) {
        if (i > 0) add({","});
        add({"\"k" + std::to_string(i) + "\"", ":", "\"v\\u00e9\""});
      }
      add({"}"});
      first = false;
    }
    for (std::size_t i = 0, n = below(4); i < n; ++i) {
      if (!std::exchange(first, false)) add({","});
      const auto type = static_cast<Type>(below(13));
      std::size_t bytes = type_size(type);
      add({"\"t" + std::to_string(i) + "\"", ":", "{", "\"dtype\"", ":", "\"" + std::string(type_name(type)) + "\"",
           ",", "\"shape\"", ":", "["});
      for (std::size_t axis = 0, rank = below(max_rank + 1); axis < rank; ++axis) {
        const std::size_t extent = one_in(12) ? 0 : 1 + below(3);
        if (axis > 0) add({","});
        add({std::to_string(extent)});
        bytes *= extent;
      }
      add({"]", ",", "\"data_offsets\"", ":", "[", std::to_string(data_bytes_), ",",
           std::to_string(data_bytes_ + bytes), "]", "}"});
      data_bytes_ += bytes;
    }
    add({"}"});
  }

  std::string odd_token() {
    static const char* const odd[] = {"0",
                                      "1",
                                      "2",
                                      "-1",
                                      "-0",
                                      "7",
                                      "8",
                                      "1.0",
                                      "1e3",
                                      "1e999",
                                      "4294967295",
                                      "4294967296",
                                      "2147483648",
                                      "9223372036854775807",
                                      "9223372036854775808",
                                      "18446744073709551615",
                                      "18446744073709551616",
                                      "-9223372036854775808",
                                      "-9223372036854775809",
                                      "null",
                                      "true",
                                      "\"\"",
                                      "\"F32\"",
                                      "\"BF16\"",
                                      "\"F8_E4M3\"",
                                      "\"__metadata__\"",
                                      "\"dtype\"",
                                      "\"shape\"",
                                      "\"data_offsets\"",
                                      "\"t0\"",
                                      "\"\\ud800\"",
                                      "\"\\u0000\"",
                                      "\"\xFF\"",
                                      "\"\xED\xA0\x80\"",
                                      "\"\xF4\x90\x80\x80\"",
                                      "{",
                                      "}",
                                      "[",
                                      "]",
                                      ",",
                                      ":",
                                      "{}",
                                      "[]",
                                      "//",
                                      "\"",
                                      "\\",
                                      "\n",
                                      "[[[[[[[[",
                                      "{\"a\":{\"a\":{\"a\":"};
    if (one_in(64)) return std::string(below(2000), '[');
    if (one_in(64)) return std::string(1, '\0');
    if (one_in(16)) return "\"" + std::string(below(400), 'x') + "\"";
    return any_of(odd);
  }

  void damage_token() {
    const auto at = tokens_.begin() + static_cast<std::ptrdiff_t>(below(tokens_.size()));
    const std::string other = tokens_[below(tokens_.size())];
    switch (below(6)) {
      case 0:
        *at = odd_token();
        break;
      case 1:
        *at = other;
        break;  // a duplicate name, another tensor's offset, ...
      case 2:
        tokens_.insert(at, odd_token());
        break;
      case 3:
        if (tokens_.size() > 1) tokens_.erase(at);
        break;
      case 4:
        std::swap(*at, tokens_[below(tokens_.size())]);
        break;
      default: {  // a number a little off, or another token of the same kind
        const bool number = std::isdigit(static_cast<unsigned char>(at->front()));
        if (number && at->size() < 10)
          *at = std::to_string(std::stoll(*at) + static_cast<long long>(below(5)) - 2);
        else
          *at = odd_token();
      }
    }
  }

  void damage_byte(std::string& all) {
    const std::size_t at = below(all.size());
    switch (below(4)) {
      case 0:
        all[at] = static_cast<char>(all[at] ^ 1 << below(8));
        break;
      case 1:
        all[at] = static_cast<char>(random_());
        break;
      case 2:
        all.resize(at);
        break;
      default:
        all.insert(at, all.substr(below(all.size()), below(20)));
    }
  }

  std::mt19937_64 random_;
  std::vector<std::string> tokens_;
  std::size_t data_bytes_ = 0;
};

/// Uses everything in an accepted file, with what the reader promised about it.
void use(const File& file) {
  std::size_t covered = 0;
  for (const Entry& entry : file.entries) {
    ASSERT_LE(entry.begin, entry.end);
    ASSERT_LE(entry.end, file.data.size());
    ASSERT_LE(entry.shape.size(), max_rank);
    std::size_t elements = 1;
    for (const std::int64_t extent : entry.shape) elements *= static_cast<std::size_t>(extent);
    ASSERT_EQ(elements * type_size(entry.type), file.bytes(entry).size());
    ASSERT_EQ(file.find(entry.name), &entry);
    ASSERT_EQ(as_f64(file, entry).size(), elements);
    try {
      ASSERT_EQ(as_i64(file, entry).size(), elements);
    } catch (const DataError&) {
    }
    covered += file.bytes(entry).size();
  }
  ASSERT_EQ(covered, file.data.size());
  EXPECT_THROW(verify(file), DataError);  // no one made digests by chance
}

/// A message without what varies: names, numbers, the JSON library's words.
std::string rule_of(const std::string& message) {
  std::string rule;
  bool in_quotes = false;
  for (const char c : message.substr(0, std::min(message.find("; the file"), message.find(" at its byte")))) {
    if (c == '\'')
      in_quotes = !in_quotes;
    else if (!in_quotes && !std::isdigit(static_cast<unsigned char>(c)))
      rule += c;
  }
  return rule;
}

TEST(SafetensorsFuzz, DamageIsRefusedOrHarmless) {
  const char* given = std::getenv("SINKHORN_FUZZ_RUNS");
  const long runs = given != nullptr                  ? std::atol(given)
                    : sinkhorn::testing::long_tests() ? 10'000'000
                    : build_info::sanitizers.empty()  ? 400'000
                                                      : 60'000;
  Mutator mutator(20);
  std::set<std::string> rules;
  long accepted = 0;
  for (long run = 0; run < runs; ++run) {
    const std::string bytes = mutator.file();
    // A copy of its exact size, so that the address sanitizer sees a read past the end.
    const std::vector<std::byte> exact(reinterpret_cast<const std::byte*>(bytes.data()),
                                       reinterpret_cast<const std::byte*>(bytes.data()) + bytes.size());
    std::string refusal;
    try {
      use(parse(exact, "/x"));
      ++accepted;
    } catch (const DataError& error) {
      refusal = error.what();
      ASSERT_LT(refusal.size(), 700u);
      ASSERT_TRUE(std::all_of(refusal.begin(), refusal.end(), [](char c) { return c >= 0x20 && c < 0x7f; })) << refusal;
      rules.insert(rule_of(refusal));
    } catch (const std::exception& error) {
      FAIL() << "run " << run << ": " << error.what();
    }
    if (run % 16 != 0) continue;
    sinkhorn::testing::ModelDisk disk;  // the same bytes in a file: the same answer
    const int file = disk.open("/x", O_CREAT | O_WRONLY, 0);
    for (std::span<const std::byte> rest = exact; !rest.empty();)
      rest = rest.subspan(static_cast<std::size_t>(disk.write(file, rest)));
    try {
      use(read("/x", disk));
      ASSERT_EQ(refusal, "") << "run " << run;
    } catch (const DataError& error) {
      ASSERT_EQ(refusal, error.what()) << "run " << run;
    }
  }
  EXPECT_GT(accepted, runs / 20);
  EXPECT_GT(rules.size(), 40u) << "few rules were reached";
  RecordProperty("rules", static_cast<int>(rules.size()));
}

}  // namespace
}  // namespace sinkhorn
