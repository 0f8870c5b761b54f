#include <cmath>
#include <numbers>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_11_routing {
namespace {

// 16 tokens in 4 buckets, one head of width 2. The keys of bucket v point into direction v of four; the queries of
// bucket u into the direction of the bucket that they want. Both with noise.
struct Example {
  Example() {
    for (std::int64_t t = 0; t < 16; ++t) {
      const std::int64_t bucket = t / 4, wanted = kWants[bucket];
      const double is = std::numbers::pi / 2 * double(bucket), wants = std::numbers::pi / 2 * double(wanted);
      for (std::int64_t c = 0; c < 2; ++c) {
        k.span<double>()[t * 2 + c] += 2 * (c == 0 ? std::cos(is) : std::sin(is));
        q.span<double>()[t * 2 + c] += 2 * (c == 0 ? std::cos(wants) : std::sin(wants));
      }
    }
  }
  static constexpr std::int64_t kWants[] = {2, 0, 3, 1};
  Tensor q = normal(Rng(8), {16, 2}, 0, 0.6, DType::f64), k = normal(Rng(9), {16, 2}, 0, 0.6, DType::f64);

  // (4, 2)
  static Tensor summary(const Tensor& x) {
    return bucket_summary(x.reshape({1, 16, 1, 2}), Summary::mean, 4, 0, 0, {}, false).value.reshape({4, 2});
  }
  // (4, 4)
  Tensor scores() const { return scale(matmul(summary(q), summary(k), false, true), 1 / std::sqrt(2.0)).value; }
};

Tensor row(const std::vector<double>& numbers) { return Tensor::from(numbers, {1, std::int64_t(numbers.size())}); }

Tensor picks_of(const std::vector<std::int32_t>& picks) {
  return Tensor::from(picks, {1, std::int64_t(picks.size()), 1});
}

void summaries(Page& page) {
  page.step("A bucket chooses a bucket");
  page.text(
      "Local heads see near, and nothing else. Other heads shall look far: bucket u picks the one or two buckets of "
      "the whole sequence that it wants to see, and its tokens attend to those. Not every token for itself: that "
      "would be T times T again. One choice a bucket, N buckets, so N times N scores, and N is T / b.\n\n"
      "This is called routing. In our text of 4 buckets, bucket 3, \"kets\", may want bucket 2, \" buc\", and not "
      "\"sort\".");

  page.step("A bucket in few numbers");
  page.text(
      "To compare buckets, each one is summarised: the mean of its queries says what it wants, the mean of its keys "
      "says what it has. Here are 16 random tokens, whose keys were given a direction by bucket. These are the keys "
      "of bucket 1, and the library's summaries of all four buckets:");
  const Example e;
  page.values("keys of tokens 4 .. 7", e.k.slice(4, 8), 3);
  page.values("bucket summaries of the keys", Example::summary(e.k), 3);
  page.text(
      "A mean is not always allowed. In a causal model the summary of a bucket's queries may know no more than the "
      "bucket's first token does, or the choice would depend on the future. So the library knows five summaries, and "
      "causal layers use the first and the third:");
  page.code("autograd/ops/bucket_summary.h", "enum class Summary {");

  page.step("Scores between buckets");
  page.text(
      "From here on it is what you know from attention: dot products of summaries, divided by sqrt(d). The part of "
      "the model that makes these scores is called the sort net. Row u: how much bucket u wants each of the buckets.");
  page.picture(drawing::heat_map(page.style(), e.scores(),
                                 {.row_label = "bucket that looks, columns: bucket to see", .numbers = true}));
  const TopK chosen = top_k(e.scores(), 1, 1);
  std::vector<std::vector<std::string>> rows;
  for (std::size_t u = 0; u < 4; ++u) rows.push_back({std::to_string(u), drawing::number(chosen.picks.to_vector()[u])});
  page.picture(drawing::table(page.style(), {"bucket", "picks"}, rows));
}

void no_slope(Page& page) {
  page.step("A choice has no slope");
  page.text(
      "To attend to all buckets with a share each would cost what we wanted to save. So take the largest score "
      "alone: an index, and everything else is left unread. But how shall a model learn to choose? Take a row of "
      "three scores, (s, 0.3, -0.5), and let s go from -2 to 2. Is bucket 0 picked?");
  std::vector<double> picked, weight;
  for (int i = 0; i <= 60; ++i) {
    const TopK chosen = top_k(row({-2 + 4 * i / 60.0, 0.3, -0.5}), 1, 1);
    picked.push_back(chosen.picks.to_vector()[0] == 0 ? 1 : 0);
    weight.push_back(chosen.weights.value.item());
  }
  page.picture(drawing::curve(page.style(), picked, 3));
  page.text(
      "A step. Its slope is 0 on both sides, and there is none at the jump: no gradient will ever say \"more\" or "
      "\"less\". Therefore the library hands out a weight with each pick: the share that softmax gives to the one "
      "that was picked.");
  page.picture(drawing::curve(page.style(), weight, 8));
  page.text(
      "This has a slope. The chosen bucket's keys and values are multiplied with the weight, so the loss depends on "
      "it, and through it on the scores. Left of the dip bucket 1 is picked, and loses weight as s grows; right of "
      "it, bucket 0 gains.");
}

void top_k_step(Page& page) {
  page.step("The differentiable top-k");
  page.text(
      "For n picks, do it n times: pick the largest, weigh it against those that are left, leave it out. Of equals "
      "the lowest column wins, so that every run and every machine chooses alike. Four logits, three picks, "
      "temperature 1:");
  const Tensor logits = row({1, 2, 0, 2});
  page.values("logits", logits);
  const TopK three = top_k(logits, 3, 1);
  page.values("picks", three.picks);
  page.values("weights", three.weights.value);
  page.text(
      "The second pick had as good a logit as the first, but weighs more: its strongest rival was gone. Weights of a "
      "row do not add up to 1; two equal logits get {} and then {}. The gradient is that of softmax, for each pick "
      "over what it was chosen from. What each of the three weights sends to the logits:",
      drawing::number(top_k(row({0, 0}), 2, 1).weights.value.to_vector()[0]),
      drawing::number(top_k(row({0, 0}), 2, 1).weights.value.to_vector()[1]));
  Tensor flows({3, 4}, DType::f64);
  for (std::int64_t i = 0; i < 3; ++i) {
    const Tape tape = Tape::record();
    const Var leaf = tape.leaf(logits);
    Tensor one = Tensor::zeros({1, 3}, DType::f64);
    one.span<double>()[i] = 1;
    flows.slice(i, i + 1).assign(tape.backward(top_k(leaf, 3, 1).weights, one).of(leaf));
  }
  page.picture(drawing::heat_map(page.style(), flows, {.row_label = "pick, columns: logit", .numbers = true}));
  page.text(
      "Each row adds up to 0, and what was gone when a pick was made hears nothing from it: column 1 below the first "
      "row, column 3 below the second.");
  page.code("autograd/cpu/routing.cpp", "void TopK<T>::forward(Cpu");
}

void gather_step(Page& page) {
  page.step("A row with one entry is no matrix product");
  page.text(
      "Papers write routing as a matrix product: R x, where row u of R has the weight in the column that was picked, "
      "and zeros elsewhere. For the four buckets above that is");
  const Example e;
  const TopK chosen = top_k(e.scores(), 1, 0.75);
  const Tensor weights = chosen.weights.value.reshape({1, 4, 1}), picks = chosen.picks.reshape({1, 4, 1});
  const Tensor dense = sorting_matrix(weights, picks, 4).value;
  page.picture(
      drawing::heat_map(page.style(), dense.reshape({4, 4}), {.low = 0, .row_label = "row u", .numbers = true}));
  const Tensor x = e.k.reshape({1, 4, 4, 2});
  const double difference = relative_error(gather_buckets(x, weights, picks).value.reshape({1, 4, 8}),
                                           matmul(dense, x.reshape({1, 4, 8})).value);
  page.text(
      "Multiplied out, almost all products are with 0. Copying the picked bucket, times its weight, is the same: the "
      "largest difference between both, on our keys, is {}. And it is cheap. Multiply-adds for buckets of 64 tokens "
      "of width 64, two picks each:",
      drawing::number(difference));
  std::vector<std::vector<std::string>> rows;
  for (const double buckets : {16.0, 256.0, 4096.0}) {
    const double copy = buckets * 2 * 64 * 64;
    rows.push_back({fmt::format("{:.0f}", 64 * buckets), fmt::format("{:.0f}", buckets),
                    fmt::format("{:.3g}", copy * buckets), fmt::format("{:.3g}", copy)});
  }
  page.picture(drawing::table(page.style(), {"T", "buckets", "matrix product", "gather"}, rows));

  page.step("The way back adds up");
  page.text(
      "Two buckets may pick the same one. Forward, it is read twice. Backward it is written twice, and the gradients "
      "add. Three buckets of one token of width 2; both rows pick bucket 1, with weights 0.5 and 2:");
  const Tensor three = Tensor::from(std::vector<double>{1, 2, 3, 4, 5, 6}, {1, 3, 1, 2}),
               dy = Tensor::from(std::vector<double>{10, 20, 1, 3}, {1, 2, 1, 2});
  const Tape tape = Tape::record();
  const Var leaf_x = tape.leaf(three), leaf_w = tape.leaf(Tensor::from(std::vector<double>{0.5, 2}, {1, 2, 1}));
  const Var y = gather_buckets(leaf_x, leaf_w, picks_of({1, 1}));
  const Gradients flow = tape.backward(y, dy);
  page.values("buckets", three.reshape({3, 2}));
  page.values("gathered", y.value.reshape({2, 2}));
  page.values("dy", dy.reshape({2, 2}));
  page.values("dx", flow.of(leaf_x).reshape({3, 2}));
  page.values("dweights", flow.of(leaf_w).reshape({2, 1}));
  page.text(
      "dx of bucket 1 is 0.5 (10, 20) + 2 (1, 3). This is called scatter-add, and it is to gather what the "
      "transposed matrix is to a matrix. A dweight is the dot product of dy and the bucket: it is large if more of "
      "just this content is wanted. That number is all that a sort net ever learns from.");
}

}  // namespace

