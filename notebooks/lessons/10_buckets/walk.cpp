#include <cmath>

#include "autograd/ops.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_10_buckets {
namespace {

// The text that this and the next lessons sort: 16 characters, 4 buckets of 4.
constexpr std::string_view kText = "sort the buckets";

Tensor identity(std::int64_t n) {
  Tensor eye = Tensor::zeros({n, n}, DType::f64);
  for (std::int64_t i = 0; i < n; ++i) eye.span<double>()[i * n + i] = 1;
  return eye;
}

// bool (1, n) of a text of n characters, 1 = true.
Tensor mask(std::string_view flags) {
  Tensor allowed({1, std::int64_t(flags.size())}, DType::boolean);
  for (std::size_t i = 0; i < flags.size(); ++i) allowed.span<bool>()[i] = flags[i] == '1';
  return allowed;
}

// One local head of the library's attention: q, k, v (T, d).
Tensor local_head(const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t bucket, bool causal) {
  const std::int64_t length = q.shape()[0], width = q.shape()[1], buckets = length / bucket;
  const Shape one{1, length, 1, 1, width};
  const Var kv = concat({k.reshape(one), v.reshape(one)}, 2);
  const Routing routing{Tensor::zeros({1, 0, buckets, 1}, DType::f64), Tensor::zeros({1, 0, buckets, 1}, DType::i32)};
  const Tensor none = Tensor::zeros({0, 1, width}, DType::f64);
  const NullBlock null = causal ? NullBlock{none, none} : NullBlock{};
  const Var y = bucketed_attention(q.reshape({1, length, 1, width}), kv, routing, null, {bucket, bucket, 1, causal});
  return y.value.reshape({length, width});
}

// (T, T): the share that each query gives to each key, when all keys are equal to it.
Tensor equal_shares(std::int64_t length, std::int64_t bucket, bool causal) {
  const Tensor zero = Tensor::zeros({length, length}, DType::f64);
  return local_head(zero, zero, identity(length), bucket, causal);
}

std::int64_t seen_by(const Tensor& shares, std::int64_t query) {
  const std::int64_t length = shares.shape()[1];
  std::int64_t seen = 0;
  for (std::int64_t j = 0; j < length; ++j) seen += shares.span<double>()[query * length + j] > 0;
  return seen;
}

std::int64_t seen_by_all(const Tensor& shares) {
  std::int64_t seen = 0;
  for (std::int64_t t = 0; t < shares.shape()[0]; ++t) seen += seen_by(shares, t);
  return seen;
}

void buckets(Page& page) {
  page.step("Near is likely");
  page.text(
      "The last lesson ended with a bill: T queries times T keys. But what a token needs is mostly near. The next "
      "letter depends on the letters of this word, the next word on this sentence. So cut the sequence into buckets "
      "of b tokens, and let a token look at its own bucket and the ones beside it. In this and the next lessons our "
      "sequence is a text of {} characters, cut into buckets of 4:",
      kText.size());
  std::vector<std::vector<std::string>> rows;
  for (std::size_t u = 0; u < kText.size() / 4; ++u)
    rows.push_back(
        {std::to_string(u), fmt::format("{} .. {}", 4 * u, 4 * u + 3), fmt::format("\"{}\"", kText.substr(4 * u, 4))});
  page.picture(drawing::table(page.style(), {"bucket", "tokens", "text"}, rows));

  page.step("A bucket costs nothing");
  page.text(
      "The elements of a tensor lie row after row, so 4 rows of a (16, d) tensor that follow each other are a (4, d) "
      "matrix already. Reading (16, d) as (4, 4, d), which is (buckets, tokens, width), moves nothing. Here are the "
      "numbers of 16 tokens, d = 1, as buckets:");
  Tensor tokens({16, 1}, DType::f64);
  for (std::int64_t t = 0; t < 16; ++t) tokens.span<double>()[t] = double(t);
  const Tensor bucketed = tokens.reshape({4, 4});
  page.values("tokens, as (4, 4)", bucketed);
  page.text("Do both tensors lie at the same address? {}. Token t is in bucket t / 4, at slot t % 4.",
            tokens.raw() == bucketed.raw() ? "Yes" : "No");
}

void patterns(Page& page) {
  page.step("Who sees whom");
  page.text(
      "A causal local head sees the bucket before its own, and its own up to the query itself. Let us not believe "
      "this, but look. Two tricks make the real attention show its shares: a query of zeros has the same score with "
      "every key, so all keys it may see get equal shares; and if the values are the rows of an identity matrix, "
      "then the output of query t is the row of its shares. This is the library's attention, buckets of 4:");
  const Tensor causal = equal_shares(16, 4, true);
  page.picture(drawing::heat_map(page.style(), causal, {.low = 0, .high = 0.25, .row_label = "query, columns: keys"}));
  page.text(
      "Stairs: at each new bucket the oldest bucket falls out of sight. How many keys a query sees depends on its "
      "place in the bucket:");
  std::vector<std::pair<std::string, double>> counts;
  for (const std::int64_t t : {0, 3, 4, 7, 8, 11, 12, 15})
    counts.emplace_back(fmt::format("query {:2}", t), double(seen_by(causal, t)));
  page.picture(drawing::bars(page.style(), counts));
  page.text("In the first bucket 1 to b keys, later b + 1 to 2b.");

  page.step("Both ways");
  page.text(
      "A model that reads a finished text, and does not write it, may look ahead as well. Then a head sees three "
      "buckets: the one before, its own, and the one after.");
  const Tensor both = equal_shares(16, 4, false);
  page.picture(drawing::heat_map(page.style(), both, {.low = 0, .high = 0.25, .row_label = "query, columns: keys"}));
  page.text("The queries at the edges see {} keys, those in the middle {}. All queries of a bucket see the same ones.",
            seen_by(both, 0), seen_by(both, 5));
}

// Random queries and keys of 16 tokens, width 2.
struct Example {
  Tensor q = normal(Rng(6), {16, 2}, 0, 1.5, DType::f64), k = normal(Rng(7), {16, 2}, 0, 1.5, DType::f64);
};

void edges(Page& page) {
  page.step("Laid side by side");
  page.text(
      "To use matrix products, each bucket's keys are copied together: pad the list of buckets with a bucket of "
      "zeros on both ends, and put slices of it side by side. The library says it in four lines (around: with zeros "
      "around):");
  page.code("nn/composed_attention.cpp", "auto neighbours = [&]");
  page.text(
      "So the first bucket gets a neighbour of zeros, and zeros are dangerous. A key of zeros has score 0 with every "
      "query. That is not \"nothing\": it is a middling score. Look at query 1 of the first bucket, causal. Slots 0 "
      "to 3 are the zeros, 4 to 7 the real bucket:");
  const Example e;
  const Tensor q = e.q.slice(1, 2), keys = pad(Var(e.k.slice(0, 4)), 0, 4, 0).value;
  const Var scores = scale(matmul(q, keys, false, true), 1 / std::sqrt(2.0));
  const Tensor no_future = mask("11111100"), right = mask("00001100");
  page.values("scores", scores.value, 2);
  page.values("shares, only the future masked", softmax(scores, no_future).value, 2);
  page.values("shares, the missing bucket masked too", softmax(scores, right).value, 2);
  const std::vector<double> leaked = softmax(scores, no_future).value.to_vector();
  page.text("Without the second mask {:.0f} % of this query's attention goes to a bucket that does not exist.",
            100 * (leaked[0] + leaked[1] + leaked[2] + leaked[3]));
}

void bills(Page& page) {
  page.step("The bill, paid");
  page.text(
      "Each query has at most 3 b scores, so the whole sequence has less than 3 b T: twice the text, twice the work. "
      "With buckets of 64:");
  std::vector<std::vector<std::string>> rows;
  for (const double length : {256.0, 4096.0, 65536.0, 1048576.0}) {
    const double full = length * length, windows = length / 64, local = 64 * 64 * (3 * windows - 2);
    rows.push_back({fmt::format("{:.0f}", length), fmt::format("{:.3g}", full), fmt::format("{:.3g}", local),
                    fmt::format("{:.1f}", full / local)});
  }
  page.picture(drawing::table(page.style(), {"T", "scores, all", "scores, local", "times fewer"}, rows));
  page.text("(The formula is b b (3 N - 2) for N buckets; counted in the picture above: {} of {}, and {} by formula.)",
            seen_by_all(equal_shares(16, 4, false)), 16 * 16, 4 * 4 * (3 * 4 - 2));

  page.step("What it cannot do");
  page.text(
      "Far is out of sight. In the next layer a token sees neighbours that have seen their neighbours, so "
      "information does travel, one bucket a layer. Multiplying the share matrices of two layers gives what reaches "
      "whom after both. Causal, 64 tokens in buckets of 8: how many tokens can have influenced the last one?");
  const Tensor step = equal_shares(64, 8, true);
  Tensor reach = step;
  std::vector<std::pair<std::string, double>> counts;
  for (int layers = 1; layers <= 7; ++layers) {
    counts.emplace_back(fmt::format("{} layer{}", layers, layers > 1 ? "s" : " "), double(seen_by(reach, 63)));
    reach = matmul(reach, step).value;
  }
  page.picture(drawing::bars(page.style(), counts));
  page.text(
      "A text of 4096 tokens in buckets of 128 has 32 buckets: the end hears from the beginning after 31 layers, "
      "through 31 means of means. A quotation mark that was opened a page ago is lost on the way. What if a bucket "
      "could look at one far bucket directly, the right one? Finding it is the subject of the next lesson.");
}

}  // namespace

