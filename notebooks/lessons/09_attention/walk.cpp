#include <cmath>

#include "autograd/ops.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_09_attention {
namespace {

Tensor matrix(const std::vector<double>& numbers, std::int64_t columns) {
  return Tensor::from(numbers, {std::int64_t(numbers.size()) / columns, columns});
}

// Query t may see keys 0 .. t.
Tensor past(std::int64_t length) {
  Tensor allowed({length, length}, DType::boolean);
  for (std::int64_t i = 0; i < allowed.count(); ++i) allowed.data<bool>()[i] = i % length <= i / length;
  return allowed;
}

Var scores_of(const Var& q, const Var& k) {
  return scale(matmul(q, k, false, true), 1 / std::sqrt(double(q.shape()[1])));
}

double standard_deviation(const Tensor& x) {
  const double middle = mean(Var(x)).value.item();
  return std::sqrt(mean(square(scale(Var(x), 1, -middle))).value.item());
}

// Products of random queries and keys whose entries are drawn from N(0, 1).
Tensor random_products(std::int64_t width) {
  const Tensor q = normal(Rng(1), {64, width}, 0, 1, DType::f64), k = normal(Rng(2), {64, width}, 0, 1, DType::f64);
  return matmul(q, k, false, true).value;
}

double mean_largest_share(const Var& scores) { return mean(max(softmax(scores), 1)).value.item(); }

std::string bytes(double count) {
  for (const char* unit : {"B", "KB", "MB", "GB"}) {
    if (count < 1000) return fmt::format("{:.0f} {}", count, unit);
    count /= 1000;
  }
  return fmt::format("{:.0f} TB", count);
}

void look_up(Page& page) {
  page.step("A question, some labels, some answers");
  page.text(
      "\"The cat sat on the mat because it was tired.\" Who was tired? A model reads a text in pieces, called "
      "tokens, here one a word. To go on reading, the token \"it\" must fetch something from \"cat\", six words "
      "back. Attention is how a token fetches.\n\n"
      "Every token has a key: a small vector that says what can be found there. The token that looks has a query: a "
      "vector that says what it wants. In a model both are learned; here we choose them by hand. The first number "
      "says \"alive\", the second \"furniture\", and \"it\" wants something alive:");
  const std::vector<std::string> words{"cat", "sat", "mat", "it"};
  const Tensor k = matrix({2, 0.2, 0.1, 0, 0.1, 1.8, 0.9, 0.3}, 2), q = matrix({2, 0}, 2);
  page.values("keys of cat, sat, mat, it", k);
  page.values("query of it", q);
  page.text(
      "How well does a key answer a query? Multiply them number by number and add: the dot product, written <q, k>. "
      "These are the scores, and softmax turns them into shares, as in the lesson of that name:");
  const Tensor raw = matmul(q, k, false, true).value, share = softmax(scores_of(q, k)).value;
  std::vector<std::vector<std::string>> rows;
  std::vector<std::pair<std::string, double>> shares;
  for (std::size_t j = 0; j < words.size(); ++j) {
    rows.push_back({words[j], drawing::number(raw.to_vector()[j]),
                    drawing::number(scores_of(q, k).value.to_vector()[j]), drawing::number(share.to_vector()[j])});
    shares.emplace_back(words[j], share.to_vector()[j]);
  }
  page.picture(drawing::table(page.style(), {"word", "<q, k>", "/ sqrt(2)", "share"}, rows));
  page.picture(drawing::bars(page.style(), shares));
  page.text(
      "A dictionary finds one entry or none. This one finds a little of everything, most of it in the right place. "
      "And it has a derivative, which a dictionary has not: that is the whole point.");
  page.step("The answer is a mean");
  page.text(
      "Every token also has a value: what it hands over. It need not look like the key, just as a book does not look "
      "like its label. The answer is the mean of the values, weighted with the shares:\n\n"
      "  y = sum_j share_j v_j");
  const Tensor v = matrix({10, 0, 1, 0, 0, 2, -10, 0, 3, 5, 5, 4}, 3);
  page.values("values of cat, sat, mat, it", v);
  page.values("y of it", matmul(Var(share), v).value);
  page.text(
      "The shares are positive and add up to 1, so y lies between the values, never outside: its first number is "
      "between the least and the largest of theirs. Attention itself invents nothing. It moves information from "
      "where it is to where it is wanted.");
}

void scaling(Page& page) {
  page.step("Why divide by sqrt(d)");
  page.text(
      "d is the width of queries and keys. A dot product adds d products. If the entries are independent with mean 0 "
      "and variance 1, the variance of the sum is d, and its spread (standard deviation) sqrt(d). Large scores make "
      "softmax hard: one share near 1, the others near 0, and then y (1 - y), its derivative, is near 0 too. Here "
      "are 64 random queries and keys of each width, and how large the largest share of a row is, on average:");
  std::vector<std::vector<std::string>> rows;
  for (const std::int64_t width : {4, 16, 64, 256}) {
    const Tensor products = random_products(width);
    rows.push_back({std::to_string(width), fmt::format("{:.2f}", standard_deviation(products)),
                    fmt::format("{:.3f}", mean_largest_share(products)),
                    fmt::format("{:.3f}", mean_largest_share(scale(products, 1 / std::sqrt(double(width)))))});
  }
  page.picture(
      drawing::table(page.style(), {"d", "spread of <q, k>", "largest share", "largest share, divided"}, rows));
  page.text(
      "Divided by sqrt(d), the scores have spread 1 whatever d is, and the head starts its training undecided. It "
      "may still become decided: it only has to learn longer queries and keys.");
}

struct Example {
  Tensor q = normal(Rng(3), {8, 4}, 0, 1.5, DType::f64), k = normal(Rng(4), {8, 4}, 0, 1.5, DType::f64),
         v = normal(Rng(5), {8, 2}, 0, 1, DType::f64);
};

void all_at_once(Page& page) {
  page.step("All tokens at once");
  page.text(
      "Every token asks. Put the queries as rows into a matrix q (T, d), the keys into k (S, d): then q times k "
      "transposed holds all scores, (T, S), and the whole of attention is two matrix products with a softmax "
      "between. One such attention, with queries, keys and values of its own, is called a head. Models run several "
      "side by side: one may look for who was tired, another for the verb.\n\n"
      "This is it, from the library. The leading extents G and N are groups that do the same work side by side:");
  page.code("nn/composed_attention.cpp", "Var attend(");
  const Example e;
  page.text("The shares of 8 random queries (rows) over 8 keys (columns). Each row adds up to 1:");
  page.picture(drawing::heat_map(page.style(), softmax(scores_of(e.q, e.k)).value,
                                 {.low = 0, .row_label = "query", .numbers = true}));
}

void causal_mask(Page& page) {
  page.step("Not to see the future");
  page.text(
      "A language model predicts the next token. While it trains, the whole text lies before it, and a query could "
      "simply look at what comes next. It would learn to copy, and be of no use later, when there is nothing to copy "
      "from. So query t may see keys 0 to t, and nothing else. This is called causal:");
  const Example e;
  const Tensor allowed = past(8), shares = softmax(scores_of(e.q, e.k), allowed).value;
  page.picture(drawing::heat_map(page.style(), shares, {.low = 0, .row_label = "query", .numbers = true}));
  page.text(
      "The mask acts before the softmax: the shares that are left add up to 1. The first query has no choice and "
      "gives all to itself. And the zeros are zeros. Many programs write a large negative number into the score "
      "instead, and rely on exp() of it being 0; this library keeps a mask of true and false, so that no number can "
      "leak. Let us change the last key and value completely, and compare the outputs bit by bit:");
  Example changed = e;
  for (std::int64_t c = 0; c < 4; ++c) changed.k.span<double>()[7 * 4 + c] = 100;
  for (std::int64_t c = 0; c < 2; ++c) changed.v.span<double>()[7 * 2 + c] = -1e6;
  const Tensor before = matmul(Var(shares), e.v).value,
               after = matmul(softmax(scores_of(e.q, changed.k), allowed), changed.v).value;
  std::int64_t same = 0;
  for (std::int64_t t = 0; t < 8; ++t) same += equal_bits(before.slice(t, t + 1), after.slice(t, t + 1));
  page.text("Of 8 output rows, {} kept every bit. Only the last one, which may see the last key, changed.", same);
}

void gradient(Page& page) {
  page.step("The way back");
  page.text(
      "Three stations forward: scores S, shares P, output y = P v. Backward takes them in reverse, and you know each "
      "one: products from the lesson on matmul, softmax from its own lesson. ' means transposed.\n\n"
      "  dv = P' dy                  dP = dy v'\n"
      "  dS = P (dP - <dP, P>)       for each row\n"
      "  dq = dS k / sqrt(d)         dk = dS' q / sqrt(d)\n\n"
      "Suppose only the output of token 2 matters, and only its first number: dy is 1 there, and 0 elsewhere. The "
      "causal head of the last step then sends this to the values:");
  const Example e;
  Tensor dy = Tensor::zeros({8, 2}, DType::f64);
  dy.span<double>()[2 * 2] = 1;
  const Tape tape = Tape::record();
  const Var q = tape.leaf(e.q), k = tape.leaf(e.k), v = tape.leaf(e.v);
  const Var shares = softmax(scores_of(q, k), past(8));
  const Gradients flow = tape.backward(matmul(shares, v), dy);
  page.values("dv", flow.of(v));
  page.values("shares of query 2", shares.value.slice(2, 3));
  page.text(
      "Each value gets back the share it gave: whoever is read more is corrected more. Tokens 3 to 7 get exactly 0: "
      "where nothing came from, nothing goes back. The keys are told how to become more, or less, attractive:");
  page.values("dk", flow.of(k));
  std::vector<double> total(4);
  for (std::size_t i = 0; i < 32; ++i) total[i % 4] += flow.of(k).to_vector()[i];
  double largest = 0;
  for (const double x : total) largest = std::max(largest, std::abs(x));
  page.text(
      "Add up the rows of dk and you get 0 (the largest entry of the sum is {}). With a single query dk_j is dS_j "
      "times q, and dS adds up to 0, since softmax only passes shares from one to another: what one key gains, the "
      "others lose.",
      largest < 1e-15 ? "0, to rounding" : drawing::number(largest));
}

void bill(Page& page) {
  page.step("The bill");
  page.text(
      "T queries times T keys: twice the text, four times the work. For one head of width d = 64, with scores in f32:");
  std::vector<std::vector<std::string>> rows;
  for (const std::int64_t length : {256, 1024, 4096, 16384, 65536, 262144}) {
    const double scores = double(length) * double(length);
    rows.push_back({std::to_string(length), fmt::format("{:.3g}", scores), bytes(4 * scores),
                    fmt::format("{:.2g}", 2 * 64 * scores)});
  }
  page.picture(drawing::table(page.style(), {"T", "scores", "their memory", "multiply-adds"}, rows));
  page.text(
      "Multiply by 8 heads, by the layers, by the sequences of a batch. A short story has 65536 characters, a novel "
      "ten times that. A program can avoid holding all scores at once, but not computing them. Yet look at the heat "
      "maps above: most shares are next to nothing. The Sinkhorn transformer asks which keys are worth a score at "
      "all. That is what the next five lessons are about.");
}

}  // namespace

