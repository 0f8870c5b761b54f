#include <algorithm>

#include "nn/composed_attention.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/14_sort_cut/exercise.h"

namespace sinkhorn::lesson {
namespace {

struct Problem {
  std::string name;
  std::int64_t length, width, bucket, key_bucket, kept;

  std::int64_t rows() const { return length / bucket; }
  std::int64_t sources() const { return length / key_bucket; }
  std::int64_t blocks() const { return std::min(kept, rows()); }
};

// Neither its rows nor its columns add up to 1.
Tensor sorting(const Problem& p, const Rng& rng) { return uniform(rng, {p.rows(), p.sources()}, 0.05, 1, DType::f64); }

Var library_blocks(const Var& matrix, const Var& x, const Problem& p) {
  const Var buckets = reshape(x, {p.sources(), p.key_bucket * p.width});
  return reshape(matmul(slice(matrix, 0, 0, p.blocks()), buckets), {p.blocks() * p.key_bucket, p.width});
}

// One head of the library's blended attention, the rows of the matrix shared by all queries.
Tensor library_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& matrix, const Problem& p) {
  const Shape one{1, p.length, 1, 1, p.width};
  const Var kv = concat({k.reshape(one), v.reshape(one)}, 2);
  const Var rows = slice(matrix.reshape({1, 1, p.rows(), p.sources()}), 2, 0, p.blocks());
  const AttentionPattern pattern{p.bucket, p.key_bucket, 0, false, true};
  return blended_attention(q.reshape({1, p.length, 1, p.width}), kv, rows, true, pattern)
      .value.reshape({p.length, p.width});
}

void check_one(lessons::Checks& checks, const Problem& p, const Rng& rng) {
  const Shape shape{p.length, p.width};
  const Tensor q = uniform(rng.split(0), shape, -2, 2, DType::f64), k = uniform(rng.split(1), shape, -2, 2, DType::f64),
               v = uniform(rng.split(2), shape, -2, 2, DType::f64), matrix = sorting(p, rng.split(3)),
               dblocks = uniform(rng.split(4), {p.blocks() * p.key_bucket, p.width}, -1, 1, DType::f64);
  const Tape tape = Tape::record();
  const Var leaf_matrix = tape.leaf(matrix), leaf_k = tape.leaf(k);
  const Var blocks = library_blocks(leaf_matrix, leaf_k, p);
  const Gradients flow = tape.backward(blocks, dblocks);
  checks.attempt("sorted_blocks, " + p.name, [&] {
    checks.near("sorted_blocks, " + p.name, sorted_blocks(matrix, k, p.key_bucket, p.kept), blocks.value);
  });
  checks.attempt("sorted_blocks_backward, " + p.name, [&] {
    const BlocksGradients own = sorted_blocks_backward(matrix, k, p.key_bucket, p.kept, dblocks);
    checks.near("dmatrix, " + p.name, own.dmatrix, flow.of(leaf_matrix));
    checks.near("dx, " + p.name, own.dx, flow.of(leaf_k));
  });
  checks.attempt("sort_cut_attention, " + p.name, [&] {
    checks.near("sort_cut_attention, " + p.name, sort_cut_attention(q, k, v, matrix, p.bucket, p.key_bucket, p.kept),
                library_attention(q, k, v, matrix, p));
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  const std::vector<Problem> problems{
      {"1 of 4 blocks", 12, 2, 3, 3, 1},           {"2 of 4 blocks", 8, 3, 2, 2, 2},
      {"smaller key buckets", 12, 2, 4, 2, 2},     {"larger key buckets", 12, 3, 2, 4, 2},
      {"more kept than there are", 6, 2, 2, 2, 9}, {"one bucket", 4, 2, 4, 4, 1},
  };
  for (const Rng& rng : checks.rounds()) {
    for (std::uint32_t i = 0; i < problems.size(); ++i) check_one(checks, problems[i], rng.split(i));
    const Problem p{"", 6, 2, 2, 2, 2};
    const GradientProblem own = lessons::problem_of(
        {"matrix", "x"}, {sorting(p, rng.split(20)), uniform(rng.split(21), {6, 2}, -1, 1, DType::f64)},
        [](const Tensors& at) { return sorted_blocks(at[0], at[1], 2, 2); },
        [](const Tensors& at, const Tensor& dblocks) {
          const BlocksGradients flow = sorted_blocks_backward(at[0], at[1], 2, 2, dblocks);
          return Tensors{flow.dmatrix, flow.dx};
        });
    checks.gradients("your gradients of the blocks against differences", own, rng.split(22));
  }
}

}  // namespace sinkhorn::lesson
