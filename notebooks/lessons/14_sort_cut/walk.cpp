#include <algorithm>
#include <cmath>
#include <sstream>

#include "models/config.h"
#include "nn/composed_attention.h"
#include "nn/sort_net.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_14_sort_cut {
namespace {

constexpr std::string_view kText = "sort the buckets";  // 16 characters, 4 buckets of 4

Tensor identity(std::int64_t n) {
  Tensor eye = Tensor::zeros({n, n}, DType::f64);
  for (std::int64_t i = 0; i < n; ++i) eye.span<double>()[i * n + i] = 1;
  return eye;
}

// Row u has its 1 in column order[u].
Tensor permutation(const std::vector<std::int64_t>& order) {
  const auto n = std::int64_t(order.size());
  Tensor matrix = Tensor::zeros({n, n}, DType::f64);
  for (std::int64_t u = 0; u < n; ++u) matrix.span<double>()[u * n + order[std::size_t(u)]] = 1;
  return matrix;
}

// (T, T): what each query of one head gives to each token, when all keys are equal to it. `matrix` (rows, M).
Tensor equal_shares(const Tensor& matrix, std::int64_t length, std::int64_t bucket, std::int64_t key_bucket,
                    bool shared) {
  const Tensor zero = Tensor::zeros({1, length, 1, length}, DType::f64);
  const Shape one{1, length, 1, 1, length};
  const Var kv = concat({zero.reshape(one), identity(length).reshape(one)}, 2);
  const Var y = blended_attention(zero, kv, matrix.reshape({1, 1, matrix.shape()[0], matrix.shape()[1]}), shared,
                                  {bucket, key_bucket, 0, false, true});
  return y.value.reshape({length, length});
}

std::string joined(const Tensor& numbers) {
  std::string result;
  for (const double x : numbers.to_vector()) result += (result.empty() ? "" : ", ") + drawing::number(x);
  return result;
}

void sorted_attention(Page& page) {
  page.step("Sinkhorn attention");
  page.text(
      "You have all the pieces: buckets, a sort net's scores, and Sinkhorn normalisation, which makes a sorting "
      "matrix R of them. Row u of R says which bucket comes to place u. The queries of bucket u then see what came "
      "to their place, and their own bucket. For our text, with a hard sorting:");
  const Tensor order = permutation({2, 0, 3, 1});
  std::vector<std::vector<std::string>> rows;
  for (std::size_t u = 0; u < 4; ++u) {
    const auto place = std::int64_t(u);
    const auto from = std::size_t(top_k(order.slice(place, place + 1), 1, 1).picks.to_vector()[0]);
    rows.push_back({std::to_string(u), fmt::format("\"{}\"", kText.substr(4 * u, 4)),
                    fmt::format("bucket {}, \"{}\"", from, kText.substr(4 * from, 4))});
  }
  page.picture(drawing::table(page.style(), {"place", "own bucket", "what comes to it"}, rows));
  page.text(
      "And what the library's attention sees with it, by the two tricks of the lesson on buckets (queries of zeros, "
      "the identity as values):");
  page.picture(drawing::heat_map(page.style(), equal_shares(order, 16, 4, 4, false),
                                 {.low = 0, .high = 0.25, .row_label = "query, columns: tokens"}));
  page.text("Each query sees 8 tokens of 16: its own bucket on the diagonal, and one far bucket.");
}

void blends(Page& page) {
  page.step("A blend of buckets");
  page.text(
      "A real sorting matrix is soft. Then no bucket comes alone: place u gets a blend, R[u, v] of each bucket v. "
      "Slot i of the blend is made of the slots i of all buckets. Three buckets of two tokens, width 1:");
  const Tensor matrix = sinkhorn(normal(Rng(21), {3, 3}, 0, 2, DType::f64), {}, 5).value;
  Tensor tokens({3, 2}, DType::f64);
  for (std::int64_t bucket = 0; bucket < 3; ++bucket)
    for (std::int64_t slot = 0; slot < 2; ++slot)
      tokens.span<double>()[bucket * 2 + slot] = double(10 * (bucket + 1) + slot);
  page.values("buckets, one a row", tokens);
  page.picture(drawing::heat_map(page.style(), matrix,
                                 {.low = 0, .high = 1, .row_label = "place, columns: bucket", .numbers = true}));
  page.values("blends, one a row", matmul(matrix, tokens).value);
  page.text(
      "A matrix product, and so it has a gradient by R: that is how the sort net learns, with no top-k and no "
      "weights. Keys are blended by R, and values by the same R, for the key must lie on what it describes:");
  page.code("nn/composed_attention.cpp", "auto blended = [&](const Var& x)");
  page.text(
      "The published package that this library follows had a slip here: where it sorts without cutting, it handed "
      "out sorted keys in the place of the sorted values. It ran, its loss fell, and for years nobody saw it. The "
      "exercise has a check for that.");
}

void cut(Page& page) {
  page.step("Sort, then cut");
  page.text(
      "Sorting costs each query bucket a blended bucket of its own. SortCut is simpler: sort once, keep the first k "
      "blocks, and let all queries see the same ones. If what matters to everybody (the beginning of a document, its "
      "title, its full stops) is sorted to the front, that is enough. With the sorting from above and k = 1, then 2:");
  const Tensor order = permutation({2, 0, 3, 1});
  for (const std::int64_t kept : {1, 2}) {
    page.picture(
        drawing::heat_map(page.style(), equal_shares(order.slice(0, kept), 16, 4, 4, true),
                          {.low = 0, .high = 0.25, .row_label = fmt::format("query, columns: tokens; k = {}", kept)}));
  }
  const Tensor two = equal_shares(order.slice(0, 2), 16, 4, 4, true);
  page.text(
      "Stripes: bucket 2 came first, bucket 0 second. The diagonal is each query's own bucket, which comes after the "
      "sorted blocks, always. Where the two meet, a token is seen twice, once as sorted and once as own: query 8 "
      "gives token 8 a share of {}, and token 0 half of it.",
      drawing::number(two.span<double>()[8 * 16 + 8]));
  page.text(
      "Buckets of keys may have another size than those of queries. Queries in buckets of 4, keys in buckets of 2, "
      "the first 2 of 8 blocks, here \"{}\" and \"{}\":",
      kText.substr(2 * 0, 2), kText.substr(2 * 7, 2));
  page.picture(drawing::heat_map(page.style(),
                                 equal_shares(permutation({0, 7, 1, 2, 3, 4, 5, 6}).slice(0, 2), 16, 4, 2, true),
                                 {.low = 0, .high = 0.25, .row_label = "query, columns: tokens"}));
}

void model(Page& page) {
  page.step("Two ways in the model");
  page.text(
      "The library knows two ways to find the first k. With Gumbel-Sinkhorn it makes the whole N x M matrix, as in "
      "the last lesson, and keeps k rows. With top-k it asks just once: one mean over all queries of the sequence, "
      "compared with the keys' buckets, and the k best are picked. This is the real sort net, on 16 random tokens, 2 "
      "heads, n_sortcut 2:");
  const Tensor q = normal(Rng(22), {1, 16, 2, 3}, 0, 1, DType::f64),
               kv = normal(Rng(23), {1, 16, 2, 2, 3}, 0, 1, DType::f64);
  const SortNet net;
  SortOptions options{{4, 4, 0, false, true}, 1, 2, 0.75, 5, false};
  const Routing routing = net.route({}, q, kv, options, {});
  page.picture(drawing::table(
      page.style(), {"", "shape (B, heads, lists, k)", "head 0", "head 1"},
      {{"picks", text_of(routing.picks.shape()), joined(routing.picks.reshape({2, 2}).slice(0, 1)),
        joined(routing.picks.reshape({2, 2}).slice(1, 2))},
       {"weights", text_of(routing.weights.shape()), joined(routing.weights.value.reshape({2, 2}).slice(0, 1)),
        joined(routing.weights.value.reshape({2, 2}).slice(1, 2))}}));
  const Tensor rows = net.sorting_matrix({}, q, kv, options, {}).value;
  page.text(
      "One list for all query buckets. And by Sinkhorn normalisation, for head 0, the first 2 rows of 4. Before the "
      "logarithm is taken, negative scores become 0 (and 0 becomes 1e-6), so that several can be equal:");
  page.picture(drawing::heat_map(page.style(), rows.reshape({2, 2, 4}).slice(0, 1).reshape({2, 4}),
                                 {.low = 0, .high = 1, .row_label = "place, columns: bucket", .numbers = true}));
  options.sortcut = 10;
  page.text("Who asks for 10 blocks of 4 gets {}. And who wants SortCut in a causal model is told:",
            net.route({}, q, kv, options, {}).picks.shape()[3]);
  ModelConfig config;
  config.num_tokens = 256;
  config.dim = 64;
  config.depth = 1;
  config.max_seq_len = 1024;
  config.causal = true;
  config.n_sortcut = 2;
  try {
    validate(config);
  } catch (const std::exception& refusal) {
    page.picture(drawing::wrap(page.style(), refusal.what()));
  }
  page.text(
      "A mean over all queries knows the future, and a block that all share would show late tokens to early ones. "
      "For cross-attention, where a model reads another, finished text, SortCut is open to causal models as well.");
}

void training(Page& page) {
  page.step("Who tells the rows that were cut off?");
  page.text(
      "Only k rows are read. Does the rest learn anything? Four buckets, k = 1. Below are the gradients of a random "
      "loss by the sorting matrix, and by the scores it was made of:");
  const Tensor q = normal(Rng(24), {1, 8, 1, 3}, 0, 1, DType::f64),
               kv = normal(Rng(25), {1, 8, 2, 1, 3}, 0, 1, DType::f64);
  const Tape tape = Tape::record();
  const Var scores = tape.leaf(normal(Rng(26), {1, 1, 4, 4}, 0, 1, DType::f64));
  const Var matrix = sinkhorn(scores, {}, 5);
  const Tape after = Tape::record();
  const Var leaf = after.leaf(matrix.value);
  const Tensor dy = uniform(Rng(27), {1, 8, 1, 3}, -1, 1, DType::f64);
  auto attend = [&](const Var& sorting) {
    return blended_attention(q, kv, slice(sorting, 2, 0, 1), true, {2, 2, 0, false, true});
  };
  const Tensor dmatrix = after.backward(attend(leaf), dy).of(leaf),
               dscores = tape.backward(attend(matrix), dy).of(scores);
  page.picture(
      drawing::heat_map(page.style(), dmatrix.reshape({4, 4}), {.row_label = "by the matrix", .numbers = true}));
  page.picture(
      drawing::heat_map(page.style(), dscores.reshape({4, 4}), {.row_label = "by the scores", .numbers = true}));
  page.text(
      "The matrix hears in its first row alone. The scores hear in all of them, because each column adds up to 1: "
      "who comes to the front leaves the back. Without Sinkhorn's columns the other rows would never move.");
}

void bill(Page& page) {
  page.step("The bill");
  page.text(
      "Scores of one head, buckets of 64: everything; local, three buckets; sorted, two picks and the own bucket; "
      "SortCut, k = 2 and the own bucket. The last two columns count the tokens that sorting copies.");
  std::vector<std::vector<std::string>> rows;
  for (const double length : {1024.0, 8192.0, 65536.0}) {
    const double buckets = length / 64;
    auto count = [](double x) { return fmt::format("{:.3g}", x); };
    rows.push_back({fmt::format("{:.0f}", length), count(length * length), count(64 * 64 * (3 * buckets - 2)),
                    count(length * 3 * 64), count(length * 3 * 64), count(buckets * 2 * 64), count(2 * 64)});
  }
  page.picture(
      drawing::table(page.style(), {"T", "all", "local", "sorted", "SortCut", "copied: sorted", "SortCut"}, rows));
  page.text(
      "So SortCut computes as many scores as sorted attention. What it saves is the copies: {} tokens, whatever the "
      "length. (The published paper lets queries see the cut alone, without their own bucket: then scores are T k "
      "c.) It also leaves out all that is not good for everyone. Use it for reading, classifying, and for the "
      "context of a decoder.",
      2 * 64);
}

}  // namespace

