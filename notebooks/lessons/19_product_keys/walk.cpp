#include <algorithm>
#include <cmath>
#include <numeric>

#include "nn/product_key_memory.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_19_product_keys {
namespace {

// The n best slots of two lists of scores (2, keys), as the library finds them.
ProductKeys best_slots(const Tensor& scores, std::int64_t n) {
  return product_key_top_k(reshape(Var(scores), {2, 1, scores.shape()[1]}), n);
}

Tensor all_sums(const Tensor& scores) {
  const std::int64_t keys = scores.shape()[1];
  return add(reshape(scores.slice(0, 1), {keys, 1}), reshape(scores.slice(1, 2), {1, keys})).value;
}

Tensor sorted_down(const Tensor& scores) {
  Tensor result = scores.clone();
  const std::int64_t keys = scores.shape()[1];
  for (std::int64_t half = 0; half < 2; ++half) {
    double* const list = result.data<double>() + half * keys;
    std::sort(list, list + keys, [](double a, double b) { return a > b; });
  }
  return result;
}

std::string slot_names(const Tensor& picks, std::int64_t keys) {
  std::string text;
  for (const std::int32_t pick : picks.span<std::int32_t>())
    text += fmt::format("{}({}, {})", text.empty() ? "" : ", ", pick / keys, pick % keys);
  return text;
}

// Pairs of ranks (a, b) that n sums cannot rule out: those with (a + 1)(b + 1) <= n.
std::int64_t staircase(std::int64_t n) {
  std::int64_t count = 0;
  for (std::int64_t a = 0; a < n; ++a) count += n / (a + 1);
  return count;
}

// Three scores of the first half that share one of the second: the best pairs stand in one column.
Tensor one_column() { return Tensor::from(std::vector<double>{9, 8, 7, 6, 10, 5, 1, 0}, {2, 4}); }

}  // namespace

