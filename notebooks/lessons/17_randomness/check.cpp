#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "autograd/ops/elementwise.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/17_randomness/exercise.h"

namespace sinkhorn::lesson {
namespace {

std::string hex(const Words& words) {
  return fmt::format("{:08x} {:08x} {:08x} {:08x}", words[0], words[1], words[2], words[3]);
}

void same_words(lessons::Checks& checks, const std::string& name, const Words& counter, std::uint32_t key0,
                std::uint32_t key1, const Words& want) {
  const Words got = philox(counter, key0, key1);
  checks.that(
      name, got == want,
      fmt::format("counter {}, key {:08x} {:08x}: expected {}, got {}", hex(counter), key0, key1, hex(want), hex(got)));
}

// From the file of known answers of Random123.
void check_known_answers(lessons::Checks& checks) {
  constexpr std::uint32_t ones = ~0U;
  same_words(checks, "known answer: all zeros", {0, 0, 0, 0}, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  same_words(checks, "known answer: all ones", {ones, ones, ones, ones}, ones, ones,
             {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  same_words(checks, "known answer: digits of pi", {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822,
             0x299f31d0, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

void check_words(lessons::Checks& checks, const RandomBits& bits) {
  const std::uint32_t key0 = bits.word(0), key1 = bits.word(1);
  const Words counter = {bits.word(2), bits.word(3), bits.word(4), bits.word(5)};
  same_words(checks, "philox of a random counter and key", counter, key0, key1, sinkhorn::philox(counter, key0, key1));

  const Stream stream{key0 | std::uint64_t(key1) << 32, bits.word(6) % 1000};
  const RandomBits want{stream.key, stream.step};
  const auto compare = [&](const std::string& name, std::uint64_t first) {
    for (std::uint64_t i = first; i < first + 9; ++i)
      if (const std::uint32_t got = word(stream, i); got != want.word(i))
        return checks.that(name, false, fmt::format("word {}: expected {:08x}, got {:08x}", i, want.word(i), got));
    checks.that(name, true);
  };
  compare("the first words of a stream", 0);
  compare("words far into a stream", bits.word(7));
  compare("words beyond 2^34", (std::uint64_t(1) << 34) + bits.word(8));

  for (const std::uint32_t tag : {std::uint32_t(0), std::uint32_t(1), bits.word(9)}) {
    const Stream child = split(stream, tag);
    const std::uint64_t key = Rng(stream.key).split(tag).key();
    checks.that("split: the key of a part", child.key == key,
                fmt::format("tag {}: expected key {:016x}, got {:016x}", tag, key, child.key));
    checks.equal("split: the step stays", child.step, stream.step);
  }
  // Nothing the parent ever draws may be a child's key.
  std::set<std::uint64_t> drawn;
  for (std::uint64_t i = 0; i < 64; i += 4)
    drawn.insert(word({stream.key, 0}, i) | std::uint64_t(word({stream.key, 0}, i + 1)) << 32);
  bool apart = drawn.size() == 16;
  for (std::uint32_t tag = 0; tag < 16; ++tag) apart = apart && drawn.count(split({stream.key, 0}, tag).key) == 0;
  checks.that("keys of parts are none of the words that the whole draws", apart,
              "the key of a part is made of two words of its parent's stream");
}

void check_uniform(lessons::Checks& checks, const RandomBits& bits) {
  std::vector<std::uint32_t> words = {~0U, ~0U - 1, ~0U - 127, 1U << 31, 512, 511, 1, 0};
  for (std::uint64_t i = 0; i < 200; ++i) words.push_back(bits.word(20 + i));
  for (const std::uint32_t w : words) {
    const float got = uniform(w), want = RandomBits::to_uniform<float>(w);
    if (!(got > 0 && got < 1))
      return checks.that("uniform", false, fmt::format("word {:08x} gives {}, which is not inside (0, 1)", w, got));
    if (got != want)
      return checks.that("uniform", false, fmt::format("word {:08x}: expected {:.9g}, got {:.9g}", w, want, got));
  }
  checks.that("uniform", true);
}

using Piecewise = Tensor (*)(const Tensor& x, std::uint64_t first, double p, const Stream& stream);

// x cut into random pieces, which are computed from the last to the first and put together again.
Tensor in_pieces(Piecewise function, const Tensor& x, double p, const Stream& stream, const RandomBits& bits) {
  std::vector<std::int64_t> cuts = {0, x.count()};
  for (std::uint64_t i = 0; i < 5; ++i) cuts.push_back(bits.word(i) % x.count());
  std::sort(cuts.begin(), cuts.end());
  Tensor y = Tensor::full(x.shape(), -99);
  for (std::size_t c = cuts.size() - 1; c > 0; --c) {
    const std::int64_t begin = cuts[c - 1], end = cuts[c];
    if (begin == end) continue;
    const Tensor piece = function(x.slice(begin, end).clone(), std::uint64_t(begin), p, stream);
    if (piece.shape() != Shape{end - begin} || piece.dtype() != DType::f32)
      fail("a piece must come back as f32 of its own shape");
    std::copy(piece.span<float>().begin(), piece.span<float>().end(), y.span<float>().begin() + begin);
  }
  return y;
}

void same_bits(lessons::Checks& checks, const std::string& name, const Tensor& got, const Tensor& want) {
  if (!got || got.shape() != want.shape() || got.dtype() != want.dtype()) return checks.near(name, got, want);
  for (std::int64_t i = 0; i < want.count(); ++i) {
    const float a = got.reshape({-1}).span<float>()[std::size_t(i)],
                b = want.reshape({-1}).span<float>()[std::size_t(i)];
    if (a != b) return checks.that(name, false, fmt::format("element {}: expected {:.9g}, got {:.9g}", i, b, a));
  }
  checks.that(name, true);
}

void check_dropout(lessons::Checks& checks, const Rng& rng, double p) {
  const std::string with = fmt::format(" with p = {}", p);
  const std::int64_t count = 200 + rng.split(0).bits().word(0) % 200;
  const Tensor x = uniform(rng.split(1), {count}, 0.5, 2), dy = uniform(rng.split(2), {count}, -2, -0.5);
  const Rng noise = rng.split(3);
  const Stream stream{noise.key(), 0};
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(x);
  const Var y = sinkhorn::dropout(leaf, p, noise);
  const Tensor want_y = y.value, want_dx = p == 0 ? dy : tape.backward(y, dy).of(leaf);
  const RandomBits bits = rng.split(4).bits();
  checks.attempt("dropout" + with, [&] {
    same_bits(checks, "dropout" + with + ", in one piece", dropout(x, 0, p, stream), want_y);
    same_bits(checks, "dropout" + with + ", in any pieces", in_pieces(&dropout, x, p, stream, bits), want_y);
    const Tensor square = x.slice(0, 12).reshape({3, 4});
    same_bits(checks, "dropout" + with + ", of a matrix", dropout(square, 0, p, stream),
              want_y.slice(0, 12).reshape({3, 4}));
  });
  checks.attempt("dropout_backward" + with, [&] {
    same_bits(checks, "dropout_backward" + with + ", in one piece", dropout_backward(dy, 0, p, stream), want_dx);
    same_bits(checks, "dropout_backward" + with + ", in any pieces", in_pieces(&dropout_backward, dy, p, stream, bits),
              want_dx);
  });
  checks.attempt("another step drops other elements" + with, [&] {
    if (p == 0) return;
    const Tensor next = dropout(x, 0, p, {stream.key, 7});
    const Tensor step = Tensor::full({1}, 7, DType::i32);
    same_bits(checks, "another step drops other elements" + with, next,
              sinkhorn::dropout(x, p, Rng(stream.key, step)).value);
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  checks.attempt("known answers", [&] { check_known_answers(checks); });
  for (const Rng& rng : checks.rounds()) {
    checks.attempt("words", [&] { check_words(checks, rng.split(0).bits()); });
    checks.attempt("uniform", [&] { check_uniform(checks, rng.split(1).bits()); });
    for (const double p : {0.0, 0.1, 0.5, 0.875}) check_dropout(checks, rng.split(std::uint32_t(2 + 100 * p)), p);
  }
}

}  // namespace sinkhorn::lesson
