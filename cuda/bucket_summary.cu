#include <map>
#include <mutex>
#include <tuple>

#include "autograd/ops/bucket_summary.h"
#include "autograd/pool.h"
#include "cuda/elements.h"
#include "cuda/runtime.h"
#include "cuda/scan.h"
#include "cuda/sums.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// Every summary of a bucket is a weighted sum: y = W S + sum_s w_s x_s over its real tokens, where S is the sum of the
// real tokens in the buckets before. The weights follow from the mask alone, and W is the weight of the bucket's first
// slot (0 where a summary looks at its own bucket only). So
//   dx_s = F + w_s dy,  F = the sum of W dy over the buckets behind.
// With c_t real tokens up to slot t, share(c) = 1 / max(1, c):
//   mean_at_first   w = share(c_first) at the first slot, else 0
//   sum_of_means    w_s = sum of share(c_t) over the bucket's real t >= s
//   value_at_first  w = 1 at the first slot, else 0
//   mean, sum       w = share(the bucket's own count), w = 1

SINKHORN_HD bool runs_from_start(Summary kind) {
  return kind == Summary::mean_at_first || kind == Summary::sum_of_means;
}

// Where tokens are: an item is (sequence, sorting head), a slot a place in the sequence as its head sees it.
struct Tokens {
  SummaryShape s;
  Global<const bool> mask;

  SINKHORN_DEVICE std::int64_t buckets() const { return s.length / s.bucket; }
  SINKHORN_DEVICE std::int64_t token(std::int64_t sequence, bool rotated, std::int64_t slot) const {
    const std::int64_t at = slot + (rotated ? s.bucket - 1 : 0);
    return sequence * s.length + (at < s.length ? at : at - s.length);
  }
  // The heads of a sequence see its mask in at most two ways, its views; without a mask all see the same.
  SINKHORN_DEVICE bool is_real_in_view(std::int64_t view, std::int64_t slot) const {
    return !mask || mask[token(view / 2, view % 2 != 0, slot)];
  }
};

// One sorting head of one sequence.
struct Head {
  SINKHORN_DEVICE Head(const Tokens& tokens, std::int64_t item) : tokens(tokens) {
    const std::int64_t sorting = tokens.s.heads - tokens.s.local;
    sequence = quotient(item, sorting);
    own = item - sequence * sorting;
    rotated = tokens.s.rotates && own >= sorting / 2;
    weights = tokens.mask ? (2 * sequence + rotated) * tokens.s.length : 0;
  }
  SINKHORN_DEVICE bool is_real(std::int64_t slot) const {
    return !tokens.mask || tokens.mask[tokens.token(sequence, rotated, slot)];
  }
  // Where the token's elements begin.
  SINKHORN_DEVICE std::int64_t place(std::int64_t slot) const {
    const SummaryShape& s = tokens.s;
    return ((tokens.token(sequence, rotated, slot) * s.parts + s.part) * s.heads + s.local + own) * s.width;
  }
  const Tokens& tokens;
  std::int64_t sequence, own, weights;  // where the weights of its view begin
  bool rotated;
};

struct CountBucket {
  Tokens tokens;
  Global<std::int32_t> counts;  // (views, buckets)
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t view = quotient(i, tokens.buckets()), first = (i - view * tokens.buckets()) * tokens.s.bucket;
    std::int32_t count = 0;
    for (std::int64_t slot = first; slot < first + tokens.s.bucket; ++slot) count += tokens.is_real_in_view(view, slot);
    counts[i] = count;
  }
};

// The weight of each slot; for sum_of_means the terms of which WeightBehind makes weights.
struct WeightOfSlot {
  Summary kind;
  Tokens tokens;
  Global<const std::int32_t> before;  // (views, buckets): real tokens in the buckets before; null: all are real
  Global<double> weights;             // (views, length)
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t size = tokens.s.bucket, bucket = quotient(i, size), view = quotient(bucket, tokens.buckets());
    const std::int64_t own = i - view * tokens.s.length, first = own - (i - bucket * size);
    const std::int64_t end = kind == Summary::mean ? first + size : own + 1;
    std::int64_t count = !runs_from_start(kind) ? 0 : before ? std::int64_t(before[bucket]) : first;
    if (tokens.mask)
      for (std::int64_t slot = first; slot < end; ++slot) count += tokens.is_real_in_view(view, slot);
    else
      count += end - first;
    const double share = 1.0 / double(count > 1 ? count : 1);
    switch (kind) {
      case Summary::mean_at_first:
        weights[i] = own == first ? share : 0.0;
        break;
      case Summary::value_at_first:
        weights[i] = own == first ? 1.0 : 0.0;
        break;
      case Summary::sum_of_means:
        weights[i] = tokens.is_real_in_view(view, own) ? share : 0.0;
        break;
      case Summary::mean:
        weights[i] = share;
        break;
      case Summary::sum:
        weights[i] = 1.0;
        break;
    }
  }
};
struct WeightBehind {
  std::int64_t bucket;
  Global<const double> terms;
  Global<double> weights;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    double sum = 0;
    for (std::int64_t k = i, end = (quotient(i, bucket) + 1) * bucket; k < end; ++k) sum += terms[k];
    weights[i] = sum;
  }
};

