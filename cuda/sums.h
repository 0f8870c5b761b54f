// Sums over one axis, cut into chunks by shape alone: chunks in f32 or better, their sums in f64, in order.
#pragma once
#include "autograd/ops/strided.h"
#include "cuda/elements.h"
#include "cuda/reduce.h"
#include "cuda/runtime.h"

namespace sinkhorn::cuda {

/// The plain term of a sum over x (rows, columns): x itself. A term that has `kPack`, `load` and `has_packs` is read in
/// packs. Each term is taken once, so one that is made for the sum may also be written down.
template <class T>
struct MatrixElement {
  std::int64_t columns;
  Global<const T> x;
  SINKHORN_DEVICE Real<T> operator()(std::int64_t row, std::int64_t column) const { return x[row * columns + column]; }

  static constexpr int kPack = pack_width<T>();
  /// The terms i .. i + kPack - 1 of the flat matrix.
  SINKHORN_DEVICE Pack<Real<T>, kPack> load(std::int64_t i) const { return load_real<kPack>(x, i); }
  bool has_packs() const { return x.template is_aligned<kPack>(); }
};

namespace sums {

struct Chunks {
  std::int64_t before, extent, after, chunk, count;

  SINKHORN_DEVICE std::int64_t end(std::int64_t first) const { return first + chunk < extent ? first + chunk : extent; }
};

template <class Term>
constexpr int pack_of() {
  if constexpr (requires { Term::kPack; }) return Term::kPack;
  return 1;
}

// A sum that is stored, or added to what is there.
template <class T>
struct Into {
  Global<T> y;
  bool adds = false;
  template <class R>
  SINKHORN_DEVICE void operator()(std::int64_t i, R sum) const {
    y[i] = adds ? T(R(T(y[i])) + sum) : T(sum);
  }
};

// For many columns: a block has N columns a lane of one chunk, and a warp every eighth row of it.
template <int N, class R, class Term, class Out>
struct ColumnsOfChunk {
  static constexpr std::int64_t kColumns = N * kWarp;
  static constexpr std::size_t kSharedBytes = kMaxThreads * sizeof(Pack<R, N>);
  static constexpr int kThreads = kMaxThreads, kBlocksOfMultiprocessor = 6;
  Chunks s;
  Term term;
  Into<Out> partial;  // (before, chunks, after)
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const auto warps = t.shared<Pack<R, N>>(t.size());
    const std::int64_t tiles = (s.after + kColumns - 1) / kColumns, group = quotient(t.block(), tiles);
    const std::int64_t column = (t.block() - group * tiles) * kColumns + t.lane() * N;
    const std::int64_t before = quotient(group, s.count), first = (group - before * s.count) * s.chunk;
    Pack<R, N> sum = {};
    if (column < s.after)
      add_rows(sum, before * s.extent + first + t.warp(), before * s.extent + s.end(first), t.warps(), column);
    warps[t.index()] = sum;
    t.sync();
    if (t.warp() > 0 || column >= s.after) return;
    for (int warp = 1; warp < t.warps(); ++warp) add(sum, warps[warp * kWarp + t.lane()]);
    for (int n = 0; n < N; ++n) partial(group * s.after + column + n, sum[n]);
  }
  // Of the rows begin, begin + step, ... before `end`.
  SINKHORN_DEVICE void add_rows(Pack<R, N>& sum, std::int64_t begin, std::int64_t end, int step,
                                std::int64_t column) const {
    if constexpr (N == 1) {
      for (std::int64_t row = begin; row < end; row += step) sum[0] += R(term(row, column));
    } else {
      const std::int64_t further = step * s.after, last = end * s.after;
      for (std::int64_t i = begin * s.after + column; i < last; i += further) add(sum, term.load(i));
    }
  }
  SINKHORN_DEVICE static void add(Pack<R, N>& sum, const Pack<R, N>& terms) {
    for (int n = 0; n < N; ++n) sum[n] += terms[n];
  }
};

// For few columns: one block per column and chunk, which sums in f64; if there is but one column, N neighbours a
// thread.
template <int N, class Term, class Out>
struct ChunkByBlock {
  Chunks s;
  Term term;
  Into<Out> partial;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<double> reduce(t);
    const std::int64_t i = t.block(), group = quotient(i, s.after), column = i - group * s.after;
    const std::int64_t before = quotient(group, s.count), first = (group - before * s.count) * s.chunk;
    const std::int64_t row = before * s.extent, end = s.end(first);
    std::int64_t singles = first;
    double sum = 0;
    if constexpr (N > 1) {
      singles = first + (end - first) / N * N;
      for (std::int64_t k = first + t.index() * N; k < singles; k += t.size() * N) {
        const auto terms = term.load(row + k);
        auto few = terms[0];
        for (int n = 1; n < N; ++n) few += terms[n];
        sum += few;
      }
    }
    for (std::int64_t k = singles + t.index(); k < end; k += t.size()) sum += term(row + k, column);
    sum = reduce.sum(sum);
    if (t.index() == 0) partial(i, sum);
  }
};

