#include "tools/task.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "autograd/error.h"
#include "models/fields.h"
#include "tools/utf8.h"

namespace sinkhorn {
namespace {

// Runs of code points that print and can be typed, in ascending order; symbols take them from the front.
struct Run {
  char32_t first, last;
};
constexpr Run runs[] = {{U'0', U'9'}, {U'A', U'Z'}, {U'a', U'z'}, {0xC0, 0x24F}};

char32_t symbol_character(std::int64_t symbol) {
  for (const Run& run : runs) {
    const std::int64_t size = run.last - run.first + 1;
    if (symbol < size) return run.first + char32_t(symbol);
    symbol -= size;
  }
  fail("task: no character for the symbol");
}

std::string utf8(char32_t c) {
  std::string text;
  append_utf8(text, c);
  return text;
}

}  // namespace

const std::vector<std::string>& Task::names() {
  static const std::vector<std::string> all = {"copy", "duplicate", "reverse", "sort", "add-one", "recall"};
  return all;
}

Task::Task(const std::string& name, std::int64_t symbols) : name_(name), kind_(), symbols_(symbols) {
  const auto found = std::find(names().begin(), names().end(), name);
  if (found == names().end()) {
    const std::string near = nearest(name, names());
    fail<UsageError>("task: there is no task \"", name, "\"", near.empty() ? "" : "; did you mean " + near + "?");
  }
  kind_ = Kind(found - names().begin());
  if (symbols < 2 || symbols > most_symbols)
    fail<UsageError>("task ", name, ": task_symbols ", symbols, " must be 2 to ", most_symbols);
}

std::int64_t Task::target_length(std::int64_t length) const {
  return kind_ == Kind::recall ? 1 : kind_ == Kind::duplicate ? 2 * length : length;
}

std::int64_t Task::input_length(std::int64_t length, bool encoder_decoder) const {
  const std::int64_t source = source_length(length), target = 1 + target_length(length);
  return encoder_decoder ? std::max(source, target) : source + target;
}

TaskExample Task::draw(Draws& draws, std::int64_t length) const {
  if (length < 1 || (longest() > 0 && length > longest()))
    fail("task ", name_, ": no example of length ", length, " with ", symbols_, " symbols");
  TaskExample example;
  if (kind_ == Kind::recall) {
    std::vector<std::int32_t> keys(static_cast<std::size_t>(symbols_));
    std::iota(keys.begin(), keys.end(), first_symbol);
    for (std::size_t i = 0; i < std::size_t(length); ++i) {  // a shuffle, as far as it is needed
      std::swap(keys[i], keys[i + std::size_t(draws.below(symbols_ - std::int64_t(i)))]);
      example.source.push_back(keys[i]);
      example.source.push_back(first_symbol + std::int32_t(symbols_ + draws.below(symbols_)));
    }
    example.source.push_back(keys[std::size_t(draws.below(length))]);
  } else {
    for (std::int64_t i = 0; i < length; ++i)
      example.source.push_back(first_symbol + std::int32_t(draws.below(symbols_)));
  }
  example.target = answer(example.source, "task");
  return example;
}

std::vector<std::int32_t> Task::answer(const std::vector<std::int32_t>& source, const std::string& where) const {
  std::vector<std::int32_t> target = source;
  switch (kind_) {
    case Kind::copy:
      break;
    case Kind::duplicate:
      target.insert(target.end(), source.begin(), source.end());
      break;
    case Kind::reverse:
      std::reverse(target.begin(), target.end());
      break;
    case Kind::sort:
      std::sort(target.begin(), target.end());
      break;
    case Kind::add_one:
      for (auto& token : target) token = first_symbol + std::int32_t((token - first_symbol + 1) % symbols_);
      break;
    case Kind::recall: {
      const auto is_key = [&](std::int32_t token) { return token < first_symbol + symbols_; };
      bool pairs = source.size() >= 3 && source.size() % 2 == 1;
      std::set<std::int32_t> keys;
      for (std::size_t i = 0; pairs && i < source.size(); ++i) {
        pairs = is_key(source[i]) == (i % 2 == 0);
        if (pairs && i % 2 == 0 && i + 1 < source.size()) pairs = keys.insert(source[i]).second;
      }
      if (!pairs || keys.count(source.back()) == 0)
        fail<DataError>(where, ": recall wants pairs of a key and a value, then one of these keys, such as ",
                        tokenizer().decode({first_symbol, first_symbol + std::int32_t(symbols_), first_symbol}),
                        "; keys are distinct, they and values the first and the second ", symbols_, " of ", alphabet());
      target = {std::find(source.begin(), source.end(), source.back())[1]};
    }
  }
  return target;
}

Tokenizer Task::tokenizer() const {
  std::string text = "./";
  for (std::int64_t i = 0; i < num_tokens() - first_symbol; ++i) append_utf8(text, symbol_character(i));
  return Tokenizer::characters(text);
}

std::string Task::alphabet() const {
  std::string text;
  std::int64_t left = num_tokens() - first_symbol;
  for (const Run& run : runs) {
    if (left <= 0) break;
    const char32_t last = char32_t(std::min<std::int64_t>(run.last, run.first + left - 1));
    text += (text.empty() ? "" : ", ") + utf8(run.first) + (last > run.first ? "-" + utf8(last) : "");
    left -= run.last - run.first + 1;
  }
  return text;
}

std::vector<std::int32_t> Task::parse_source(const std::string& text, const std::string& where) const {
  const Tokenizer tokens = tokenizer();
  std::vector<std::int32_t> source;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = first_code_point(std::string_view(text).substr(at));
    const std::string character = text.substr(at, std::size_t(std::max(c.length, 1)));
    at += character.size();
    if (character == "/" && at == text.size()) break;
    bool known = c.length > 0 && c.value >= U'0';
    try {
      if (known) source.push_back(tokens.encode(character, where)[0]);
    } catch (const DataError&) {
      known = false;
    }
    if (!known)
      fail<DataError>(where, ": ", c.length > 0 ? describe_code_point(c.value) : "a byte that is not UTF-8",
                      " is no symbol of task ", name_, "; its symbols are ", alphabet());
  }
  if (source.empty()) fail<DataError>(where, ": task ", name_, " wants a source of symbols ", alphabet());
  return source;
}

}  // namespace sinkhorn
