#include <algorithm>
#include <cmath>

#include "autograd/ops/softmax.h"
#include "notebooks/kit/grid.h"
#include "notebooks/kit/lesson.h"
#include "notebooks/lessons/23_cuda_bucketed_attention/kernels.h"

namespace sinkhorn::lessons::lesson_23_cuda_bucketed_attention {
namespace {

using emulator::Array;
using emulator::Counters;

std::string bytes(double count) {
  const char* const units[] = {"B", "KB", "MB", "GB", "TB"};
  std::size_t unit = 0;
  for (; count >= 1000 && unit < 4; ++unit) count /= 1000;
  return fmt::format("{:.3g} {}", count, units[unit]);
}

// Earlier buckets, as a sort net might pick them for six buckets.
const std::vector<std::int32_t> kPicks = {-1, -1, 0, -1, 1, 0, 0, 2, 3, 0, 1, 4};
constexpr std::int64_t kBuckets = 6, kTop = 2;

Attended example(std::int64_t bucket, std::int64_t width) {
  const Shape vectors{kBuckets * bucket, width};
  return {uniform(Rng(1), vectors, -2, 2),           uniform(Rng(2), vectors, -2, 2),
          uniform(Rng(3), vectors, -2, 2),           Tensor::from(kPicks, {kBuckets, kTop}),
          uniform(Rng(4), {kBuckets, kTop}, 0.6, 1), bucket};
}

template <class T>
std::vector<T> elements(const Tensor& x) {
  const auto values = x.span<T>();
  return {values.begin(), values.end()};
}

double distance(const std::vector<float>& got, const Tensor& want) {
  const std::vector<double> expected = want.to_vector();
  double largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) largest = std::max(largest, std::abs(expected[i] - double(got[i])));
  return largest;
}

void show_memory(Page& page) {
  page.step("What would have to be stored");
  page.text(
      "Attention (lesson 9) has a score for every query and every key that it sees. Buckets (lesson 10) and routing "
      "(lesson 11) make that few keys for each query: its own bucket and n_top others. But few times many is still "
      "much, and each layer would keep it for backward. For one head in f32, with buckets of 64 and n_top = 2:");
  std::vector<std::vector<std::string>> rows;
  for (const double tokens : {4096.0, 65536.0, 204800.0})
    rows.push_back(
        {drawing::number(tokens, 6), bytes(4 * tokens * tokens), bytes(4 * tokens * 3 * 64), bytes(4 * tokens)});
  page.picture(drawing::table(page.style(), {"tokens", "all scores", "bucket scores", "one number a query"}, rows));
  page.text(
      "The last column is what the library keeps. This lesson shows how one number can stand for 192 scores, and how "
      "a kernel computes attention without ever writing a score to memory.");
}

void show_picture(Page& page) {
  page.step("One block a query bucket");
  constexpr std::int64_t kBucket = 4, kTokens = kBuckets * kBucket;
  Attended in = example(kBucket, kTokens);
  in.v.fill(0);
  for (std::int64_t i = 0; i < kTokens; ++i) {
    in.v.span<float>()[i * kTokens + i] = 1;
    for (std::int64_t e = 0; e < kTokens; ++e) in.q.span<float>()[i * kTokens + e] *= 0.4f;
  }
  page.text(
      "Six buckets of four tokens, n_top = 2, causal: a bucket picks earlier buckets. If the value of token j is the "
      "j-th unit vector, then the output of a query is the list of its shares (times the weights of the picks). So "
      "the library shows its own attention matrix; a row is a query, a column a key:");
  page.picture(
      drawing::heat_map(page.style(), library_attention(in).y, {.low = 0, .high = 0.25, .row_label = "query"}));
  std::vector<std::vector<std::string>> rows;
  for (std::size_t u = 0; u < std::size_t(kBuckets); ++u)
    rows.push_back({std::to_string(u), std::to_string(kPicks[u * kTop]), std::to_string(kPicks[u * kTop + 1])});
  page.text("The triangles are the own buckets, the squares are picked ones. The picks (-1: none):");
  page.picture(drawing::table(page.style(), {"query bucket", "first pick", "second pick"}, rows));
  page.text(
      "All queries of a bucket look at the same keys. So a query bucket is a tile, in the sense of lesson 22, and "
      "gets a block of its own. The block reads a pick, which is an index; fetches that bucket's keys and values "
      "into shared memory, once for all its queries; and goes on to the next. Nothing is sorted or moved beforehand. "
      "No block needs another.");
}

void show_running_softmax(Page& page) {
  page.step("Softmax on the run");
  page.text(
      "Softmax (lesson 6) wants the largest score of the row before the first exponential. A block that sees one "
      "bucket after the other does not know it yet. But it can take the largest so far, m, and correct itself. If a "
      "larger score comes, every exponential taken until then is too large by the same factor, exp(m_new - m_old), "
      "and so are their sums. Two sums are kept: l, of the exponentials, and o, of the exponentials times the values:");
  page.picture(
      "  m' = max(m, s)\n"
      "  l' = l exp(m - m') + exp(s - m')\n"
      "  o' = o exp(m - m') + exp(s - m') v\n");
  constexpr std::size_t kCount = 6;
  const std::vector<double> scores = {1.5, 0.5, 3, 2, 4.5, -1}, values = {1, -2, 3, 0.5, 2, 4};
  double m = -std::numeric_limits<double>::infinity(), l = 0, o = 0;
  std::vector<std::vector<std::string>> rows;
  for (std::size_t j = 0; j < kCount; ++j) {
    const double above = std::max(m, scores[j]), rescale = std::exp(m - above), share = std::exp(scores[j] - above);
    l = l * rescale + share;
    o = o * rescale + share * values[j];
    m = above;
    rows.push_back({drawing::number(scores[j]), drawing::number(values[j]), drawing::number(rescale),
                    drawing::number(m), drawing::number(l), drawing::number(o), drawing::number(o / l)});
  }
  page.picture(drawing::table(page.style(), {"s", "v", "rescaled by", "m", "l", "o", "o / l"}, rows));
  const std::vector<double> shares = softmax(Var(Tensor::from(scores, {1, kCount}))).value.to_vector();
  double want = 0;
  for (std::size_t j = 0; j < kCount; ++j) want += shares[j] * values[j];
  page.text(
      "The last column is at every moment the attention over the keys seen so far. At the end it is {:.6f}; softmax "
      "of the whole row, times the values, is {:.6f}. In the library a warp has a query and each lane a key, so m "
      "and l come from the reductions of lesson 21:",
      o / l, want);
  page.code("cuda/bucketed_attention.cu", "j0 = 0; j0 < block.width; j0 += kTile");
}

struct Costs {
  Counters scores, softmax, values, fused;
  double composed_error = 0, fused_error = 0, lse_error = 0;
};

Costs measure() {
  constexpr std::int64_t kBucket = 16, kWidth = 16, kTokens = kBuckets * kBucket;
  const Attended in = example(kBucket, kWidth);
  const AttentionResult want = library_attention(in);
  const Array<float> q(elements<float>(in.q)), k(elements<float>(in.k)), v(elements<float>(in.v));
  const Array<float> weights(elements<float>(in.weights));
  const Array<std::int32_t> picks(kPicks);
  const Problem problem{
      kBucket, kWidth, kTop, q.on_device(), k.on_device(), v.on_device(), picks.on_device(), weights.on_device()};
  const Array<float> scores(kTokens * problem.columns()), y(kTokens * kWidth), lse(kTokens);
  Costs costs;
  costs.scores = counted("scores", kTokens, 32, 0, WriteScores{problem, scores.on_device()});
  costs.softmax = counted("softmax", kTokens, 32, 0, SoftmaxInPlace{problem.columns(), scores.on_device()});
  costs.values = counted("values", kTokens, 32, 0, WeightedValues{problem, scores.on_device(), y.on_device()});
  costs.composed_error = distance(y.to_host(), want.y);
  costs.fused =
      counted("fused", kBuckets, 32, 2 * kBucket * kWidth * 4, Fused{problem, y.on_device(), lse.on_device()});
  costs.fused_error = distance(y.to_host(), want.y);
  costs.lse_error = distance(lse.to_host(), want.log_sum_exp);
  return costs;
}

void show_costs(Page& page) {
  page.step("Counted");
  const Costs costs = measure();
  page.text(
      "The same attention twice on the emulated grid, for buckets of 16 and width 16: as three kernels (scores, "
      "softmax, values), with the scores in global memory between them, and as one. Both agree with the library on "
      "the CPU, to {} and {}. Elements of global memory:",
      drawing::number(costs.composed_error, 2), drawing::number(costs.fused_error, 2));
  const auto row = [](const std::string& name, const Counters& c) {
    return std::vector<std::string>{name, std::to_string(c.global_reads.accesses),
                                    std::to_string(c.global_writes.accesses), std::to_string(c.barriers)};
  };
  page.picture(drawing::table(page.style(), {"kernel", "reads", "writes", "barriers"},
                              {row("1 scores", costs.scores), row("2 softmax", costs.softmax),
                               row("3 values", costs.values), row("all in one", costs.fused)}));
  const auto total = [](const Counters& c) { return double(c.global_reads.accesses + c.global_writes.accesses); };
  page.picture(
      drawing::bars(page.style(), {{"three kernels", total(costs.scores) + total(costs.softmax) + total(costs.values)},
                                   {"one kernel", total(costs.fused)}}));
  page.text(
      "One kernel writes {} elements: y, and one log-sum-exp a query. There is no score among them. (The three "
      "kernels here are plain; with tiles their reads would fall, but the scores would still be written once and "
      "read twice more.)",
      costs.fused.global_writes.accesses);
}

void show_backward(Page& page) {
  page.step("Backward, from one number");
  page.text(
      "The gradient of softmax needs the shares P. Nobody kept them. But a share is exp(s) over the sum of all, and "
      "the logarithm of that sum was kept: P = exp(s - lse). So backward fetches the same buckets again, computes "
      "the scores again, and has every share without another softmax. For the six scores above:");
  const Tensor scores = Tensor::from(std::vector<double>{1.5, 0.5, 3, 2, 4.5, -1}, {1, 6});
  const double lse = log_sum_exp(Var(scores)).value.item();
  const std::vector<double> shares = softmax(Var(scores)).value.to_vector(), s = scores.to_vector();
  std::vector<std::vector<std::string>> rows;
  for (std::size_t j = 0; j < s.size(); ++j)
    rows.push_back(
        {drawing::number(s[j]), fmt::format("{:.6f}", std::exp(s[j] - lse)), fmt::format("{:.6f}", shares[j])});
  page.picture(drawing::table(page.style(), {"s", fmt::format("exp(s - {:.4f})", lse), "softmax"}, rows));
  page.code("cuda/bucketed_attention.cu", "const Real<T> p = math::exp(w * qk - log_sum_exp)");

  page.step("Who adds to a key?");
  page.text(
      "A query bucket's gradient dq belongs to one block: no difficulty. But a key bucket may have been picked by "
      "several query buckets, and dk and dv are sums over all of them. If each query block added its part, the order "
      "would be that of arrival: atomics, and other bits in every run (lesson 21). So backward turns the question "
      "round. A block owns keys, and goes through the query buckets that look at them, in order. The inverse of the "
      "picks above:");
  std::vector<std::vector<std::string>> owners;
  for (std::int64_t source = 0; source < kBuckets; ++source) {
    std::string from = std::to_string(source) + " (own)";
    for (std::int64_t u = 0; u < kBuckets; ++u)
      for (std::int64_t c = 0; c < kTop; ++c)
        if (kPicks[std::size_t(u * kTop + c)] == source) from += ", " + std::to_string(u);
    owners.push_back({"bucket " + std::to_string(source), from});
  }
  page.picture(drawing::table(page.style(), {"keys of", "seen by the queries of bucket"}, owners));
  page.text("The library asks each query bucket's blocks, in order, whether they meet the keys that the block owns:");
  page.code("cuda/bucketed_attention.cu", "const bool meets = ");
  page.text("Each sum has one owner and one order. The gradient has the same bits in every run.");
}

}  // namespace

