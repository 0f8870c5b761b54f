#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "autograd/ops.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/18_chunking/exercise.h"

namespace sinkhorn::lesson {
namespace {

constexpr double kNothing = -std::numeric_limits<double>::infinity();

// One block of queries and all of its keys.
struct Problem {
  Tensor q, keys, values, allowed;  // (b, d), (m, d), (m, e), bool (b, m)

  Problem(std::int64_t queries, std::int64_t count, std::int64_t d, std::int64_t width, const Rng& rng)
      : q(uniform(rng.split(0), {queries, d}, -2, 2, DType::f64)),
        keys(uniform(rng.split(1), {count, d}, -2, 2, DType::f64)),
        values(uniform(rng.split(2), {count, width}, -1, 3, DType::f64)),
        allowed(Tensor::full({queries, count}, 1, DType::boolean)) {}

  Tensor scores() const { return scale(matmul(q, keys, false, true), 1 / std::sqrt(double(q.shape()[1]))).value; }
  Tensor output() const { return matmul(softmax(scores(), allowed), values).value; }
  Tensor log_sum_exp() const {
    const Tensor result = sinkhorn::log_sum_exp(scores(), allowed).value;
    return result.reshape({q.shape()[0]});
  }
  // The largest score of an allowed key, -inf where there is none.
  Tensor largest() const {
    const Tensor all = scores();
    Tensor result = Tensor::full({q.shape()[0]}, kNothing, DType::f64);
    for (std::int64_t i = 0; i < all.count(); ++i) {
      double& of_query = result.data<double>()[i / keys.shape()[0]];
      if (allowed.data<bool>()[i]) of_query = std::max(of_query, all.data<double>()[i]);
    }
    return result;
  }
  // Closes keys begin .. end-1 to one query.
  void close(std::int64_t query, std::int64_t begin, std::int64_t end) const {
    for (std::int64_t j = begin; j < end; ++j) allowed.data<bool>()[query * keys.shape()[0] + j] = false;
  }
  // The same queries with the keys begin .. end-1 alone.
  Problem part(std::int64_t begin, std::int64_t end) const {
    Problem other = *this;
    other.keys = keys.slice(begin, end);
    other.values = values.slice(begin, end);
    other.allowed = slice(Var(allowed), 1, begin, end).value;
    return other;
  }
};

// Bytes that the program holds just now, in whatever containers.
std::size_t bytes_held() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

// Hands out the keys of a problem in the chunks between `cuts`. Every chunk but the newest is overwritten with NaN.
class Source {
 public:
  Source(const Problem& problem, std::vector<std::int64_t> cuts) : problem_(problem), cuts_(std::move(cuts)) {
    held_.reserve(cuts_.size() + 1);
    chunks_.reserve(cuts_.size());
    for (std::size_t c = 0; c + 1 < cuts_.size(); ++c) {
      const Problem part = problem_.part(cuts_[c], cuts_[c + 1]);
      chunks_.push_back({part.keys.clone(), part.values.clone(), part.allowed.clone()});
    }
  }
  NextChunk next() {
    return [this]() -> std::optional<Chunk> {
      held_.push_back(bytes_held());
      if (given_ > 0) {
        const Chunk& last = chunks_[given_ - 1];
        last.keys.fill(std::nan(""));
        last.values.fill(std::nan(""));
        last.allowed.fill(1);
      }
      if (given_ == chunks_.size()) return std::nullopt;
      return chunks_[given_++];
    };
  }
  std::int64_t given() const { return std::int64_t(given_); }
  // How many bytes more were held when the last chunk was asked for than after the second.
  std::int64_t growth() const { return held_.size() < 3 ? 0 : std::int64_t(held_.back()) - std::int64_t(held_[2]); }

