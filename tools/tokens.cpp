#include "tools/tokens.h"

#include <algorithm>

#include "autograd/error.h"

namespace sinkhorn {
namespace {

// Where a text of characters keeps offsets: eight bytes for so many tokens, and at most so many to pass over.
constexpr std::int64_t kEvery = 4096;

/// The offset behind `count` characters, or the end of the text.
std::size_t behind(std::string_view text, std::size_t at, std::int64_t count) {
  const auto continues = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; };
  for (; count > 0 && at < text.size(); --count) do
      ++at;
    while (at < text.size() && continues(text[at]));
  return at;
}

}  // namespace

struct Tokens::State {
  std::vector<std::int32_t> held = {};  // without a text

  TextBytes text = {};
  Tokenizer tokenizer = {};
  std::string where = {};
  std::vector<std::size_t> offsets = {};  // of every kEvery-th token; none where every byte is a token
};

Tokens::Tokens(std::vector<std::int32_t> tokens)
    : state_(std::make_shared<State>(State{std::move(tokens)})), end_(std::int64_t(state_->held.size())) {}

Tokens::Tokens(const TextBytes& text, const Tokenizer& tokenizer, const std::string& where) {
  State state{{}, text, tokenizer, where};
  if (tokenizer.is_bytes()) {
    end_ = std::int64_t(text.view().size());
  } else {
    end_ = tokenizer.walk(text.view(), where, [&](std::int64_t place, std::size_t offset) {
      if (place % kEvery == 0) state.offsets.push_back(offset);
    });
  }
  text.require_unchanged();
  state_ = std::make_shared<State>(std::move(state));
}

Tokens Tokens::slice(std::int64_t begin, std::int64_t end) const {
  if (begin < 0 || begin > end || end > size()) fail("tokens: ", begin, " .. ", end, " is outside 0 .. ", size());
  Tokens part = *this;
  part.begin_ = begin_ + begin;
  part.end_ = begin_ + end;
  return part;
}

void Tokens::copy(std::int64_t first, std::int64_t count, std::int32_t* to) const {
  if (first < 0 || count < 0 || first + count > size())
    fail("tokens: ", first, " .. ", first + count, " is outside 0 .. ", size());
  if (count == 0) return;
  if (!state_->held.empty()) {
    std::copy_n(state_->held.begin() + begin_ + first, count, to);
    return;
  }
  // Changes are looked for twice: before, since the message is clearer than that of a character nobody knows, and
  // after, since only then it is sure that all is from the text that was opened.
  const State& state = *state_;
  state.text.require_unchanged();
  const std::size_t begin = offset_of(begin_ + first), end = offset_of(begin_ + first + count);
  const std::vector<std::int32_t> tokens =
      state.tokenizer.encode(state.text.view().substr(begin, end - begin), state.where);
  state.text.require_unchanged();
  if (std::int64_t(tokens.size()) != count)
    fail<DataError>(state.where, ": ", tokens.size(), " tokens stand where there were ", count,
                    "; give a copy that nobody changes");
  std::copy(tokens.begin(), tokens.end(), to);
}

std::vector<std::int32_t> Tokens::to_vector() const {
  std::vector<std::int32_t> all(static_cast<std::size_t>(size()));
  copy(0, size(), all.data());
  return all;
}

std::string_view Tokens::bytes() const {
  if (size() == 0 || !state_->held.empty()) return {};
  const std::size_t begin = offset_of(begin_), end = offset_of(end_);
  return state_->text.view().substr(begin, end - begin);
}

std::size_t Tokens::offset_of(std::int64_t place) const {
  const State& state = *state_;
  if (state.tokenizer.is_bytes()) return std::size_t(place);
  if (state.offsets.empty()) return 0;
  const std::int64_t known = std::min(place / kEvery, std::int64_t(state.offsets.size()) - 1);
  return behind(state.text.view(), state.offsets[std::size_t(known)], place - known * kEvery);
}

}  // namespace sinkhorn