// A long bucket is cut into pieces of so many slots, so that few buckets are many blocks of threads, too.
inline constexpr std::int64_t kPieceSlots = 128;

// What a thread does in a block that has one piece of a bucket's first `slots` slots, or a part of its columns: N
// columns, of every groups-th token.
template <int N>
struct Share {
  static constexpr int kThreads = 128;
  static constexpr std::int64_t kColumns = N * kWarp;  // of a block
  SINKHORN_DEVICE Share(const Thread& t, const Tokens& tokens, std::int64_t slots) {
    const std::int64_t width = tokens.s.width, tiles = (width + kColumns - 1) / kColumns;
    const std::int64_t cuts = (slots + kPieceSlots - 1) / kPieceSlots;
    piece = quotient(t.block(), tiles);
    bucket = quotient(piece, cuts);
    item = quotient(bucket, tokens.buckets());
    const std::int64_t first = (bucket - item * tokens.buckets()) * tokens.s.bucket;
    slot = first + (piece - bucket * cuts) * kPieceSlots;
    end = slot + kPieceSlots < first + slots ? slot + kPieceSlots : first + slots;
    begin = (t.block() - piece * tiles) * kColumns;
    packs = int((begin + kColumns < width ? kColumns : width - begin) / N);
    groups = t.size() / packs;
    group = t.index() / packs;
    column = begin + t.index() % packs * N;
  }
  static std::int64_t blocks(const SummaryShape& s, std::int64_t slots) {
    return s.batch * s.sorting() * s.buckets() * pieces(slots, kPieceSlots) * pieces(s.width, kColumns);
  }
  std::int64_t piece, bucket, item;  // (item, bucket, piece), its (item, bucket), and the item of that
  std::int64_t slot, end;            // the slots of the piece
  std::int64_t begin, column;        // the first column of the block and of the thread
  int packs, groups, group;          // packs of the block; a thread without a group has nothing to do
};

// The weighted sum of each piece of a bucket, and its plain sum for the buckets behind.
template <class T, int N>
struct SumBucket {
  static constexpr std::size_t kSharedBytes = 2 * Share<N>::kThreads * N * sizeof(double);
  Tokens tokens;
  std::int64_t slots;  // of a bucket, from its first, that have a weight or are summed
  Global<const T> x;
  Global<const double> weights;
  Global<double> plain, weighted;  // (items, buckets, pieces, width), of which the first may be left out; or
  Global<Real<T>> y;               // the summaries themselves, where a bucket is one piece
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const Share<N> share(t, tokens, slots);
    const int sharing = share.groups * share.packs;
    const auto shares = t.shared<double>(2 * Share<N>::kThreads * N);  // (sums and weighted, N, groups, packs)
    if (share.group < share.groups) {
      const Head head(tokens, share.item);
      Pack<double, N> sum = {}, weighted_sum = {};
      for (std::int64_t slot = share.slot + share.group; slot < share.end; slot += share.groups) {
        if (!head.is_real(slot)) continue;
        const auto values = load_real<N>(x, head.place(slot) + share.column);
        const double weight = weights[head.weights + slot];
        for (int n = 0; n < N; ++n) {
          sum[n] += values[n];
          weighted_sum[n] += weight * values[n];
        }
      }
      for (int n = 0; n < N; ++n) {
        shares[n * sharing + t.index()] = sum[n];
        shares[(N + n) * sharing + t.index()] = weighted_sum[n];
      }
    }
    t.sync();
    for (int i = t.index(); i < 2 * N * share.packs; i += t.size()) {
      const int row = i / share.packs, pack = i - row * share.packs, n = row % N;
      const bool is_weighted = row >= N;
      if (!is_weighted && !plain) continue;
      double sum = 0;
      for (int group = 0; group < share.groups; ++group) sum += shares[row * sharing + group * share.packs + pack];
      const std::int64_t at = share.piece * tokens.s.width + share.begin + pack * N + n;
      if (!is_weighted)
        plain[at] = sum;
      else if (y)
        y[at] = Real<T>(sum);
      else
        weighted[at] = sum;
    }
  }
};

