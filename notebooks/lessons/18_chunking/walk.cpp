#include <cmath>
#include <limits>

#include "autograd/pool.h"
#include "nn/composed_attention.h"
#include "nn/layers.h"
#include "nn/sort_net.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_18_chunking {
namespace {

constexpr std::int64_t kLength = 512, kDim = 64;

double kib(std::size_t bytes) { return std::round(double(bytes) / 1024); }

// Bytes of tensors alive at once while `body` runs, beside those that were alive before.
template <class Body>
std::size_t peak_of(Body body) {
  Pool& pool = Pool::of(Device::cpu);
  const std::size_t before = pool.stats().in_use;
  pool.reset_peak();
  body();
  return pool.stats().peak - before;
}

FeedForward feed_forward(std::int64_t chunks) {
  Initializer init(Rng(1), DType::f32);
  return {kDim, false, 0, chunks, init};
}

Tensor sequence() { return normal(Rng(2), {1, kLength, kDim}, 0, 1); }

double largest_difference(const Tensor& a, const Tensor& b) {
  double largest = 0;
  const std::vector<double> x = a.to_vector(), y = b.to_vector();
  for (std::size_t i = 0; i < x.size(); ++i) largest = std::max(largest, std::abs(x[i] - y[i]));
  return largest;
}

// Causal bucketed attention of 4 heads over `length` tokens in buckets of 32.
struct Attention {
  explicit Attention(std::int64_t length)
      : q(normal(Rng(3), {1, length, 4, 16}, 0, 1)),
        kv(normal(Rng(4), {1, length, 2, 4, 16}, 0, 1)),
        null(normal(Rng(5), {4, 1, 16}, 0, 1)) {}
  Var run(bool composed, const Tape& tape) const {
    const auto leaf = [&](const Tensor& x) { return tape ? tape.leaf(x) : Var(x); };
    const Var queries = leaf(q), pairs = leaf(kv);
    const Routing routing = CausalSortNet{}(Scope{.tape = tape}, queries, pairs, 32, 0, 1, 0.75, {});
    const AttentionPattern pattern{32, 32, 0, true, true};
    const NullBlock block{leaf(null), leaf(null)};
    return composed ? composed_attention(queries, pairs, routing, block, pattern)
                    : bucketed_attention(queries, pairs, routing, block, pattern);
  }
  Tensor q, kv, null;
};

// Bytes of tokens of this width that the op keeps.
std::size_t kept_by(const Tape& tape, std::string_view op, std::int64_t width) {
  std::size_t bytes = 0;
  for (const NodeInfo& node : tape.nodes())
    for (const KeptTensor& kept : node.kept)
      if (node.name == op && kept.shape[-1] == width) bytes += kept.bytes;
  return bytes;
}

// One query's softmax-weighted sum of numbers, as far as it has come.
struct Running {
  double largest, sum, weighted;
};
Running after(Running so_far, const std::vector<double>& scores, const std::vector<double>& values) {
  double now = so_far.largest;
  for (const double score : scores) now = std::max(now, score);
  const double factor = std::exp(so_far.largest - now);
  Running next{now, factor * so_far.sum, factor * so_far.weighted};
  for (std::size_t j = 0; j < scores.size(); ++j) {
    next.sum += std::exp(scores[j] - now);
    next.weighted += std::exp(scores[j] - now) * values[j];
  }
  return next;
}

std::string listed(const std::vector<double>& xs) {
  std::string text;
  for (const double x : xs) text += (text.empty() ? "" : ", ") + drawing::number(x);
  return text;
}

}  // namespace

