#include <bit>
#include <cmath>
#include <random>

#include "autograd/ops.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_17_randomness {
namespace {

std::string hex(std::uint32_t word) { return fmt::format("{:08x}", word); }

// What a counter has become after some of the ten rounds.
Word4 after_rounds(Word4 counter, std::uint32_t key0, std::uint32_t key1, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    const std::uint64_t a = 0xD2511F53ULL * counter[0], b = 0xCD9E8D57ULL * counter[2];
    counter = {std::uint32_t(b >> 32) ^ counter[1] ^ key0, std::uint32_t(b), std::uint32_t(a >> 32) ^ counter[3] ^ key1,
               std::uint32_t(a)};
    key0 += 0x9E3779B9U;
    key1 += 0xBB67AE85U;
  }
  return counter;
}

// Of the 128 bits, how many differ on average between the results of neighbouring counters.
double flipped_bits(int rounds) {
  constexpr std::uint32_t trials = 256;
  int flipped = 0;
  for (std::uint32_t i = 0; i < trials; ++i) {
    const Word4 a = after_rounds({2 * i, 0, 0, 0}, 17, 0, rounds),
                b = after_rounds({2 * i + 1, 0, 0, 0}, 17, 0, rounds);
    for (std::size_t w = 0; w < 4; ++w) flipped += std::popcount(a[w] ^ b[w]);
  }
  return double(flipped) / trials;
}

float naive_uniform(std::uint32_t word) { return (float(word) + 0.5f) / 4294967296.0f; }

float gumbel_of(float u) { return -std::log(-std::log(u)); }

// Eight numbers 0 .. 99 of a generator with state, in two halves that are drawn in one order or in the other.
Tensor drawn_with_state(bool second_half_first) {
  std::mt19937 generator(7);
  Tensor numbers({8}, DType::f64);
  for (int part = 0; part < 2; ++part) {
    const int half = second_half_first ? 1 - part : part;
    for (int i = 4 * half; i < 4 * half + 4; ++i) numbers.span<double>()[std::size_t(i)] = double(generator() % 100);
  }
  return numbers;
}
Tensor drawn_by_index(bool second_half_first) {
  const RandomBits bits = Rng(7).bits();
  Tensor numbers({8}, DType::f64);
  for (int part = 0; part < 2; ++part) {
    const int half = second_half_first ? 1 - part : part;
    for (int i = 4 * half; i < 4 * half + 4; ++i)
      numbers.span<double>()[std::size_t(i)] = double(bits.word(std::uint64_t(i)) % 100);
  }
  return numbers;
}

}  // namespace

