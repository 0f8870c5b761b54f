#include "autograd/ops.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/10_buckets/exercise.h"

namespace sinkhorn::lesson {
namespace {

// By the library's own ops: zeros around, then each bucket beside those before and after it.
Tensor library_neighbours(const Tensor& x, std::int64_t bucket, bool causal) {
  const std::int64_t buckets = x.shape()[0] / bucket;
  const Var rows = x.reshape({buckets, bucket, x.shape()[1]}), around = pad(rows, 0, 1, 1);
  std::vector<Var> parts{slice(around, 0, 0, buckets), rows};
  if (!causal) parts.push_back(slice(around, 0, 2, buckets + 2));
  return concat(parts, 1).value;
}

// One local head of the library's attention: q, k, v (T, d).
Tensor library_attention(const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t bucket, bool causal) {
  const std::int64_t length = q.shape()[0], width = q.shape()[1], buckets = length / bucket;
  const Shape one{1, length, 1, 1, width};
  const Var kv = concat({k.reshape(one), v.reshape(one)}, 2);
  const Routing routing{Tensor::zeros({1, 0, buckets, 1}, DType::f64), Tensor::zeros({1, 0, buckets, 1}, DType::i32)};
  const Tensor none = Tensor::zeros({0, 1, width}, DType::f64);
  const NullBlock null = causal ? NullBlock{none, none} : NullBlock{};
  const Var y = bucketed_attention(q.reshape({1, length, 1, width}), kv, routing, null, {bucket, bucket, 1, causal});
  return y.value.reshape({length, width});
}

// What the library's head can see, read off its answer: with queries of 0 all that is seen gets an equal share, and
// with the identity as values the answers are the shares. As bool (N, b, J).
Tensor library_visible(std::int64_t length, std::int64_t bucket, bool causal) {
  const Tensor zero = Tensor::zeros({length, length}, DType::f64), identity = zero.clone();
  for (std::int64_t t = 0; t < length; ++t) identity.data<double>()[t * length + t] = 1;
  const Tensor shares = library_attention(zero, zero, identity, bucket, causal);
  const std::int64_t slots = (causal ? 2 : 3) * bucket;
  Tensor seen({length / bucket, bucket, slots}, DType::boolean);
  for (std::int64_t i = 0; i < seen.count(); ++i) {
    const std::int64_t query = i / slots, key = (query / bucket - 1) * bucket + i % slots;
    seen.data<bool>()[i] = key >= 0 && key < length && shares.data<double>()[query * length + key] > 0;
  }
  return seen;
}

struct Problem {
  std::string name;
  std::int64_t length, bucket, width;
  bool causal;
};

void check_one(lessons::Checks& checks, const Problem& p, const Rng& rng) {
  const Shape shape{p.length, p.width};
  const Tensor q = uniform(rng.split(0), shape, -2, 2, DType::f64), k = uniform(rng.split(1), shape, -2, 2, DType::f64),
               v = uniform(rng.split(2), shape, -2, 2, DType::f64);
  checks.attempt("neighbours, " + p.name, [&] {
    checks.near("neighbours, " + p.name, neighbours(k, p.bucket, p.causal), library_neighbours(k, p.bucket, p.causal));
  });
  checks.attempt("visible, " + p.name, [&] {
    checks.near("visible, " + p.name, visible(p.length, p.bucket, p.causal),
                library_visible(p.length, p.bucket, p.causal));
  });
  checks.attempt("local_attention, " + p.name, [&] {
    checks.near("local_attention, " + p.name, local_attention(q, k, v, p.bucket, p.causal),
                library_attention(q, k, v, p.bucket, p.causal));
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  const std::vector<Problem> problems{
      {"4 buckets of 3, causal", 12, 3, 2, true}, {"4 buckets of 3, both ways", 12, 3, 2, false},
      {"5 buckets of 2, causal", 10, 2, 5, true}, {"2 buckets of 5, both ways", 10, 5, 3, false},
      {"one bucket of 4, causal", 4, 4, 3, true}, {"one bucket of 4, both ways", 4, 4, 3, false},
      {"6 buckets of 1, causal", 6, 1, 2, true},
  };
  for (const Rng& rng : checks.rounds())
    for (std::uint32_t i = 0; i < problems.size(); ++i) check_one(checks, problems[i], rng.split(i));
}

}  // namespace sinkhorn::lesson