// The buckets of one column of an item are one sum after the other. Where there are many they are cut into stretches:
// each is summed for itself, then every one begins with the sum of those before (or behind) it.
inline constexpr std::int64_t kStretch = 128;

// Element i of (items, stretches, width): a stretch of one column.
struct Stretch {
  SINKHORN_DEVICE Stretch(const Tokens& tokens, std::int64_t i) {
    const std::int64_t width = tokens.s.width, buckets = tokens.buckets(), stretches = count(buckets);
    const std::int64_t row = quotient(i, width), item = quotient(row, stretches);
    begin = (row - item * stretches) * kStretch;
    end = begin + kStretch < buckets ? begin + kStretch : buckets;
    first = item * buckets * width + i - row * width;
    weight = Head(tokens, item).weights;
  }
  SINKHORN_HD static std::int64_t count(std::int64_t buckets) { return (buckets + kStretch - 1) / kStretch; }
  std::int64_t begin, end;     // buckets
  std::int64_t first, weight;  // of the column's first bucket: the element, and the weight of that bucket
};

// What a stretch gives to the others: its plain sums, or the gradients of its summaries times their weights.
template <class R>
struct SumOfStretch {
  Tokens tokens;
  Global<const double> sums;  // of each bucket, or null:
  Global<const R> dy;         // gradients
  Global<const double> weights;
  Global<double> totals;  // (items, stretches, width)
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const Stretch at(tokens, i);
    double total = 0;
    for (std::int64_t b = at.begin; b < at.end; ++b) {
      const std::int64_t element = at.first + b * tokens.s.width;
      total += sums ? double(sums[element]) : double(R(dy[element])) * double(weights[at.weight + b * tokens.s.bucket]);
    }
    totals[i] = total;
  }
};

// A block has a stretch of 32 columns, and each of its warps a segment of that: what a segment reads is read at once,
// and the segments' sums meet in shared memory.
inline constexpr int kSegment = 16;

struct Segment {
  SINKHORN_DEVICE Segment(const Tokens& tokens, const Thread& t) {
    const std::int64_t width = tokens.s.width, buckets = tokens.buckets(), stretches = Stretch::count(buckets);
    const std::int64_t tiles = (width + kWarp - 1) / kWarp, row = quotient(t.block(), tiles);
    const std::int64_t item = quotient(row, stretches), column = (t.block() - row * tiles) * kWarp + t.lane();
    begin = (row - item * stretches) * kStretch + t.warp() * kSegment;
    end = column >= width ? begin : begin + kSegment < buckets ? begin + kSegment : buckets;
    first = item * buckets * width + column;
    of_stretch = row * width + column;
    weight = Head(tokens, item).weights;
  }
  static std::int64_t blocks(const SummaryShape& s) {
    return s.batch * s.sorting() * Stretch::count(s.buckets()) * pieces(s.width, kWarp);
  }
  static int threads(const SummaryShape& s) { return int(kWarp * pieces(std::min(s.buckets(), kStretch), kSegment)); }
  static constexpr std::size_t kSharedBytes = kStretch / kSegment * kWarp * sizeof(double);
  std::int64_t begin, end;     // buckets; none in a column beyond the last
  std::int64_t first, weight;  // of the column's first bucket: the element, and the weight of that bucket
  std::int64_t of_stretch;     // the element of (items, stretches, width)
};

template <class T>
struct AddBefore {
  Tokens tokens;
  Global<const double> sums, weighted, weights;
  Global<const double> before_stretch;  // (items, stretches, width); null: there is one
  Global<Real<T>> y;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const Segment at(tokens, t);
    const auto totals = t.shared<double>(t.size());
    const std::int64_t width = tokens.s.width;
    double sum[kSegment] = {}, own[kSegment] = {}, weight[kSegment] = {}, total = 0;
    for (int k = 0; k < kSegment; ++k)
      if (const std::int64_t b = at.begin + k; b < at.end) {
        sum[k] = sums[at.first + b * width];
        own[k] = weighted[at.first + b * width];
        weight[k] = weights[at.weight + b * tokens.s.bucket];
      }
    for (const double term : sum) total += term;
    totals[t.index()] = total;
    t.sync();
    if (at.begin >= at.end) return;
    double before = before_stretch ? double(before_stretch[at.of_stretch]) : 0;
    for (int warp = 0; warp < t.warp(); ++warp) before += totals[warp * kWarp + t.lane()];
    for (int k = 0; k < kSegment; ++k) {
      if (const std::int64_t b = at.begin + k; b < at.end)
        y[at.first + b * width] = Real<T>(before * weight[k] + own[k]);
      before += sum[k];
    }
  }
};