void walk(Page& page) {
  page.step("A generator with state is a queue");
  page.text(
      "The usual random generator has a state: each draw returns a number and moves the state on. Eight numbers from "
      "std::mt19937, for eight elements of a tensor, the first half drawn before the second:");
  page.picture(drawing::values(page.style(), drawn_with_state(false)));
  page.text("The same seed, but the second half is drawn first, as another thread may happen to do:");
  page.picture(drawing::values(page.style(), drawn_with_state(true)));
  page.text(
      "All eight have changed. With such a generator the result depends on the number of threads, on how a sequence "
      "is cut into chunks, and on everything that was drawn before. A reversible layer (lesson 16) that runs again "
      "draws other numbers, unless the state was saved and put back.");

  page.step("A number for every question");
  page.text(
      "Now the other way: a random number is the answer to a question, and the same question always gets the same "
      "answer. The question has three parts:\n\n"
      "  key     which stream: this layer's dropout, that sort net's noise\n"
      "  step    which step of training\n"
      "  index   which element of the tensor\n\n"
      "Elements 0 to 7 under key 7, drawn in the two orders:");
  page.picture(drawing::values(page.style(), drawn_by_index(false)) +
               drawing::values(page.style(), drawn_by_index(true)));
  page.text("Nothing is advanced, so nothing can get out of order. Such generators are called counter-based.");

  page.step("Philox");
  page.text(
      "What remains is to find a function whose answers look random although the questions are 0, 1, 2, 3 ... Philox "
      "(Salmon and others, 2011) takes a counter of four 32-bit words and a key of two. A round multiplies two of "
      "the words by large odd constants and mixes the high halves of the 64-bit products with the other words and "
      "the key:");
  page.code("autograd/rng.h", "SINKHORN_HD constexpr Word4 philox");
  page.text(
      "No part of a product is lost, so a round can be undone: different counters give different results, always. "
      "How well does it stir? Take two counters that differ in their last bit, and count how many of the 128 bits of "
      "the results differ. Half of them, 64, is what chance would give. After so many rounds:");
  std::vector<std::pair<std::string, double>> stirred;
  for (const int rounds : {0, 1, 2, 3, 4, 6, 10})
    stirred.emplace_back(std::to_string(rounds) + (rounds == 1 ? " round" : " rounds"),
                         std::round(flipped_bits(rounds) * 10) / 10);
  page.picture(drawing::bars(page.style(), stirred));
  page.text(
      "A few rounds stir; the others are a margin of safety against subtler patterns. One call gives four words. "
      "Word i of a stream is word i % 4 of block i / 4:");
  const RandomBits bits{7, 0};
  std::vector<std::vector<std::string>> words;
  for (const std::uint64_t i : {0, 1, 2, 3, 4, 5})
    words.push_back({std::to_string(i), std::to_string(i / 4), std::to_string(i % 4), hex(bits.word(i)),
                     hex(RandomBits{7, 1}.word(i))});
  page.picture(drawing::table(page.style(), {"i", "block", "word", "step 0", "step 1"}, words));

  page.step("Splitting streams");
  page.text(
      "A model needs many streams, and they must not overlap. Each part of it gets a key of its own, made from its "
      "parent's key and a tag. A model's key, its layers' keys, and those of the attention (0) and the feed-forward "
      "(1) in them:");
  std::string tree = fmt::format("  model            {:016x}\n", Rng(7).key());
  for (std::uint32_t layer = 1; layer <= 2; ++layer) {
    const Rng rng = Rng(7).split(layer);
    tree += fmt::format("    layer {}        {:016x}\n", layer, rng.key());
    for (std::uint32_t branch = 0; branch < 2; ++branch)
      tree += fmt::format("      branch {}     {:016x}\n", branch, rng.split(branch).key());
  }
  page.picture(tree);
  page.code("autograd/rng.h", "Rng split(std::uint32_t tag) const");
  page.text(
      "The key is random words, from the same function. Look at the counter: its last word is 1. The words of a "
      "stream have 0 there. So the words of a key are never words that its parent draws. And since the key is fixed, "
      "the step is a word in memory that the trainer counts up: forward and recomputation of one step see the same "
      "value, and the next step sees fresh noise.");

  page.step("Strictly between 0 and 1");
  page.text(
      "A word becomes a number between 0 and 1. Gumbel noise (lesson 13) is -log(-log u), so neither end may be "
      "reached: u = 0 makes the inner logarithm that of 0, u = 1 the outer one. The obvious formula with a half in "
      "it looks safe, (w + 0.5) / 2^32. In f32 it is not: there are 24 bits for a number, and the largest words "
      "round up.");
  std::vector<std::vector<std::string>> table;
  for (const std::uint32_t w : {0U, 1U << 31, ~0U - 128, ~0U - 127, ~0U}) {
    const float naive = naive_uniform(w), ours = RandomBits::to_uniform<float>(w);
    table.push_back({hex(w), fmt::format("{:.8g}", naive), drawing::number(gumbel_of(naive)),
                     fmt::format("{:.8g}", ours), drawing::number(gumbel_of(ours))});
  }
  page.picture(drawing::table(page.style(), {"word", "(w + 0.5) / 2^32", "Gumbel", "ours", "Gumbel"}, table));
  std::int64_t bad = 0;
  for (std::uint32_t w = ~0U - 4095; w != 0; ++w) bad += naive_uniform(w) == 1;
  page.text(
      "Of the 2^32 words, {} give 1: one in {:.0f} million. A sort net of 8 heads and 256 buckets asks for half a "
      "million Gumbel numbers in a step, so infinity arrives after some {:.0f} steps, and takes the whole row with "
      "it. Ours drops 9 bits, and 23 bits and a half fit exactly:",
      bad, 4294967296.0 / double(bad) / 1e6, 4294967296.0 / double(bad) / (8 * 256 * 256));
  page.code("autograd/rng.h", "static constexpr T to_uniform(std::uint32_t word)");
  page.text("The smallest such number is {:.3g}, the largest 1 - {:.3g}; the noise lies between {:.4g} and {:.4g}.",
            RandomBits::to_uniform<float>(0), 1 - RandomBits::to_uniform<float>(~0U),
            gumbel_of(RandomBits::to_uniform<float>(0)), gumbel_of(RandomBits::to_uniform<float>(~0U)));

  page.step("Dropout without a mask");
  page.text(
      "Dropout sets each element to 0 with probability p in training, and divides the others by 1 - p, so that the "
      "sum stays what it was on average. A network cannot rely on any one element then. Backward must know which "
      "elements were dropped, and is usually handed a stored mask. Ours asks again:");
  page.code("autograd/cpu/elementwise.cpp", "void Dropout<T>::forward");
  page.text(
      "(A word >> 9 compared with a threshold is the uniform number compared with p.) Backward is the same function, "
      "of dy.");
  const Tape tape = Tape::record();
  const Var x = tape.leaf(Tensor::full({4, 8}, 1, DType::f64));
  const Var y = dropout(x, 0.25, Rng(11));
  const std::vector<NodeInfo> nodes = tape.nodes();
  const Tensor dx = tape.backward(y, Tensor::full({4, 8}, 1, DType::f64)).of(x);
  page.text("p = 0.25 of a matrix of ones, and the gradient that comes back for a gradient of ones:");
  page.picture(drawing::values(page.style(), y.value) + "\n" + drawing::values(page.style(), dx));
  page.text("The same places, from the same question. What the node keeps on the tape: {} bytes.",
            nodes.back().kept_bytes);
  const Tensor flat = Tensor::full({32}, 1, DType::f64);
  const RandomBits again = Rng(11).bits();
  std::string kept;
  for (std::uint64_t i = 13; i < 19; ++i) kept += fmt::format("  {}: {:.3f}", i, again.uniform<float>(i));
  page.text("Any element can be asked by itself, say 13 to 18; those below 0.25 are dropped:\n\n{}", kept);

  page.step("Your turn");
  page.text(
      "Write philox, a word of a stream, the key of a part, the uniform number, and dropout forwards and backwards. "
      "The checks know three answers of the reference implementation, Random123, and compare everything else with "
      "the library bit for bit: words beyond 2^34, the largest words as uniform numbers, and dropout cut into random "
      "pieces that are computed from the last to the first.");
}