void walk(Page& page) {
  page.step("Slices of a sequence");
  const Tensor x = sequence();
  page.text(
      "A feed-forward layer widens each token to four times its width, and narrows it again. Every token is treated "
      "by itself, so nobody needs the wide ones all at once. With ff_chunks the sequence is cut into slices, and one "
      "slice is computed after the other. The most KiB of tensors alive at once, for {} tokens of width {}, counted "
      "by the memory pool of the library while the layer runs:",
      kLength, kDim);
  std::vector<std::pair<std::string, double>> peaks;
  std::vector<Tensor> results;
  for (const std::int64_t chunks : {1, 2, 4, 8, 16}) {
    const FeedForward layer = feed_forward(chunks);
    Tensor y;
    const std::size_t peak = peak_of([&] { y = layer(Scope{}, x).value; });
    peaks.emplace_back(std::to_string(chunks) + (chunks == 1 ? " slice" : " slices"), kib(peak));
    results.push_back(y);
  }
  page.picture(drawing::bars(page.style(), peaks));
  page.text(
      "Halved and halved again, until what is left is the output itself ({} KiB, twice: as slices, and put "
      "together). The results of 1 slice and of 16 differ by {:.2g} at most.",
      kib(results[0].bytes()), largest_difference(results.front(), results.back()));

  page.step("What a tape does to it");
  page.text(
      "That was inference. In training, backward needs what is inside, so the tape keeps it (lesson 2), in however "
      "many slices it was computed. KiB of widened tokens that GELU, the function between widening and narrowing, "
      "keeps for backward:");
  std::vector<std::pair<std::string, double>> kept;
  for (const std::int64_t chunks : {1, 16}) {
    const FeedForward layer = feed_forward(chunks);
    const Tape tape = Tape::record();
    (void)layer(Scope{.tape = tape}, tape.leaf(x));
    kept.emplace_back(std::to_string(chunks) + (chunks == 1 ? " slice" : " slices"),
                      kib(kept_by(tape, "linear_gelu", 4 * kDim)));
  }
  page.picture(drawing::bars(page.style(), kept));
  page.text(
      "Slicing saves nothing there. It helps where nothing is kept: in generation, in evaluation, and in the forward "
      "pass of reversible layers (lesson 16). To save memory in backward, too, one has to keep less and compute "
      "again. Reversible layers do: they go back through a feed-forward slice by slice, and with head_groups through "
      "an attention one group of heads after the other. For attention computing again is worth most, because its "
      "scores are many.");

  page.step("Scores nobody needs to see");
  page.text(
      "Attention in small ops makes scores, shares of them, and a sum weighted by the shares. Each query meets 64 "
      "keys here, so scores outgrow everything else. The fused op goes from one bucket of queries to the next, and "
      "has the scores of a single bucket on its desk. The most KiB of tensors alive, for 4 heads in buckets of 32:");
  std::vector<std::pair<std::string, double>> attention;
  for (const std::int64_t length : {256, 512, 1024}) {
    const Attention layer(length);
    for (const bool composed : {true, false})
      attention.emplace_back(fmt::format("{} tokens, {}", length, composed ? "small ops" : "fused"),
                             kib(peak_of([&] { (void)layer.run(composed, {}); })));
  }
  page.picture(drawing::bars(page.style(), attention));
  const Attention layer(kLength);
  page.text(
      "The scores of one bucket are 32 x 64 numbers, {} KiB, and not counted in the bars. The outputs of the two "
      "ways differ by {:.2g} at most. But fast memory on a GPU is scarce, and a query may meet a hundred thousand "
      "keys: then not even one row of scores fits. Can a softmax be had in pieces? It seems to need the largest "
      "score and the sum of all exponentials before it can give the first share.",
      32 * 64 * 4 / 1024, largest_difference(layer.run(true, {}).value, layer.run(false, {}).value));

  page.step("A running maximum");
  const std::vector<std::vector<double>> scores = {{1, 3}, {2, 0}, {5, 4}}, values = {{10, 20}, {40, 50}, {30, 60}};
  page.text(
      "Keep three numbers for each query: the largest score m so far, the sum s of exp(score - m), and the sum w of "
      "exp(score - m) value. All of s and w is measured in a unit that depends on m. When a chunk brings a larger "
      "score m', the unit changes, and both are multiplied by exp(m - m'). Six keys in three chunks:");
  std::vector<std::vector<std::string>> rows;
  std::vector<double> all_scores, all_values;
  Running running{-std::numeric_limits<double>::infinity(), 0, 0};
  for (std::size_t c = 0; c < scores.size(); ++c) {
    const double before = running.largest;
    running = after(running, scores[c], values[c]);
    rows.push_back({listed(scores[c]), listed(values[c]), drawing::number(std::exp(before - running.largest)),
                    drawing::number(running.largest), drawing::number(running.sum), drawing::number(running.weighted),
                    drawing::number(running.weighted / running.sum)});
    all_scores.insert(all_scores.end(), scores[c].begin(), scores[c].end());
    all_values.insert(all_values.end(), values[c].begin(), values[c].end());
  }
  page.picture(drawing::table(page.style(), {"scores", "values", "times", "m", "s", "w", "w / s"}, rows));
  const Tensor shares = softmax(Var(Tensor::from(all_scores, {1, 6}))).value;
  const double whole = matmul(Var(shares), Var(Tensor::from(all_values, {6, 1}))).value.item();
  page.text(
      "The softmax of all six scores at once, times the values, gives {}: the last w / s. In the second row nothing "
      "was larger than before, so the factor is 1. The third chunk made everything before it count {} as much. In "
      "the first row m was -inf, and exp(-inf) = 0 is right: there was nothing to rescale. (This is called online "
      "softmax.)",
      drawing::number(whole), rows[2][2]);

  page.step("Parts merge in any order");
  const double none = -std::numeric_limits<double>::infinity();
  const Running first = after({none, 0, 0}, {1, 3, 2}, {10, 20, 40}),
                second = after({none, 0, 0}, {0, 5, 4}, {50, 30, 60});
  page.text(
      "Two processors take three keys each. Their results are in different units, so both are brought to the larger "
      "maximum and added:");
  const auto row_of = [](const std::string& name, const Running& r) {
    return std::vector<std::string>{name, drawing::number(r.largest), drawing::number(r.sum),
                                    drawing::number(r.weighted), drawing::number(r.weighted / r.sum)};
  };
  const double most = std::max(first.largest, second.largest);
  const double of_first = std::exp(first.largest - most), of_second = std::exp(second.largest - most);
  const Running both{most, of_first * first.sum + of_second * second.sum,
                     of_first * first.weighted + of_second * second.weighted};
  page.picture(drawing::table(page.style(), {"", "m", "s", "w", "w / s"},
                              {row_of("keys 0 to 2", first), row_of("keys 3 to 5", second), row_of("merged", both)}));
  page.text(
      "The log-sum-exp of a part, m + log s, does not depend on the unit. Merged, they are log(exp(L1) + exp(L2)), "
      "and the outputs are averaged with the shares exp(L1 - L) and exp(L2 - L). Here L1 = {:.4f}, L2 = {:.4f} and L "
      "= {:.4f}; the library says {:.4f} for all six.",
      first.largest + std::log(first.sum), second.largest + std::log(second.sum), both.largest + std::log(both.sum),
      log_sum_exp(Var(Tensor::from(all_scores, {1, 6}))).value.item());
  page.text(
      "One trap remains. A causal query may find a whole chunk forbidden. If it has seen nothing yet, the old "
      "maximum is -inf and the new one is -inf, and their difference is not a number. The factor must be 0 then, by "
      "decree. And a forbidden score is no score: it takes no part in the maximum.");

  page.step("Backward with one number a query");
  page.text(
      "The gradient of attention needs the shares again. It does not need them kept: with L, the log-sum-exp of a "
      "row, each share is exp(score - L), computed again from q and k, one bucket at a time. That is what the fused "
      "op does:");
  page.code("autograd/cpu/bucketed_attention.cpp", "for (std::int64_t i = 0; i < b_; ++i) exponentiate(");
  page.text("KiB kept on the tape by the two ways, for {} tokens:", kLength);
  std::vector<std::pair<std::string, double>> on_tape;
  for (const bool composed : {true, false}) {
    const Tape tape = Tape::record();
    (void)layer.run(composed, tape);
    on_tape.emplace_back(composed ? "small ops" : "fused", kib(tape.kept_bytes()));
  }
  page.picture(drawing::bars(page.style(), on_tape));
  page.text(
      "Of the fused op's share, the log-sum-exps are {} KiB. The rest is q, k and v, which exist anyway and are "
      "counted twice, since the sort net refers to them as well.",
      kib(4 * kLength * sizeof(float)));

  page.step("Your turn");
  page.text(
      "Write attention of one block of queries over chunks of keys, and merge. Chunks are handed to you one at a "
      "time, and each is overwritten when you ask for the next. The checks use chunks of one key and of all of them, "
      "scores in the thousands, forbidden keys (also enormous ones), queries that see nothing at first or at all, "
      "and no chunk whatever. They compare with softmax over everything at once, merge parts in several orders, and "
      "weigh the memory that is held after 200 chunks.");
}