// flows (items, buckets, width): F of each bucket
template <class T>
struct FlowBehind {
  // Several buckets are read before the first is used, since what is read does not depend on what is summed.
  static constexpr int kAhead = 8;
  Tokens tokens;
  Global<const Real<T>> dy;
  Global<const double> weights;
  Global<const double> behind_stretch;  // (items, stretches, width); null: there is one
  Global<double> flows;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const Stretch at(tokens, i);
    const std::int64_t width = tokens.s.width;
    double behind = behind_stretch ? double(behind_stretch[i]) : 0;
    for (std::int64_t last = at.end - 1; last >= at.begin; last -= kAhead) {
      double flow[kAhead], weight[kAhead];
      for (int k = 0; k < kAhead; ++k) {
        const std::int64_t b = last - k > at.begin ? last - k : at.begin;
        flow[k] = dy[at.first + b * width];
        weight[k] = weights[at.weight + b * tokens.s.bucket];
      }
      for (int k = 0; k < kAhead; ++k) {
        if (last - k >= at.begin) flows[at.first + (last - k) * width] = behind;
        behind += flow[k] * weight[k];
      }
    }
  }
};

// dx of the tokens of each bucket, added to what is there.
template <class T, int N>
struct FlowIntoTokens {
  using R = Real<T>;
  Tokens tokens;
  Global<const double> weights, flows;  // no flows: a summary of the own bucket
  Global<const R> dy;
  Global<T> dx;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const Share<N> share(t, tokens, tokens.s.bucket);
    if (share.group >= share.groups) return;
    const Head head(tokens, share.item);
    const std::int64_t from = share.bucket * tokens.s.width + share.column;
    const auto summary = load_real<N>(dy, from);
    Pack<double, N> behind = {};
    if (flows) behind = flows.template load<N>(from);
    for (std::int64_t slot = share.slot + share.group; slot < share.end; slot += share.groups) {
      if (!head.is_real(slot)) continue;
      const std::int64_t place = head.place(slot) + share.column;
      const double weight = weights[head.weights + slot];
      auto out = load_real<N>(dx, place);
      for (int n = 0; n < N; ++n) out[n] += R(behind[n] + weight * summary[n]);
      dx.store(place, rounded<T>(out));
    }
  }
};

// Of each stretch the sum of those before it, or behind it: of `sums`, or else of dy times the weights. Empty where one
// stretch is all.
template <class R>
Tensor beside_stretches(const Tokens& tokens, std::int64_t items, const double* sums, const R* dy,
                        const double* weights) {
  const std::int64_t stretches = Stretch::count(tokens.s.buckets()), width = tokens.s.width;
  if (stretches < 2) return {};
  Tensor totals = workspace({items, stretches, width}, DType::f64);
  auto* const total = totals.data<double>();
  for_each("bucket_summary", totals.count(), SumOfStretch<R>{tokens, sums, dy, weights, total});
  for_each("bucket_summary", items * width, SumBefore<double>{stretches, width, sums == nullptr, total});
  return totals;
}

Tensor made_weights(Summary kind, const SummaryShape& s, const bool* mask) {
  const Tokens tokens{s, mask};
  const std::int64_t views = mask ? 2 * s.batch : 1, buckets = s.buckets();
  Tensor weights = workspace({views, s.length}, DType::f64);
  Tensor counts;
  if (mask != nullptr && runs_from_start(kind)) {
    counts = workspace({views, buckets}, DType::i32);
    auto* const count = counts.data<std::int32_t>();
    for_each("bucket_summary", views * buckets, CountBucket{tokens, count});
    for_each("bucket_summary", views, SumBefore<std::int32_t>{buckets, 1, false, count});
  }
  for_each("bucket_summary", weights.count(),
           WeightOfSlot{kind, tokens, counts.data_or_null<std::int32_t>(), weights.data<double>()});
  if (kind != Summary::sum_of_means) return weights;
  Tensor sums = weights.like();
  for_each("bucket_summary", sums.count(), WeightBehind{s.bucket, weights.data<double>(), sums.data<double>()});
  return sums;
}