Quiz quiz(Rng rng) {
  const RandomBits bits = rng.bits();
  const std::uint64_t i = 10 + bits.word(0) % 5000, block = i / 4;
  const double p = double(1 + bits.word(1) % 18) / 20;
  const double x = double(1 + bits.word(2) % 40) / 10;
  const std::int64_t count = 1000 * std::int64_t(1 + bits.word(3) % 50);
  const std::uint32_t first = 10 + bits.word(4) % 90, local = bits.word(5) % 50;
  const std::uint32_t word = bits.word(6) % 256;
  return {
      Question::about_number(fmt::format("Word {} of a stream is one of the four words of which Philox block?", i),
                             double(block), "i / 4, and in it word i % 4", 0),
      Question::about_number(
          fmt::format("Dropout with p = {} keeps an element whose value is {}. What does it become?", p, x),
          x / (1 - p), "x / (1 - p), so that the average stays the same"),
      Question::about_number(
          fmt::format("A layer drops out {} elements with p = {}. How many bytes of mask does our tape keep?", count,
                      p),
          0, "backward asks for the same numbers again", 0),
      Question::about_number(
          fmt::format(
              "A piece of a tensor begins at element {}. Which word of the stream decides about element {} of the "
              "piece?",
              first, local),
          double(first + local), "its number in the whole tensor, or pieces would all drop alike", 0),
      Question::about_number(
          fmt::format(
              "Our uniform number drops the lower 9 bits of a word: ((w >> 9) + 0.5) / 2^23. What is it for w = {} x "
              "2^24?",
              word),
          double(RandomBits::to_uniform<float>(word << 24)), "w >> 9 is the first factor times 2^15"),
      Question::with_choices(
          "Training was stopped and is resumed. What of its random numbers must the checkpoint hold?",
          {"the seed and the number of the step", "the state of every generator", "all masks of the last step",
           "nothing at all: any fresh seed gives the same run"},
          "key and index follow from the model, the step is one number"),
      Question::with_choices("Why is the last word of the counter 1 when a key is made, and 0 when numbers are drawn?",
                             {"so that no key of a part is also a number that is drawn", "so that keys are odd",
                              "so that blocks of words begin at 1", "Philox cannot take a counter of zeros"},
                             "different counters give different results under one key: the two uses never meet"),
  };
}

}  // namespace sinkhorn::lessons::lesson_17_randomness