void walk(Page& page) {
  buckets(page);
  patterns(page);
  edges(page);
  bills(page);

  page.step("Your turn");
  page.text(
      "Write neighbours, visible and local_attention. The file as it stands lays out zeros, lets everything be seen, "
      "and returns the values.\n\n"
      "The checks use several lengths and bucket sizes, buckets of one token, and a single bucket, causal and both "
      "ways. They compare with the library's ops, and with what the local heads of its fused attention really see "
      "and give.");
}

Quiz quiz(Rng rng) {
  auto integer = [&](std::uint32_t tag, std::int64_t low, std::int64_t high) {
    return low + std::int64_t(rng.split(tag).bits().word(0) % std::uint32_t(high - low + 1));
  };
  const std::int64_t bucket = integer(0, 3, 6), count = integer(1, 4, 7), length = bucket * count;
  const std::int64_t token = integer(2, 0, length - 1), query = integer(3, bucket, length - 1);
  const std::int64_t size = std::int64_t(32) << integer(4, 0, 2), much = size * integer(5, 20, 90);
  const std::int64_t home = token / bucket, from = integer(6, 3, 20);
  return {
      Question::about_number(
          fmt::format("Buckets have {} tokens. In which bucket (the first is 0) is token {}?", bucket, token),
          double(home), "token / bucket size, rounded down", 0),
      Question::about_number(
          fmt::format("A causal local head has buckets of {}. How many keys does query {} see?", bucket, query),
          double(seen_by(equal_shares(length, bucket, true), query)),
          "the whole bucket before, and its own up to itself: b + (query mod b) + 1", 0),
      Question::about_number(
          fmt::format("{} tokens in buckets of {}, both ways. How many scores are there in all?", length, bucket),
          double(seen_by_all(equal_shares(length, bucket, false))),
          "3 b for each query, but 2 b in the first and the last bucket: b b (3 N - 2)", 0),
      Question::about_number(
          fmt::format(
              "{} tokens in buckets of {}. A causal query sees at most 2 buckets. Full attention has T scores a "
              "query. How many times more is that?",
              much, size),
          double(much) / double(2 * size), "T / 2b"),
      Question::about_number(
          fmt::format(
              "A causal model has only local heads. How many layers does it take until a token of bucket {} can hear "
              "from bucket 0?",
              from),
          double(from), "one bucket a layer", 0),
      Question::with_choices(
          "The first bucket has no bucket before it. Its neighbour is filled with zeros and not masked. What happens?",
          {"the zeros take a share, because exp(0) is 1", "nothing, zeros have no share", "every share becomes NaN",
           "the first bucket sees the last one"},
          "score 0 is not minus infinity: a key of zeros competes like any other, and its value of zeros dilutes the "
          "answer"),
  };
}

}  // namespace sinkhorn::lessons::lesson_10_buckets