Quiz quiz(Rng rng) {
  const auto draw = [&](std::uint32_t tag, double low, double high) {
    return std::round(uniform(rng.split(tag), {1}, low, high, DType::f64).item() * 10) / 10;
  };
  const double m = draw(0, 0, 3), s = draw(1, 1, 4), score = m + draw(2, 0.5, 2);
  const double l1 = draw(3, 0, 3), l2 = draw(4, 0, 3), y1 = draw(5, -5, 5), y2 = draw(6, 6, 9);
  const double share = softmax(Var(Tensor::from(std::vector<double>{l1, l2}, {1, 2}))).value.to_vector()[0];
  const RandomBits bits = rng.split(7).bits();
  const auto tokens = std::int64_t(256) << bits.word(0) % 4, dim = std::int64_t(64) << bits.word(1) % 3,
             chunks = std::int64_t(2) << bits.word(2) % 3;
  const double logit = draw(8, 0, 2), total = logit + draw(9, 0.2, 3);
  return {
      Question::about_number(
          fmt::format(
              "So far the largest score is {} and the sum is {}. A chunk brings one key, with score {:.1f}. What is "
              "the new sum?",
              m, s, score),
          s * std::exp(m - score) + 1, "the old sum times exp(m - m'), plus exp(0) for the new largest"),
      Question::about_number(
          fmt::format("Two parts have the log-sum-exps {} and {}. What is that of both together?", l1, l2),
          log_sum_exp(Var(Tensor::from(std::vector<double>{l1, l2}, {1, 2}))).value.item(), "log(exp(L1) + exp(L2))"),
      Question::about_number(
          fmt::format("Two parts have the log-sum-exps {} and {} and the outputs {} and {}. What is the merged output?",
                      l1, l2, y1, y2),
          share * y1 + (1 - share) * y2, "averaged with the shares exp(L1 - L) and exp(L2 - L)"),
      Question::about_number(
          fmt::format("A row has the log-sum-exp {:.1f}. What is the share of a key whose score is {}?", total, logit),
          std::exp(logit - total), "exp(score - L): no other score is needed"),
      Question::about_number(
          fmt::format(
              "A feed-forward with an inner width of 4 x {} runs over {} tokens in {} slices. How many KiB are the "
              "inner numbers of one slice, in f32?",
              dim, tokens, chunks),
          double(tokens) / double(chunks) * 4 * double(dim) * 4 / 1024,
          "tokens / slices, times 4 width, times 4 bytes"),
      Question::with_choices("What does slicing a feed-forward save while a plain tape records?",
                             {"nothing: the tape keeps all slices", "the inner numbers of all slices but one",
                              "half of everything", "the gradients of the weights"},
                             "what backward needs is kept, however it was cut"),
  };
}

}  // namespace sinkhorn::lessons::lesson_18_chunking