// Without a mask they are the same in every layer and step, so those of the first few shapes are kept for good: graphs
// go on reading them. Not those in an arena: they do not last, and a recording does not even make them.
Tensor weights_of(Summary kind, const SummaryShape& s, const bool* mask) {
  constexpr std::size_t kKept = 16;
  constexpr std::int64_t kLongest = 1 << 20;  // 8 MiB
  static std::mutex mutex;
  static std::map<std::tuple<Summary, std::int64_t, std::int64_t>, Tensor> kept;
  if (mask != nullptr || s.length > kLongest) return made_weights(kind, s, mask);
  const std::lock_guard lock(mutex);
  const std::tuple key(kind, s.length, s.bucket);
  if (const auto known = kept.find(key); known != kept.end()) return known->second;
  Tensor weights = made_weights(kind, s, nullptr);
  if (kept.size() < kKept && !Arena::is_in_use()) kept.emplace(key, weights);
  return weights;
}

}  // namespace

template <class T>
void BucketSummary<T>::forward(Cuda, Summary kind, const SummaryShape& s, const T* x, const bool* mask, Real<T>* y) {
  const std::int64_t items = s.batch * s.sorting(), buckets = s.buckets();
  const std::int64_t slots = kind == Summary::value_at_first ? 1 : s.bucket;
  if (items * buckets * s.width == 0) return;
  const Tokens tokens{s, mask};
  const Tensor weights = weights_of(kind, s, mask);
  const auto sum_pieces = [&](double* plain, double* weighted, Real<T>* to) {
    const auto launched = [&]<int N>(Width<N>) {
      using Kernel = SumBucket<T, N>;
      launch("bucket_summary", Share<N>::blocks(s, slots), Share<N>::kThreads, Kernel::kSharedBytes,
             Kernel{tokens, slots, x, weights.data<double>(), plain, weighted, to});
    };
    constexpr int N = pack_width<T>();
    if (s.width % N == 0 && is_aligned<N>(x)) return launched(Width<N>{});
    launched(Width<1>{});
  };
  const bool is_running = runs_from_start(kind);
  const std::int64_t cuts = pieces(slots, kPieceSlots), kinds = is_running ? 2 : 1;
  if (!is_running && cuts == 1) return sum_pieces(nullptr, nullptr, y);
  // Plain and weighted sums, or weighted ones alone.
  Tensor both = workspace({kinds, items, buckets, cuts, s.width}, DType::f64);
  const auto half = [&](std::int64_t k) { return both.data<double>() + k * (both.count() / kinds); };
  sum_pieces(is_running ? half(0) : nullptr, half(kinds - 1), nullptr);
  const sums::Chunks of_pieces{kinds * items * buckets, cuts, s.width, 1, cuts};
  if (!is_running) return sums::add_chunks("bucket_summary", of_pieces, half(0), sums::Into<Real<T>>{y});
  if (cuts > 1) {
    const Tensor of_buckets = workspace({kinds, items, buckets, s.width}, DType::f64);
    sums::add_chunks("bucket_summary", of_pieces, half(0), sums::Into<double>{of_buckets.data<double>()});
    both = of_buckets;
  }
  const double *plain = half(0), *weighted = half(1);
  const Tensor before = beside_stretches<Real<T>>(tokens, items, plain, nullptr, nullptr);
  launch("bucket_summary", Segment::blocks(s), Segment::threads(s), Segment::kSharedBytes,
         AddBefore<T>{tokens, plain, weighted, weights.data<double>(), before.data_or_null<double>(), y});
}

template <class T>
void BucketSummary<T>::backward(Cuda, Summary kind, const SummaryShape& s, const Real<T>* dy, const bool* mask, T* dx) {
  const std::int64_t items = s.batch * s.sorting();
  if (items * s.buckets() * s.width == 0) return;
  const Tokens tokens{s, mask};
  const Tensor weights = weights_of(kind, s, mask);
  Tensor flows;
  if (runs_from_start(kind)) {
    flows = workspace({items, s.buckets(), s.width}, DType::f64);
    const Tensor behind = beside_stretches<Real<T>>(tokens, items, nullptr, dy, weights.data<double>());
    for_each("bucket_summary", items * Stretch::count(s.buckets()) * s.width,
             FlowBehind<T>{tokens, dy, weights.data<double>(), behind.data_or_null<double>(), flows.data<double>()});
  }
  const auto launched = [&]<int N>(Width<N>) {
    launch("bucket_summary", Share<N>::blocks(s, s.bucket), Share<N>::kThreads, 0,
           FlowIntoTokens<T, N>{tokens, weights.data<double>(), flows.data_or_null<double>(), dy, dx});
  };
  constexpr int N = pack_width<T>();
  if (s.width % N == 0 && is_aligned<N>(dx) && is_aligned<N>(dy)) return launched(Width<N>{});
  launched(Width<1>{});
}

template struct BucketSummary<float>;
template struct BucketSummary<double>;
template struct BucketSummary<bf16>;

}  // namespace sinkhorn::kernels