void walk(Page& page) {
  sorted_attention(page);
  blends(page);
  cut(page);
  model(page);
  training(page);
  bill(page);

  page.step("Your turn");
  page.text(
      "Write sorted_blocks, its gradient, and sort_cut_attention. The file as it stands takes the first buckets "
      "unsorted, sends no gradient, and returns the values.\n\n"
      "The checks use one block and several, buckets of keys that are smaller or larger than those of queries, and a "
      "k beyond the number of rows; the rows of the sorting matrix do not add up to 1. They compare with the "
      "library's blended attention, with the tape, and with numeric differences.");
}

Quiz quiz(Rng rng) {
  auto integer = [&](std::uint32_t tag, std::int64_t low, std::int64_t high) {
    return low + std::int64_t(rng.split(tag).bits().word(0) % std::uint32_t(high - low + 1));
  };
  auto rounded = [&](std::uint32_t tag, double low, double high) {
    return std::round(uniform(rng.split(tag), {1}, low, high).item() * 10) / 10;
  };
  const std::int64_t bucket = std::int64_t(8) << integer(0, 0, 3), key_bucket = std::int64_t(8) << integer(1, 0, 3),
                     kept = integer(2, 1, 4), length = 64 * integer(3, 4, 16), asked = integer(4, 9, 20),
                     there = integer(5, 2, 8);
  const double a = rounded(6, 0.1, 0.9), b = rounded(7, 0.1, 0.9), x = double(integer(8, 1, 9)),
               y = double(integer(9, 10, 20));
  const Tensor blend =
      matmul(Tensor::from(std::vector<double>{a, b}, {1, 2}), Tensor::from(std::vector<double>{x, y}, {2, 1})).value;
  return {
      Question::about_number(
          fmt::format("Query buckets of {}, key buckets of {}, k = {}. How many keys does a query see?", bucket,
                      key_bucket, kept),
          double(kept * key_bucket + bucket), "k c sorted ones, and b of its own bucket", 0),
      Question::about_number(
          fmt::format("The same sizes ({}, {}, k = {}) and {} tokens. How many scores are that in all?", bucket,
                      key_bucket, kept, length),
          double(length * (kept * key_bucket + bucket)), "T (k c + b)", 0),
      Question::about_number(
          fmt::format(
              "A row of the sorting matrix is ({}, {}). Slot 0 of the two buckets holds {} and {}. What does slot 0 "
              "of the block hold?",
              a, b, x, y),
          blend.item(), "each times its share; the shares of a row need not add up to 1"),
      Question::about_number(
          fmt::format("n_sortcut is {}, but there are only {} key buckets and as many rows. How many blocks are kept?",
                      asked, there),
          double(std::min(asked, there)), "k is cut to what there is", 0),
      Question::about_number(
          fmt::format("A text becomes twice as long. k = {}, key buckets of {}. How many tokens more are copied by the "
                      "cut?",
                      kept, key_bucket),
          0, "none: it is k c, whatever the length", 0),
      Question::with_choices(
          "Why does a causal model refuse SortCut for its own tokens?",
          {"all queries share blocks, early ones would see late tokens", "sorting needs too much memory",
           "causal models have no buckets", "the blocks would not be sorted"},
          "a shared block holds tokens from anywhere, and a query may only see what came before it"),
      Question::with_choices(
          "k = 1. Which scores of the sort net get a gradient, through Sinkhorn normalisation?",
          {"those of all rows", "those of the first row alone", "those of the first column alone", "none"},
          "columns add up to 1, so what comes to the first place leaves the others"),
  };
}

}  // namespace sinkhorn::lessons::lesson_14_sort_cut