void walk(Page& page) {
  summaries(page);
  no_slope(page);
  top_k_step(page);
  gather_step(page);

  page.step("Your turn");
  page.text(
      "Write top_k, top_k_backward, gather and gather_backward. The file as it stands picks the first columns and "
      "reads the first bucket.\n\n"
      "The checks use several n and temperatures, equal logits, logits that differ in their last bit only, closed "
      "columns (a logit of -infinity) and rows where nothing is left, and buckets picked twice or not at all. They "
      "compare with the library's ops and with numeric differences.");
}

Quiz quiz(Rng rng) {
  auto rounded = [&](std::uint32_t tag, double low, double high) {
    return std::round(uniform(rng.split(tag), {1}, low, high).item() * 10) / 10;
  };
  const std::int64_t columns = 4 + std::int64_t(rng.split(0).bits().word(0) % 9),
                     buckets = 32 * (1 + std::int64_t(rng.split(1).bits().word(0) % 32));
  const double best = rounded(2, 2, 3), second = rounded(3, 0.5, 1.5), third = rounded(4, -1, 0),
               temperature = rounded(5, 0.5, 2);
  const std::vector<double> weights = top_k(row({second, best, third}), 2, temperature).weights.value.to_vector();
  const std::vector<double> equal = top_k(Tensor::zeros({1, columns}, DType::f64), 3, 1).weights.value.to_vector();
  const double share = rounded(6, 0.2, 0.8), heat = rounded(7, 0.3, 2);
  const double w0 = rounded(8, 0.1, 0.9), w1 = rounded(9, 0.1, 0.9), d0 = rounded(10, -3, 3), d1 = rounded(11, 4, 8);
  return {
      Question::about_number(fmt::format("Logits {}, {}, {}; temperature {}. What is the weight of the first pick?",
                                         second, best, third, temperature),
                             weights[0], "softmax(logits / temperature) at the largest logit"),
      Question::about_number(
          fmt::format("The same logits, {}, {}, {}, temperature {}. And the weight of the second pick?", second, best,
                      third, temperature),
          weights[1], "softmax over the two that are left"),
      Question::about_number(fmt::format("{} logits are all equal. What is the weight of the third pick?", columns),
                             equal[2],
                             "two are gone, the third has an equal share among those left: 1 / (columns - 2)"),
      Question::about_number(
          fmt::format("A pick has weight {}; the temperature is {}. What is the derivative of the weight by its own "
                      "logit?",
                      share, heat),
          share * (1 - share) / heat, "p (1 - p) / temperature"),
      Question::about_number(
          fmt::format(
              "A bucket of one number was picked twice, with weights {} and {}. The gradients of the two copies are "
              "{} and {}. What is the gradient of the bucket?",
              w0, w1, d0, d1),
          w0 * d0 + w1 * d1, "both add up, each times its weight"),
      Question::about_number(
          fmt::format(
              "There are {} buckets. How many times more multiplications does the dense matrix product need than the "
              "gather?",
              buckets),
          double(buckets), "each row of the matrix has one entry that is not 0, and a column for every bucket", 0),
      Question::with_choices(
          "The loss would fall if bucket 5 had been picked, but it was not. What does its logit hear?",
          {"only whether the picked ones should weigh less", "how much the loss would fall", "nothing at all",
           "it is picked the next time"},
          "its logit stands in the softmax of the picks, so it moves against them; its content was never read"),
  };
}

}  // namespace sinkhorn::lessons::lesson_11_routing