 private:
  const Problem& problem_;
  std::vector<std::int64_t> cuts_;
  std::vector<Chunk> chunks_;
  std::vector<std::size_t> held_;
  std::size_t given_ = 0;
};

std::vector<std::int64_t> cuts_every(std::int64_t count, std::int64_t step) {
  std::vector<std::int64_t> cuts;
  cuts.reserve(std::size_t(count / step + 2));
  for (std::int64_t at = 0; at < count; at += step) cuts.push_back(at);
  cuts.push_back(count);
  return cuts;
}
std::vector<std::int64_t> random_cuts(std::int64_t count, const RandomBits& bits) {
  std::vector<std::int64_t> cuts = {0, count};
  for (std::uint64_t i = 0; i < 4; ++i) cuts.push_back(1 + std::int64_t(bits.word(i)) % (count - 1));
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  return cuts;
}

bool has_shapes(const Partial& p, std::int64_t queries, std::int64_t width) {
  const auto is = [](const Tensor& x, const Shape& shape) {
    return x && x.shape() == shape && x.dtype() == DType::f64;
  };
  return is(p.largest, {queries}) && is(p.sum, {queries}) && is(p.weighted, {queries, width});
}

// The learner's attend() over chunks, compared with the library over all keys at once.
void compare(lessons::Checks& checks, const std::string& name, const Problem& problem,
             const std::vector<std::int64_t>& cuts) {
  checks.attempt(name, [&] {
    Source source(problem, cuts);
    const std::int64_t queries = problem.q.shape()[0], width = problem.values.shape()[1];
    const Partial partial = attend(problem.q, width, source.next());
    checks.equal(name + ": every chunk is asked for", source.given(), std::int64_t(cuts.size()) - 1);
    if (!has_shapes(partial, queries, width))
      return checks.that(name, false, "the partial result must be f64: largest (b), sum (b), weighted (b, e)");
    checks.near(name + ": output", output(partial), problem.output());
    checks.near(name + ": log-sum-exp", log_sum_exp(partial), problem.log_sum_exp());
    checks.near(name + ": largest score", partial.largest, problem.largest());
  });
}

// What the library makes of some keys, as a partial result.
Partial partial_of(const Problem& problem) {
  const std::int64_t queries = problem.q.shape()[0], width = problem.values.shape()[1];
  Partial p{problem.largest(), Tensor::zeros({queries}, DType::f64), problem.output().clone()};
  const Tensor total = problem.log_sum_exp();
  for (std::int64_t i = 0; i < queries; ++i) {
    const double largest = p.largest.data<double>()[i];
    const double sum = largest == kNothing ? 0 : std::exp(total.data<double>()[i] - largest);
    p.sum.data<double>()[i] = sum;
    for (std::int64_t e = i * width; e < (i + 1) * width; ++e) p.weighted.data<double>()[e] *= sum;
  }
  return p;
}

void check_merge(lessons::Checks& checks, const Problem& problem) {
  const std::int64_t count = problem.keys.shape()[0], queries = problem.q.shape()[0], width = problem.values.shape()[1];
  const Partial a = partial_of(problem.part(0, count / 4)), b = partial_of(problem.part(count / 4, count / 2)),
                c = partial_of(problem.part(count / 2, count));
  const Partial none{Tensor::full({queries}, kNothing, DType::f64), Tensor::zeros({queries}, DType::f64),
                     Tensor::zeros({queries, width}, DType::f64)};
  const auto compare_merged = [&](const std::string& name, const Problem& whole, const auto& merged) {
    checks.attempt(name, [&] {
      const Partial got = merged();
      if (!has_shapes(got, queries, width))
        return checks.that(name, false, "the merged result must be f64: largest (b), sum (b), weighted (b, e)");
      const Partial want = partial_of(whole);
      checks.near(name + ": largest", got.largest, want.largest);
      checks.near(name + ": sum", got.sum, want.sum);
      checks.near(name + ": weighted", got.weighted, want.weighted);
    });
  };
  compare_merged("merge of two partial results", problem.part(0, count / 2), [&] { return merge(a, b); });
  compare_merged("merge the other way round", problem.part(0, count / 2), [&] { return merge(b, a); });
  compare_merged("merge of three", problem, [&] { return merge(merge(a, b), c); });
  compare_merged("merge of three in another order", problem, [&] { return merge(c, merge(b, a)); });
  compare_merged("merge with nothing", problem.part(0, count / 4), [&] { return merge(merge(none, a), none); });
  compare_merged("merge of your own halves", problem, [&] {
    const Problem front = problem.part(0, count / 3), back = problem.part(count / 3, count);
    Source of_front(front, cuts_every(count / 3, 4)), of_back(back, cuts_every(count - count / 3, 3));
    return merge(attend(problem.q, width, of_front.next()), attend(problem.q, width, of_back.next()));
  });
}

void check_memory(lessons::Checks& checks, const Rng& rng) {
  const std::string name = "200 chunks need no more memory than 2";
  checks.attempt(name, [&] {
    const Problem problem(4, 3200, 8, 8, rng);
    Source source(problem, cuts_every(3200, 16));
    const Partial partial = attend(problem.q, 8, source.next());
    if (source.given() != 200 || !has_shapes(partial, 4, 8))
      return checks.that(name, false, "all 200 chunks must be asked for");
    // All scores would be 100 kB, all values 200.
    checks.that(name, source.growth() < 16384,
                fmt::format("{} bytes more were held after 200 chunks than after 2", source.growth()));
    checks.near("200 chunks: output", output(partial), problem.output());
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    const RandomBits bits = rng.split(0).bits();
    const std::int64_t queries = 3 + bits.word(0) % 3, count = 20 + bits.word(1) % 9, d = 3 + bits.word(2) % 3,
                       width = 2 + bits.word(3) % 3;
    const Problem open(queries, count, d, width, rng.split(1));
    compare(checks, "one chunk", open, {0, count});
    compare(checks, "chunks of 7", open, cuts_every(count, 7));
    compare(checks, "chunks of 1", open, cuts_every(count, 1));
    compare(checks, "chunks of random lengths", open, random_cuts(count, rng.split(2).bits()));

    Problem large = open;
    large.q = scale(open.q, 600).value;
    compare(checks, "scores in the thousands", large, cuts_every(count, 4));

    Problem masked(queries, count, d, width, rng.split(3));
    for (std::int64_t i = 0; i < queries; ++i)
      for (std::int64_t j = 0; j < count; ++j)
        if (bits.word(std::uint64_t(100 + i * count + j)) % 3 == 0) masked.close(i, j, j + 1);
    compare(checks, "some keys not allowed", masked, cuts_every(count, 5));
    masked.close(0, 0, 11);
    compare(checks, "a query whose first chunks are not allowed", masked, cuts_every(count, 5));
    masked.close(1, 0, count);
    compare(checks, "a query that may see no key", masked, cuts_every(count, 5));
    for (std::int64_t k = 0; k < d; ++k) masked.keys.data<double>()[3 * d + k] = 1e4;
    for (std::int64_t i = 0; i < queries; ++i) masked.close(i, 3, 4);
    compare(checks, "an enormous key that nobody may see", masked, cuts_every(count, 5));
    compare(checks, "no chunk at all", open.part(0, 0), {0});

    check_merge(checks, open);
    check_merge(checks, masked);
    check_memory(checks, rng.split(4));
  }
}

}  // namespace sinkhorn::lesson
