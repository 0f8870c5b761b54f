// Wrong: a bucket may choose itself, so its first tokens see its last ones.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "notebooks/lessons/15_causality/exercise.h"

namespace sinkhorn::lesson {
namespace {

using Row = std::vector<double>;  // d numbers
using Rows = std::vector<Row>;    // one row a token

double dot(const Row& a, const Row& b) {
  double sum = 0;
  for (std::size_t e = 0; e < a.size(); ++e) sum += a[e] * b[e];
  return sum;
}

void add(Row& sum, double factor, const Row& x) {
  for (std::size_t e = 0; e < x.size(); ++e) sum[e] += factor * x[e];
}

// Row `at` of a tensor whose last axis is d wide.
Row row_of(const Tensor& x, std::int64_t at) {
  const std::int64_t d = x.shape()[-1];
  const auto from = x.span<double>().subspan(std::size_t(at * d), std::size_t(d));
  return {from.begin(), from.end()};
}

// Slot r holds what stood at (r + shift) mod T.
Rows rotated(const Rows& x, std::int64_t shift) {
  Rows result = x;
  std::rotate(result.begin(), result.begin() + shift, result.end());
  return result;
}

// Row t: the mean of rows 0 .. t.
Rows running_means(const Rows& x) {
  Rows means;
  means.reserve(x.size());
  Row sum(x[0].size(), 0);
  for (const Row& row : x) {
    add(sum, 1, row);
    Row mean = sum;
    for (double& value : mean) value /= double(means.size() + 1);
    means.push_back(mean);
  }
  return means;
}

// What each bucket asks with: the running mean of the queries at its first slot.
Rows questions_of(const Rows& q, std::int64_t b) {
  const Rows means = running_means(q);
  Rows questions;
  for (std::size_t slot = 0; slot < q.size(); slot += std::size_t(b)) questions.push_back(means[slot]);
  return questions;
}

// What each bucket is known by: the sum over its slots of the running mean of the keys.
Rows labels_of(const Rows& k, std::int64_t b) {
  const Rows means = running_means(k);
  Rows labels(k.size() / std::size_t(b), Row(k[0].size(), 0));
  for (std::size_t slot = 0; slot < k.size(); ++slot) add(labels[slot / std::size_t(b)], 1, means[slot]);
  return labels;
}

// Bucket -1 is the null block.
struct Choice {
  std::int64_t bucket;
  double weight;
};

// The choice of bucket u: the largest score, weighted by its share of the softmax. Column 0 is the null block, whose
// score is 0; column 1 + j is bucket j.
Choice choose(const Row& question, const Rows& labels, std::int64_t u, double temperature) {
  const double scale = std::sqrt(double(question.size())) * temperature;
  Row scores{0};
  for (std::int64_t j = 0; j <= u; ++j) scores.push_back(dot(question, labels[std::size_t(j)]) / scale);
  const auto best = std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double score : scores) sum += std::exp(score - *best);
  return {best - scores.begin() - 1, 1 / sum};
}

// Whether the query in slot i of a bucket sees column j: columns 0 .. b-1 are the chosen block, b .. 2b-1 its own
// bucket. `wrapped`: this is the last bucket of a rotated head, which holds the tokens T-1, 0, 1, ..., b-2.
bool sees(std::int64_t i, std::int64_t j, std::int64_t b, bool wrapped) {
  if (wrapped && i > 0) return j > b && j - b <= i;
  return j < b || j - b <= i;
}

// One head whose rows stand in the order in which it sees them.
Rows attend(const Rows& q, const Rows& k, const Rows& v, const Row& null_key, const Row& null_value, std::int64_t b,
            double temperature, bool is_rotated) {
  const double scale = std::sqrt(double(null_key.size()));
  const std::int64_t buckets = std::int64_t(q.size()) / b;
  const Rows questions = questions_of(q, b), labels = labels_of(k, b);
  Rows y;
  y.reserve(q.size());
  for (std::int64_t u = 0; u < buckets; ++u) {
    const Choice choice = choose(questions[std::size_t(u)], labels, u, temperature);
    const bool wrapped = is_rotated && u == buckets - 1;
    for (std::int64_t i = 0; i < b; ++i) {
      const Row& query = q[std::size_t(u * b + i)];
      const auto row_in = [&](const Rows& x, const Row& null, std::int64_t j) -> const Row& {
        if (j >= b) return x[std::size_t(u * b + j - b)];
        return choice.bucket < 0 ? null : x[std::size_t(choice.bucket * b + j)];
      };
      const auto weight = [&](std::int64_t j) { return j < b ? choice.weight : 1.0; };
      const auto score = [&](std::int64_t j) { return weight(j) * dot(query, row_in(k, null_key, j)) / scale; };

      double largest = -std::numeric_limits<double>::infinity();
      for (std::int64_t j = 0; j < 2 * b; ++j)
        if (sees(i, j, b, wrapped)) largest = std::max(largest, score(j));
      double sum = 0;
      Row out(query.size(), 0);
      for (std::int64_t j = 0; j < 2 * b; ++j) {
        if (!sees(i, j, b, wrapped)) continue;
        const double exponential = std::exp(score(j) - largest);
        sum += exponential;
        add(out, exponential * weight(j), row_in(v, null_value, j));
      }
      for (double& value : out) value /= sum;
      y.push_back(out);
    }
  }
  return y;
}

}  // namespace

Tensor causal_attention(const Layer& layer) {
  const std::int64_t heads = layer.q.shape()[0], length = layer.q.shape()[1], width = layer.q.shape()[2];
  Tensor y = layer.q.like();
  for (std::int64_t head = 0; head < heads; ++head) {
    const bool is_rotated = head >= heads / 2;
    const std::int64_t shift = is_rotated ? layer.bucket - 1 : 0;
    const auto in_order = [&](const Tensor& x) {
      Rows rows;
      rows.reserve(std::size_t(length));
      for (std::int64_t t = 0; t < length; ++t) rows.push_back(row_of(x, head * length + t));
      return rotated(rows, shift);
    };
    const Rows seen = attend(in_order(layer.q), in_order(layer.k), in_order(layer.v), row_of(layer.null_key, head),
                             row_of(layer.null_value, head), layer.bucket, layer.temperature, is_rotated);
    const Rows out = rotated(seen, (length - shift) % length);
    for (std::int64_t t = 0; t < length; ++t)
      std::copy(out[std::size_t(t)].begin(), out[std::size_t(t)].end(),
                y.span<double>().begin() + (head * length + t) * width);
  }
  return y;
}

}  // namespace sinkhorn::lesson