void walk(Page& page) {
  page.step("A memory too large to search");
  constexpr std::int64_t keys = 128, half = 128;
  page.text(
      "A feed-forward layer uses all of its weights for every token. A memory does not: it has N values, each with a "
      "key. A token makes a query, the n keys that fit it best (by dot product) are found, and their n values are "
      "added up, weighted. N may be huge, and still a token touches n values. But to find them, the query must be "
      "compared with N keys. Our default memory has N = {} x {} = {}, and a query is {} numbers wide. "
      "Multiplications for one query:",
      keys, keys, keys * keys, 2 * half);
  page.picture(drawing::bars(
      page.style(), {{"all keys", double(keys * keys * 2 * half)}, {"product keys", double(2 * keys * half)}}));
  page.text("The second line finds the very same values. Here is how.");

  page.step("Keys that are pairs");
  const Tensor scores = Tensor::from(std::vector<double>{2, 7, 1, 4, 3, 0, 6, 5}, {2, 4});
  page.text(
      "Cut the query in two halves, and let every key be a pair: one of sqrt(N) keys for the first half, one of "
      "sqrt(N) keys for the second. Slot (i, j) of the memory has the key (i of the first, j of the second), so its "
      "score is a sum:\n\n  score(i, j) = <first half, key i> + <second half, key j>\n\n"
      "With 4 keys a half there are 16 slots. The 4 + 4 scores of some query, and all 16 sums (row i, column j):");
  page.values("scores of the two halves", scores);
  page.picture(drawing::heat_map(page.style(), all_sums(scores), {.row_label = "i", .numbers = true}));
  page.text("The library's three best slots, from the 8 scores alone: {}.", slot_names(best_slots(scores, 3).picks, 4));

  page.step("Why n of each half are enough");
  page.text(
      "Suppose slot (i, j) is among the n best, but key i is not among the n best keys of its half. Then n other "
      "keys i' score at least as high as i. So the n slots (i', j) all score at least as high as (i, j), and would "
      "fill the n places without it. That is a contradiction. The same goes for j. So n x n candidates suffice: the "
      "pairs of the n best with the n best. (Where scores are equal, let the lower index count as the better one.)");
  page.text(
      "One can say more. Sort both halves. A slot whose halves have the ranks a and b (from 0) is matched or beaten "
      "by all slots of ranks up to a and up to b: (a + 1)(b + 1) of them, itself included. If that is more than n, "
      "it is out. Here 8 x 8 sums, ordered by rank, for n = 8. Dark: the 8 best. Light: other candidates by this "
      "rule. The rest is empty:");
  const Tensor ranked = sorted_down(uniform(Rng(6), {2, 8}, 0, 1, DType::f64));
  Tensor map = Tensor::zeros({8, 8}, DType::f64);
  for (std::int64_t a = 0; a < 8; ++a)
    for (std::int64_t b = 0; (a + 1) * (b + 1) <= 8; ++b) map.data<double>()[a * 8 + b] = 0.3;
  const Tensor picks_by_rank = best_slots(ranked, 8).picks;
  for (const std::int32_t pick : picks_by_rank.span<std::int32_t>()) map.data<double>()[pick] = 1;
  page.picture(drawing::heat_map(page.style(), map, {.low = 0, .high = 1, .row_label = "rank in the first half"}));
  std::vector<std::vector<std::string>> counts;
  for (const std::int64_t n : {4, 8, 32, 128})
    counts.push_back(
        {std::to_string(n), std::to_string(n * n), std::to_string(staircase(n)), std::to_string(keys * keys)});
  page.picture(drawing::table(page.style(), {"n", "n x n", "by rank", "all slots"}, counts));

  page.step("Why fewer are not");
  const Tensor column = one_column();
  const Tensor found = best_slots(column, 4).picks;
  page.text(
      "To get 4 slots, are not 2 x 2 candidates enough? Take these scores. The second half likes its key 0 far "
      "better than any other:");
  page.values("scores of the two halves", column);
  page.picture(drawing::heat_map(page.style(), all_sums(column), {.row_label = "i", .numbers = true}));
  page.text(
      "The four best are {}: a whole column. Pairs of the two best of each half would miss two of them. Any of the n "
      "best keys of a half may be needed, so no list may be shorter than n.",
      slot_names(found, 4));

  page.step("Ties, and sums that round");
  page.text(
      "Equal sums must be settled by a rule, or the CPU and the GPU would read different values. The rule is that "
      "the lowest slot number comes first; slot (i, j) has the number i keys + j. In exact arithmetic the proof "
      "still holds. In f32 there is a surprise. Two scores of the first half, and one of the second, added up:");
  const float low = 0.1f, high = std::nextafter(low, 1.0f), large = 8;
  const Tensor close = Tensor::from(std::vector<float>{low, high, large, 0}, {2, 2});
  page.picture(drawing::table(page.style(), {"key i", "score", "score + 8"},
                              {{"0", fmt::format("{:.9f}", low), fmt::format("{:.9f}", low + large)},
                               {"1", fmt::format("{:.9f}", high), fmt::format("{:.9f}", high + large)}}));
  page.text(
      "Key 1 is better, but the sums round to the same number, and then the lower slot wins: the library picks {}. "
      "With n = 1 it is not among the best 1 x 1 candidates! So the library takes the candidates for the sums that "
      "are certain, and gives the last places to the lowest slots that reach the last sum, wherever their halves "
      "rank.",
      slot_names(best_slots(close, 1).picks, 2));

  page.step("Reading the memory");
  page.text(
      "The n scores go through a softmax, and the shares weight the n values. A weighted sum of rows of a table is "
      "called an embedding bag. The whole layer, with several heads that share one table:");
  page.code("nn/product_key_memory.cpp", "const ProductKeys found = product_key_top_k(");
  page.code("nn/product_key_memory.cpp", "return embedding_bag(");
  const ProductKeyOptions options{.dim = 8, .heads = 2, .keys = 16, .half = 4, .topk = 4};
  Initializer init(Rng(1), DType::f64);
  const ProductKeyMemory memory(options, init);
  const Tape tape = Tape::record();
  const Var y = memory(Scope{.tape = tape}, uniform(Rng(2), {1, 5, 8}, -1, 1, DType::f64));
  const Tensor seed = uniform(Rng(3), y.shape(), -1, 1, DType::f64);
  const Tensor d_values = tape.backward(y, seed).of(memory.values.weight);
  Tensor touched = Tensor::zeros({16, 16}, DType::f64);
  std::int64_t rows = 0;
  for (std::int64_t slot = 0; slot < 256; ++slot) {
    double size = 0;
    for (std::int64_t e = 0; e < 8; ++e) size += std::abs(d_values.data<double>()[slot * 8 + e]);
    touched.data<double>()[slot] = size > 0 ? 1 : 0;
    rows += size > 0;
  }
  page.text(
      "A real memory of 16 x 16 values, read by 5 tokens with 2 heads, 4 values each. After backward, {} of its 256 "
      "rows have a gradient (dark):",
      rows);
  page.picture(drawing::heat_map(page.style(), touched, {.low = 0, .high = 1, .row_label = "first half's key"}));
  page.text(
      "Since each value learns so rarely, the trainer gives memory values a learning rate of their own. Queries are "
      "normalised by a LayerNorm first; the paper's BatchNorm looks at all tokens at once, and that would be a leak "
      "(lesson 15).");

  page.step("The gradient of a choice");
  page.text(
      "Which slots are picked has no gradient: a small change of a score changes no pick. The sums of the picked "
      "slots do. Each sum has two parts, so its gradient flows into both lists, and a key that stands in several "
      "picks collects from all of them:");
  page.code("autograd/cpu/product_keys.cpp", "for (std::int64_t k = r * n; k < (r + 1) * n; ++k) {");
  const Tape small = Tape::record();
  const Var leaf = small.leaf(scores.reshape({2, 1, 4}));
  const ProductKeys three = product_key_top_k(leaf, 3);
  const Tensor d_scores = small.backward(three.scores, Tensor::from(std::vector<double>{1, 10, 100}, {1, 3})).of(leaf);
  page.text("For the picks {} and the gradients 1, 10 and 100 of their sums:", slot_names(three.picks, 4));
  page.values("gradient of the two lists", d_scores.reshape({2, 4}));

  page.step("Your turn");
  page.text(
      "Write the search, the weighted read, and the gradient. Scores come as objects that can be compared and added, "
      "and nothing else; every addition is counted, and n x n are allowed. The checks search up to a million slots, "
      "with many equal sums, with n = 1 and n = keys, and with the best slots all in one row or column. Scores are "
      "coarse enough that no sum rounds. The gradients are compared with the library and with differences of your "
      "own read.");
}

