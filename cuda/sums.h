// Sums over one axis, cut into chunks by shape alone: chunks in f32 or better, their sums in f64, in order.
#pragma once
#include "autograd/ops/strided.h"
#include "cuda/reduce.h"
#include "cuda/runtime.h"

namespace sinkhorn::cuda {
namespace sums {

struct Chunks {
  std::int64_t before, extent, after, chunk, count;
};

// One thread per column and chunk: neighbours read neighbours.
template <class R, class Term, class Out>
struct ColumnsOfChunk {
  Chunks s;
  Term term;
  Global<Out> partial;  // (before, chunks, after)
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t column = i % s.after, chunk = i / s.after % s.count, before = i / s.after / s.count;
    const std::int64_t first = chunk * s.chunk, end = first + s.chunk < s.extent ? first + s.chunk : s.extent;
    R sum = 0;
    for (std::int64_t k = first; k < end; ++k) sum += term(before * s.extent + k, column);
    partial[i] = sum;
  }
};

// One block per column and chunk, for few columns.
template <class R, class Term, class Out>
struct ChunkByBlock {
  Chunks s;
  Term term;
  Global<Out> partial;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const std::int64_t i = t.block(), column = i % s.after, chunk = i / s.after % s.count,
                       before = i / s.after / s.count;
    const std::int64_t first = chunk * s.chunk, end = first + s.chunk < s.extent ? first + s.chunk : s.extent;
    R sum = 0;
    for (std::int64_t k = first + t.index(); k < end; k += t.size()) sum += term(before * s.extent + k, column);
    sum = reduce.sum(sum);
    if (t.index() == 0) partial[i] = sum;
  }
};

template <class R, class T>
struct AddChunks {
  Chunks s;
  Global<const R> partial;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    double sum = 0;
    for (std::int64_t c = 0; c < s.count; ++c) sum += partial[(i / s.after * s.count + c) * s.after + i % s.after];
    y[i] = T(R(sum));
  }
};

}  // namespace sums

/// y (before, after) = the sums over k of term(before * extent + k, column).
template <class R, class Term, class T>
void sum_axis(std::string_view op, const Around& shape, const Term& term, T* y) {
  constexpr std::int64_t kFew = 32, kMostChunks = 256;
  const bool by_block = shape.after < kFew;
  const std::int64_t least = by_block ? 8192 : 32;
  sums::Chunks s{shape.before, shape.extent, shape.after, std::max(least, pieces(shape.extent, kMostChunks)), 0};
  s.count = std::max<std::int64_t>(pieces(s.extent, s.chunk), 1);
  const auto sum_chunks = [&]<class Out>(Out* partial) {
    const std::int64_t tasks = s.before * s.count * s.after;
    if (by_block)
      launch(op, tasks, threads_for(std::min(s.chunk, s.extent)), reducer_bytes<R>(),
             sums::ChunkByBlock<R, Term, Out>{s, term, partial});
    else
      for_each(op, tasks, sums::ColumnsOfChunk<R, Term, Out>{s, term, partial});
  };
  if (s.count == 1) return sum_chunks(y);
  const Tensor partial = workspace({s.before, s.count, s.after}, dtype_of<R>);
  sum_chunks(partial.data<R>());
  for_each(op, s.before * s.after, sums::AddChunks<R, T>{s, partial.data<R>(), y});
}

}  // namespace sinkhorn::cuda
