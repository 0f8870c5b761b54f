#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "autograd/ops.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/19_product_keys/exercise.h"

namespace sinkhorn::lesson {
namespace {

// Two lists of scores, (2, keys). Multiples of 1 / fineness, so that sums are exact; a coarse fineness makes many
// equal.
Tensor draw_scores(const Rng& rng, std::int64_t keys, double fineness) {
  Tensor scores = uniform(rng, {2, keys}, -1, 1, DType::f64);
  for (double& x : scores.span<double>()) x = std::round(x * fineness) / fineness;
  return scores;
}

std::vector<Score> half(const Tensor& scores, std::int64_t which) {
  const std::vector<double> values = scores.slice(which, which + 1).to_vector();
  return {values.begin(), values.end()};
}

ProductKeys library(const Var& scores, std::int64_t n) {
  return product_key_top_k(reshape(scores, {2, 1, scores.shape()[1]}), n);
}

std::vector<std::int32_t> picks_of(const Tensor& scores, std::int64_t n) {
  const Tensor picks = library(scores, n).picks;
  return {picks.span<std::int32_t>().begin(), picks.span<std::int32_t>().end()};
}

template <class T>
std::string listed(const std::vector<T>& items) {
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(items.size(), 8); ++i) text += fmt::format("{} ", items[i]);
  return text + (items.size() > 8 ? "..." : "");
}

void check_search(lessons::Checks& checks, const std::string& name, const Tensor& scores, std::int64_t n) {
  checks.attempt(name, [&] {
    const std::vector<Score> first = half(scores, 0), second = half(scores, 1);
    Score::additions = 0;
    const std::vector<std::int32_t> got = top_slots(first, second, n), want = picks_of(scores, n);
    const std::int64_t formed = Score::additions;
    std::string detail =
        fmt::format("n = {} of {} keys: expected slots {}, got {}", n, scores.shape()[1], listed(want), listed(got));
    // Which is the first that differs, and what are its scores?
    for (std::size_t k = 0; k < std::min(got.size(), want.size()); ++k) {
      if (got[k] == want[k]) continue;
      const auto sum = [&](std::int64_t slot) {
        const std::int64_t keys = scores.shape()[1];
        if (slot < 0 || slot >= keys * keys) return std::nan("");
        return scores.data<double>()[slot / keys] + scores.data<double>()[keys + slot % keys];
      };
      detail = fmt::format("n = {} of {} keys: place {} belongs to slot {} with the sum {}, not to slot {} with {}", n,
                           scores.shape()[1], k, want[k], sum(want[k]), got[k], sum(got[k]));
      break;
    }
    checks.that(name, got == want, detail);
    checks.that(name + ": at most n * n sums", formed <= n * n && formed >= n - 1,
                fmt::format("n = {} of {} keys: {} sums were formed", n, scores.shape()[1], formed));
  });
}

// Scores under which the n best slots all use one key of a half.
Tensor one_sided(std::int64_t keys, std::int64_t half_of) {
  Tensor scores({2, keys}, DType::f64);
  for (std::int64_t i = 0; i < keys; ++i) {
    scores.data<double>()[half_of * keys + (i * 3 + 1) % keys] = double(keys - i) / 64;       // close together
    scores.data<double>()[(1 - half_of) * keys + (i * 5 + 2) % keys] = double(keys - i) * 4;  // far apart
  }
  return scores;
}

void check_read(lessons::Checks& checks, const Rng& rng) {
  const RandomBits bits = rng.split(0).bits();
  const std::int64_t keys = 4 + bits.word(0) % 3, width = 2 + bits.word(1) % 3, n = 2 + bits.word(2) % (keys - 1);
  const Tensor scores = uniform(rng.split(1), {2, keys}, -2, 2, DType::f64),
               table = uniform(rng.split(2), {keys * keys, width}, -1, 1, DType::f64),
               dy = uniform(rng.split(3), {width}, -1, 1, DType::f64);
  const Tape tape = Tape::record();
  const Var scores_leaf = tape.leaf(scores), table_leaf = tape.leaf(table);
  const ProductKeys found = library(scores_leaf, n);
  const Var y = embedding_bag(table_leaf, softmax(found.scores), found.picks);
  const Gradients gradients = tape.backward(y, dy.reshape({1, width}));
  const std::vector<std::int32_t> picks = picks_of(scores, n);
  const Tensor sums = found.scores.value.reshape({n});
  checks.attempt("read", [&] { checks.near("read", read(table, picks, sums), y.value.reshape({width})); });
  checks.attempt("read of large scores", [&] {
    const Tensor large = scale(sums, 1000).value;
    checks.near("read of large scores", read(table, picks, large),
                embedding_bag(table, softmax(Var(large.reshape({1, n}))), found.picks).value.reshape({width}));
  });
  checks.attempt("read_backward", [&] {
    const ReadGradients d = read_backward(table, picks, sums, dy, keys);
    checks.near("read_backward: gradient of the two score lists", d.scores, gradients.of(scores_leaf));
    checks.near("read_backward: gradient of the table", d.table, gradients.of(table_leaf));
  });

  // The sums of the picked slots, from the two lists.
  const auto sums_at = [&](const Tensor& at) {
    Tensor result({n}, DType::f64);
    for (std::int64_t k = 0; k < n; ++k)
      result.data<double>()[k] =
          at.data<double>()[picks[std::size_t(k)] / keys] + at.data<double>()[keys + picks[std::size_t(k)] % keys];
    return result;
  };
  const GradientProblem own = lessons::problem_of(
      {"scores", "table"}, {scores, table}, [&](const Tensors& at) { return read(at[1], picks, sums_at(at[0])); },
      [&](const Tensors& at, const Tensor& d) {
        const ReadGradients flows = read_backward(at[1], picks, sums_at(at[0]), d, keys);
        return Tensors{flows.scores, flows.table};
      });
  checks.gradients("your gradient against differences of your read", own, rng.split(4));
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    const RandomBits bits = rng.split(0).bits();
    const auto some = [&](std::uint64_t i, std::int64_t low, std::int64_t high) {
      return low + std::int64_t(bits.word(i)) % (high - low + 1);
    };
    check_search(checks, "top_slots", draw_scores(rng.split(1), 40, 1 << 20), some(0, 3, 9));
    check_search(checks, "top_slots among many equal sums", draw_scores(rng.split(2), 30, 4), some(1, 5, 12));
    check_search(checks, "top_slots: a single one", draw_scores(rng.split(3), 17, 4), 1);
    check_search(checks, "top_slots: as many as there are keys", draw_scores(rng.split(4), 7, 8), 7);
    check_search(checks, "top_slots: all scores equal", Tensor::zeros({2, 9}, DType::f64), some(2, 2, 9));
    check_search(checks, "top_slots: all with one key of the second half", one_sided(16, 0), some(3, 4, 15));
    check_search(checks, "top_slots: all with one key of the first half", one_sided(16, 1), some(4, 4, 15));
    check_search(checks, "top_slots among 1000 x 1000", draw_scores(rng.split(5), 1000, 1 << 20), 32);
    check_read(checks, rng.split(6));
  }
}

}  // namespace sinkhorn::lesson