void walk(Page& page) {
  look_up(page);
  scaling(page);
  all_at_once(page);
  causal_mask(page);
  gradient(page);
  bill(page);

  page.step("Your turn");
  page.text(
      "Write attention and attention_backward for one head, with plain loops. The file as it stands gives every key "
      "the same share, and no gradient.\n\n"
      "The checks use 5 queries over 7 keys, and causal sequences; keys and values of different widths; scores near "
      "1000. They compare with the library's ops, with its fused attention, and your gradients with numeric "
      "differences of your own attention.");
}

Quiz quiz(Rng rng) {
  auto rounded = [&](std::uint32_t tag, double low, double high) {
    return std::round(uniform(rng.split(tag), {1}, low, high).item() * 10) / 10;
  };
  const std::int64_t width = std::int64_t(4) << (2 * (rng.split(0).bits().word(0) % 3));  // 4, 16, 64
  const double product = rounded(1, 2, 20);
  const Tensor q = matrix({rounded(2, -2, 2), rounded(3, -2, 2), rounded(4, -2, 2), rounded(5, -2, 2)}, 4),
               k = matrix({rounded(6, -2, 2), rounded(7, -2, 2), rounded(8, -2, 2), rounded(9, -2, 2), 0, 0, 0, 0}, 4);
  const std::vector<double> a = q.to_vector(), b = k.to_vector();
  const double share = rounded(10, 0.1, 0.9), first = rounded(11, -5, 5), second = rounded(12, 6, 12);
  const std::int64_t length = 5 + std::int64_t(rng.split(13).bits().word(0) % 20);
  const std::int64_t longer = 2 + std::int64_t(rng.split(14).bits().word(0) % 9);
  return {
      Question::about_number(
          fmt::format("A query and a key of width {} have the dot product {}. What is their score?", width, product),
          product / std::sqrt(double(width)), "the dot product over the square root of the width"),
      Question::about_number(
          fmt::format(
              "There are two keys, ({}, {}, {}, {}) and (0, 0, 0, 0). The query is ({}, {}, {}, {}). What share does "
              "the first key get?",
              b[0], b[1], b[2], b[3], a[0], a[1], a[2], a[3]),
          softmax(scores_of(q, k)).value.to_vector()[0],
          "the score is <q, k> / sqrt(4), the other score is 0; then softmax of the two"),
      Question::about_number(
          fmt::format("Two keys get the shares {} and {:.1f}; their values are {} and {}. What comes out?", share,
                      1 - share, first, second),
          share * first + (1 - share) * second, "the mean of the values, weighted with the shares"),
      Question::about_number(
          fmt::format("A causal head reads {} tokens. How many of its {} scores does it use?", length, length * length),
          0.5 * double(length * (length + 1)), "1 + 2 + ... + T: query t sees t + 1 keys", 0),
      Question::about_number(
          fmt::format("A text becomes {} times as long. By which factor does the number of scores grow?", longer),
          double(longer * longer), "every query meets every key: T times T", 0),
      Question::with_choices(
          "A causal mask is applied after the softmax, by setting the shares of the future to 0. What goes wrong?",
          {"the shares of a row no longer add up to 1", "nothing, the results are equal",
           "the first query sees the last key", "the last row becomes 0"},
          "what the future took of the sum is missing, most of all in the first rows; the softmax must not see it"),
      Question::with_choices(
          "Query t gave key j a share of exactly 0. What can the gradient of its output change about key j?",
          {"nothing", "the key, but not the value", "the value, but not the key", "both, a little"},
          "dv_j is share times dy, and dS_j is share times something: both are 0"),
  };
}

}  // namespace sinkhorn::lessons::lesson_09_attention