void walk(Page& page) {
  show_memory(page);
  show_picture(page);
  show_running_softmax(page);
  show_costs(page);
  show_backward(page);

  page.step("Your turn");
  page.text(
      "Write the forward kernel: one block a query bucket, picked buckets by index, the own bucket up to oneself, y "
      "and the log-sum-exp. A weight w from the sort net multiplies keys and values of its pick.\n\nThe checks "
      "compare with the library on the CPU, with large scores too. They count the traffic: y and log_sum_exp written "
      "once and nothing else, every picked bucket read once a block. And they change the future and look whether a "
      "single bit of the past moves.");
}

Quiz quiz(Rng rng) {
  const std::int64_t bucket = 16 * whole(rng.split(0), 1, 8), top = whole(rng.split(1), 1, 4);
  const std::int64_t tokens = bucket * whole(rng.split(2), 8, 64), width = 8 * whole(rng.split(3), 2, 8);
  const std::int64_t place = whole(rng.split(4), 0, bucket - 1), columns = (top + 1) * bucket;
  const double m = double(whole(rng.split(5), -20, 20)) / 10, up = double(whole(rng.split(6), 2, 20)) / 10;
  const double l = double(whole(rng.split(7), 10, 50)) / 10;
  const double lse = double(whole(rng.split(8), 20, 60)) / 10, score = lse - double(whole(rng.split(9), 1, 30)) / 10;
  return {
      Question::about_number(
          fmt::format("A causal head has buckets of {} and {} picked buckets for each query bucket. How many keys does "
                      "a query see that stands at place {} (from 0) of its bucket?",
                      bucket, top, place),
          double(top * bucket + place + 1), "whole picked buckets, and the own bucket up to and with oneself", 0),
      Question::about_number(
          fmt::format(
              "So far the largest score is {:.1f} and the sum l is {:.1f}. Now comes a score of {:.1f}. What is l "
              "then?",
              m, l, m + up),
          l * std::exp(-up) + 1, fmt::format("l exp(-{:.1f}) + 1: the new largest score has exponential 1", up)),
      Question::about_number(
          fmt::format("A query's log-sum-exp is {:.1f}. What is the share of a key with score {:.1f}?", lse, score),
          std::exp(score - lse), "exp(score - log-sum-exp)"),
      Question::about_number(
          fmt::format("{} tokens, one head of width {}, {} columns of scores a query. How many elements does the fused "
                      "kernel write to global memory?",
                      tokens, width, columns),
          double(tokens * width + tokens), "the output and one log-sum-exp a query; no scores", 0),
      Question::with_choices("Why does one block own each tile of keys in backward?",
                             {"dk and dv are sums over several query buckets; so each has one owner and one order",
                              "Keys are larger than queries", "Because the scores of a key were saved in forward",
                              "Because shuffles do not reach other blocks"},
                             "otherwise several blocks would add to the same element, in the order of their arrival"),
      Question::with_choices(
          "A larger score arrives late in the row. What happens to the sums so far?",
          {"Both are multiplied by exp(old largest - new largest)", "Both start again from 0",
           "Only the sum of exponentials is multiplied", "Nothing: the division at the end takes care of it"},
          "all exponentials in them were taken against the old largest score"),
  };
}

}  // namespace sinkhorn::lessons::lesson_23_cuda_bucketed_attention
