#include "autograd/ops/bucket_summary.h"
#include "cuda/elements.h"
#include "cuda/runtime.h"
#include "cuda/scan.h"

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

// One token of one head.
struct Place {
  SINKHORN_DEVICE Place(const Tokens& tokens, std::int64_t item, std::int64_t slot) {
    const SummaryShape& s = tokens.s;
    const std::int64_t sorting = s.heads - s.local, sequence = quotient(item, sorting),
                       head = item - sequence * sorting;
    const bool rotated = s.rotates && head >= sorting / 2;
    const std::int64_t token = tokens.token(sequence, rotated, slot);
    first = ((token * s.parts + s.part) * s.heads + s.local + head) * s.width;
    is_real = !tokens.mask || tokens.mask[token];
    view = tokens.mask ? 2 * sequence + rotated : 0;
  }
  std::int64_t first, view;  // its first element, and which weights are its
  bool is_real;
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

// The weighted sum of each bucket, and its plain sum for the buckets behind. A block has one bucket, and N columns a
// thread; threads of the same columns share out the tokens.
template <class T, int N>
struct SumBucket {
  static constexpr std::int64_t kColumns = N * kWarp;
  static constexpr std::size_t kSharedBytes = 2 * kMaxThreads * N * sizeof(double);
  Tokens tokens;
  std::int64_t slots;  // of a bucket, from its first, that have a weight or are summed
  Global<const T> x;
  Global<const double> weights;
  Global<double> sums, weighted;  // (items, buckets, width), for AddBefore; or
  Global<Real<T>> y;              // the summaries themselves
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const std::int64_t width = tokens.s.width, tiles = (width + kColumns - 1) / kColumns;
    const std::int64_t bucket = quotient(t.block(), tiles), item = quotient(bucket, tokens.buckets());
    const std::int64_t begin = (t.block() - bucket * tiles) * kColumns,
                       first = (bucket - item * tokens.buckets()) * tokens.s.bucket;
    const int columns = int(begin + kColumns < width ? kColumns : width - begin);
    const int packs = columns / N, groups = t.size() / packs, group = t.index() / packs;
    const auto shares = t.shared<double>(2 * kMaxThreads * N);  // (sums or weighted, groups, columns)
    if (group < groups) {
      const int column = t.index() % packs * N;
      Pack<double, N> sum = {}, weighted_sum = {};
      for (std::int64_t slot = first + group; slot < first + slots; slot += groups) {
        const Place place(tokens, item, slot);
        if (!place.is_real) continue;
        const auto values = load_real<N>(x, place.first + begin + column);
        const double weight = weights[place.view * tokens.s.length + slot];
        for (int n = 0; n < N; ++n) {
          sum[n] += values[n];
          weighted_sum[n] += weight * values[n];
        }
      }
      for (int n = 0; n < N; ++n) {
        shares[group * columns + column + n] = sum[n];
        shares[(groups + group) * columns + column + n] = weighted_sum[n];
      }
    }
    t.sync();
    for (int i = t.index(); i < 2 * columns; i += t.size()) {
      const bool is_weighted = i >= columns;
      const int column = is_weighted ? i - columns : i;
      if (y && !is_weighted) continue;
      double sum = 0;
      for (int k = 0; k < groups; ++k) sum += shares[((is_weighted ? groups : 0) + k) * columns + column];
      const std::int64_t at = bucket * width + begin + column;
      if (y)
        y[at] = Real<T>(sum);
      else if (is_weighted)
        weighted[at] = sum;
      else
        sums[at] = sum;
    }
  }
};

// Steps over the buckets of one column of an item: several are read before the first is used, since what is read does
// not depend on what is summed.
inline constexpr int kAhead = 8;
struct Column {
  SINKHORN_DEVICE Column(const Tokens& tokens, std::int64_t i)
      : item(quotient(i, tokens.s.width)),
        first(item * tokens.buckets() * tokens.s.width + i - item * tokens.s.width),
        weight((tokens.mask ? Place(tokens, item, 0).view : 0) * tokens.s.length) {}
  std::int64_t item, first, weight;  // of its first bucket: the element, and the weight of that bucket
};

template <class T>
struct AddBefore {
  Tokens tokens;
  Global<const double> sums, weighted, weights;
  Global<Real<T>> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const Column at(tokens, i);
    const std::int64_t buckets = tokens.buckets(), width = tokens.s.width;
    double before = 0;
    for (std::int64_t begin = 0; begin < buckets; begin += kAhead) {
      double sum[kAhead], own[kAhead], weight[kAhead];
      for (int k = 0; k < kAhead; ++k) {
        if (begin + k >= buckets) continue;
        sum[k] = sums[at.first + (begin + k) * width];
        own[k] = weighted[at.first + (begin + k) * width];
        weight[k] = weights[at.weight + (begin + k) * tokens.s.bucket];
      }
      for (int k = 0; k < kAhead; ++k) {
        if (begin + k >= buckets) continue;
        y[at.first + (begin + k) * width] = Real<T>(before * weight[k] + own[k]);
        before += sum[k];
      }
    }
  }
};