Quiz quiz(Rng rng) {
  const RandomBits bits = rng.split(0).bits();
  const std::int64_t n = 3 + bits.word(0) % 12, keys = std::int64_t(32) << bits.word(1) % 4;
  // Scores 0 .. 9, all of a half different, so that the best sum is one slot.
  Tensor scores({2, 4}, DType::f64);
  for (std::int64_t half = 0; half < 2; ++half) {
    std::vector<double> digits(10);
    std::iota(digits.begin(), digits.end(), 0);
    for (std::uint64_t i = 0; i < 4; ++i) {
      std::swap(digits[i], digits[i + bits.word(10 + 4 * std::uint64_t(half) + i) % (10 - i)]);
      scores.data<double>()[half * 4 + std::int64_t(i)] = digits[i];
    }
  }
  const ProductKeys found = best_slots(scores, 2);
  const double* const s = scores.data<double>();
  const double gap = 0.5 + double(bits.word(20) % 20) / 10;
  return {
      Question::about_number(fmt::format("A memory has {} keys in each half. How many values does it hold?", keys),
                             double(keys * keys), "one for each pair", 0),
      Question::about_number(
          fmt::format("You want the {} best slots. How many sums do you form from the {} best keys of each half?", n,
                      n),
          double(n * n), "n x n pairs, however many keys there are", 0),
      Question::about_number(
          fmt::format("The first half scores {}, {}, {}, {}, the second {}, {}, {}, {}. What number has the best slot "
                      "(from 0)?",
                      s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]),
          double(found.picks.span<std::int32_t>()[0]),
          "the best of the first half times 4, plus the best of the second", 0),
      Question::about_number(
          fmt::format(
              "The first half scores {}, {}, {}, {}, the second {}, {}, {}, {}. What is the sum of the second best "
              "slot?",
              s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]),
          found.scores.value.to_vector()[1], "the best pair with one of its halves replaced by the second best there",
          0),
      Question::about_number(
          fmt::format("Two slots are read, and the score of the first is {:.1f} above that of the second. What is the "
                      "share of the first?",
                      gap),
          softmax(Var(Tensor::from(std::vector<double>{gap, 0}, {1, 2}))).value.to_vector()[0],
          "a softmax over the two: 1 / (1 + exp(-gap))"),
      Question::with_choices(
          "A key of the first half stands in three of the picked slots. What is the gradient of its score?",
          {"the sum of the gradients of the three sums", "the gradient of the best of the three", "their mean", "0"},
          "it was used three times, so three flows come back"),
      Question::with_choices("You want 4 slots and keep only the 2 best keys of each half. When does that go wrong?",
                             {"when one key of a half is so good that its pairs fill more than 2 of the 4 places",
                              "never: 2 x 2 = 4 candidates are enough", "always", "only if scores are equal"},
                             "then a third or fourth key of the other half is needed"),
  };
}

}  // namespace sinkhorn::lessons::lesson_19_product_keys