// The sums of the chunks in f64. For many columns: a block has eight columns, and shares out the chunks.
template <class R, class T>
struct AddChunks {
  static constexpr int kColumns = 8, kAhead = 8;  // kAhead are read before the first is used
  static constexpr std::size_t kSharedBytes = kMaxThreads * sizeof(double);
  Chunks s;
  Global<const R> partial;
  Into<T> y, second;  // if there is a second, that is where the sums of the latter half of `before` go
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const auto shares = t.shared<double>(t.size());
    const std::int64_t tiles = (s.after + kColumns - 1) / kColumns, before = quotient(t.block(), tiles);
    const std::int64_t column = (t.block() - before * tiles) * kColumns + t.index() % kColumns;
    const int share = t.index() / kColumns, all = t.size() / kColumns;
    double sum = 0;
    if (column < s.after)
      for (std::int64_t c = share; c < s.count; c += kAhead * all) {
        R next[kAhead];
        for (int k = 0; k < kAhead; ++k)
          next[k] = c + k * all < s.count ? R(partial[(before * s.count + c + k * all) * s.after + column]) : R(0);
        for (const R term : next) sum += term;
      }
    shares[t.index()] = sum;
    t.sync();
    if (share > 0 || column >= s.after) return;
    for (int other = 1; other < all; ++other) sum += shares[other * kColumns + t.index()];
    const std::int64_t half = s.before / 2;
    if (second.y && before >= half)
      second((before - half) * s.after + column, sum);
    else
      y(before * s.after + column, sum);
  }
};
template <class R>
struct PartialSum {
  std::int64_t after;
  Global<const R> partial;
  SINKHORN_DEVICE double operator()(std::int64_t row, std::int64_t column) const {
    return partial[row * after + column];
  }
};

inline constexpr std::int64_t kFewColumns = 32;

/// y (before, after) = the sums of partial (before, count, after) over `count`, or has them added.
template <class R, class T>
void add_chunks(std::string_view op, const Chunks& s, const R* partial, const Into<T>& y) {
  if (s.after < kFewColumns) {
    const Chunks one{s.before, s.count, s.after, s.count, 1};
    return launch(op, s.before * s.after, threads_for(s.count), reducer_bytes<double>(),
                  ChunkByBlock<1, PartialSum<R>, T>{one, {s.after, partial}, y});
  }
  using Kernel = AddChunks<R, T>;
  launch(op, s.before * pieces(s.after, Kernel::kColumns), threads_for(Kernel::kColumns * s.count),
         Kernel::kSharedBytes, Kernel{s, partial, y, {nullptr}});
}

/// y and second (before, after) = the sums over `count` of the two halves of partial (2, before, count, after), or have
/// them added.
template <class R, class T>
void add_chunks_of_two(std::string_view op, std::int64_t before, std::int64_t count, std::int64_t after,
                       const R* partial, const Into<T>& y, const Into<T>& second) {
  using Kernel = AddChunks<R, T>;
  launch(op, 2 * before * pieces(after, Kernel::kColumns), threads_for(Kernel::kColumns * count), Kernel::kSharedBytes,
         Kernel{{2 * before, count, after, 1, count}, partial, y, second});
}

}  // namespace sums

/// y (before, after) = the sums over k of term(before * extent + k, column); added to y, if `adds`.
template <class R, class Term, class T>
void sum_axis(std::string_view op, const Around& shape, const Term& term, T* y, bool adds = false) {
  constexpr int kPack = sums::pack_of<Term>();
  // As many blocks as run at once on a large GPU, and no more: one that starts late is waited for alone, and the sum of
  // each chunk is written, read and added up.
  constexpr std::int64_t kEnoughBlocks = 768;
  const bool by_block = shape.after < sums::kFewColumns;
  const std::int64_t columns = by_block ? shape.after : pieces(shape.after, kPack * kWarp);
  const std::int64_t most =
      std::max<std::int64_t>(16, kEnoughBlocks / std::max<std::int64_t>(shape.before * columns, 1));
  const std::int64_t chunk = std::max<std::int64_t>(by_block ? 8192 : 64, pieces(shape.extent, most));
  sums::Chunks s{shape.before, shape.extent, shape.after, pieces(chunk, kPack) * kPack, 0};
  s.count = std::max<std::int64_t>(pieces(s.extent, s.chunk), 1);
  const auto sum_packs = [&]<int N, class Out>(Width<N>, const sums::Into<Out>& partial) {
    using Columns = sums::ColumnsOfChunk<N, R, Term, Out>;
    if (by_block)
      launch(op, s.before * s.count * s.after, threads_for(std::min(s.chunk, s.extent)), reducer_bytes<double>(),
             sums::ChunkByBlock<N, Term, Out>{s, term, partial});
    else
      launch(op, s.before * s.count * pieces(s.after, Columns::kColumns),
             threads_for(kWarp * std::min(s.chunk, s.extent)), Columns::kSharedBytes, Columns{s, term, partial});
  };
  const auto sum_chunks = [&]<class Out>(const sums::Into<Out>& partial) {
    if constexpr (kPack > 1) {
      const bool begins_aligned =
          by_block ? s.after == 1 && (s.before == 1 || s.extent % kPack == 0) : s.after % kPack == 0;
      if (begins_aligned && term.has_packs()) return sum_packs(Width<kPack>{}, partial);
    }
    sum_packs(Width<1>{}, partial);
  };
  if (s.count == 1) return sum_chunks(sums::Into<T>{y, adds});
  const auto in_chunks = [&]<class P>(P) {
    const Tensor partial = workspace({s.before, s.count, s.after}, dtype_of<P>);
    sum_chunks(sums::Into<P>{partial.data<P>()});
    sums::add_chunks<P>(op, s, partial.data<P>(), sums::Into<T>{y, adds});
  };
  if (by_block) return in_chunks(double{});
  in_chunks(R{});
}

}  // namespace sinkhorn::cuda