// flows (items, buckets, width): F of each bucket
template <class T>
struct FlowBehind {
  Tokens tokens;
  Global<const Real<T>> dy;
  Global<const double> weights;
  Global<double> flows;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const Column at(tokens, i);
    const std::int64_t buckets = tokens.buckets(), width = tokens.s.width;
    double behind = 0;
    for (std::int64_t end = buckets; end > 0; end -= kAhead) {
      double flow[kAhead];
      for (int k = 0; k < kAhead; ++k)
        if (const std::int64_t b = end - 1 - k; b >= 0)
          flow[k] = double(dy[at.first + b * width]) * weights[at.weight + b * tokens.s.bucket];
      for (int k = 0; k < kAhead; ++k) {
        const std::int64_t b = end - 1 - k;
        if (b < 0) continue;
        flows[at.first + b * width] = behind;
        behind += flow[k];
      }
    }
  }
};

// Element i of (items, slots, width).
template <class T>
struct FlowIntoTokens {
  using R = Real<T>;
  Tokens tokens;
  Global<const double> weights, flows;  // no flows: a summary of the own bucket
  Global<const R> dy;
  Global<T> dx;
  template <int N>
  SINKHORN_DEVICE void operator()(std::int64_t i, Width<N>) const {
    const SummaryShape& s = tokens.s;
    const std::int64_t row = quotient(i, s.width), column = i - row * s.width, item = quotient(row, s.length);
    const std::int64_t slot = row - item * s.length, bucket = quotient(row, s.bucket);
    const Place place(tokens, item, slot);
    if (!place.is_real) return;
    const double weight = weights[place.view * s.length + slot];
    const auto summary = load_real<N>(dy, bucket * s.width + column);
    Pack<double, N> behind = {};
    if (flows) behind = flows.template load<N>(bucket * s.width + column);
    auto out = load_real<N>(dx, place.first + column);
    for (int n = 0; n < N; ++n) out[n] += R(behind[n] + weight * summary[n]);
    dx.store(place.first + column, rounded<T>(out));
  }
};

Tensor weights_of(Summary kind, const SummaryShape& s, const bool* mask) {
  const Tokens tokens{s, mask};
  const std::int64_t views = mask ? 2 * s.batch : 1, buckets = s.buckets();
  const Tensor weights = workspace({views, s.length}, DType::f64);
  Tensor counts;
  if (mask && runs_from_start(kind)) {
    counts = workspace({views, buckets}, DType::i32);
    auto* const count = counts.data<std::int32_t>();
    for_each("bucket_summary", views * buckets, CountBucket{tokens, count});
    for_each("bucket_summary", views, SumBefore<std::int32_t>{buckets, 1, false, count});
  }
  for_each("bucket_summary", weights.count(),
           WeightOfSlot{kind, tokens, counts ? counts.data<std::int32_t>() : nullptr, weights.data<double>()});
  if (kind != Summary::sum_of_means) return weights;
  const Tensor sums = weights.like();
  for_each("bucket_summary", sums.count(), WeightBehind{s.bucket, weights.data<double>(), sums.data<double>()});
  return sums;
}

}  // namespace

template <class T>
void BucketSummary<T>::forward(Cuda, Summary kind, const SummaryShape& s, const T* x, const bool* mask, Real<T>* y) {
  const std::int64_t items = s.batch * s.sorting(), buckets = s.buckets();
  const std::int64_t slots = kind == Summary::value_at_first ? 1 : s.bucket;
  if (items * buckets * s.width == 0) return;
  const Tokens tokens{s, mask};
  const Tensor weights = weights_of(kind, s, mask);
  const auto sum_buckets = [&](double* sums, double* weighted, Real<T>* to) {
    const auto launched = [&]<int N>(Width<N>) {
      using Kernel = SumBucket<T, N>;
      launch("bucket_summary", items * buckets * pieces(s.width, Kernel::kColumns), kMaxThreads, Kernel::kSharedBytes,
             Kernel{tokens, slots, x, weights.data<double>(), sums, weighted, to});
    };
    constexpr int N = pack_width<T>();
    if (s.width % N == 0 && is_aligned<N>(x)) return launched(Width<N>{});
    launched(Width<1>{});
  };
  if (!runs_from_start(kind)) return sum_buckets(nullptr, nullptr, y);
  const Tensor sums = workspace({2, items, buckets, s.width}, DType::f64);
  double *plain = sums.data<double>(), *weighted = plain + items * buckets * s.width;
  sum_buckets(plain, weighted, nullptr);
  for_each("bucket_summary", items * s.width, AddBefore<T>{tokens, plain, weighted, weights.data<double>(), y});
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
    for_each("bucket_summary", items * s.width,
             FlowBehind<T>{tokens, dy, weights.data<double>(), flows.data<double>()});
  }
  constexpr int N = pack_width<T>();
  for_each_pack<N>("bucket_summary", items * s.length * s.width,
                   s.width % N == 0 && is_aligned<N>(dx) && is_aligned<N>(dy),
                   FlowIntoTokens<T>{tokens, weights.data<double>(), flows ? flows.data<double>() : nullptr, dy, dx});
}

template struct BucketSummary<float>;
template struct BucketSummary<double>;
template struct BucketSummary<bf16>;

}  // namespace sinkhorn::kernels
