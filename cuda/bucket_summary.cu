#include "autograd/ops/bucket_summary.h"
#include "cuda/runtime.h"
#include "cuda/scan.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// Sums run bucket by bucket; those that begin at the start of the sequence then add what the buckets before (in
// backward: behind) hold. Index i of a kernel is (sequence, head, bucket, column).
template <class T>
struct Tokens {
  SummaryShape s;
  Global<const bool> mask;

  SINKHORN_DEVICE std::int64_t column(std::int64_t i) const { return i % s.width; }
  SINKHORN_DEVICE std::int64_t bucket(std::int64_t i) const { return i / s.width; }  // (sequence, head, bucket)
  SINKHORN_DEVICE std::int64_t item(std::int64_t i) const { return i / s.width / (s.length / s.bucket); }
  SINKHORN_DEVICE std::int64_t first_slot(std::int64_t i) const {
    return i / s.width % (s.length / s.bucket) * s.bucket;
  }
  SINKHORN_DEVICE std::int64_t token(std::int64_t i, std::int64_t slot) const {
    const std::int64_t sorting = s.heads - s.local, sequence = item(i) / sorting, head = item(i) % sorting;
    const std::int64_t rotated = slot + (s.rotates && head >= sorting / 2 ? s.bucket - 1 : 0);
    return sequence * s.length + (rotated < s.length ? rotated : rotated - s.length);
  }
  SINKHORN_DEVICE bool is_real(std::int64_t i, std::int64_t slot) const { return !mask || mask[token(i, slot)]; }
  SINKHORN_DEVICE std::int64_t place(std::int64_t i, std::int64_t slot) const {
    const std::int64_t head = s.local + item(i) % (s.heads - s.local);
    return ((token(i, slot) * s.parts + s.part) * s.heads + head) * s.width + column(i);
  }
  SINKHORN_DEVICE static double share(std::int64_t count) { return 1.0 / double(count > 1 ? count : 1); }
};

// Whether a summary looks at its own bucket alone; the others run from the start of the sequence.
bool is_per_bucket(Summary kind) { return kind == Summary::mean || kind == Summary::sum; }

template <class T>
struct CountBucket {
  Tokens<T> tokens;
  Global<std::int32_t> counts;
  SINKHORN_DEVICE void operator()(std::int64_t bucket) const {
    const std::int64_t i = bucket * tokens.s.width, first = tokens.first_slot(i);
    std::int32_t count = 0;
    for (std::int64_t slot = first; slot < first + tokens.s.bucket; ++slot) count += tokens.is_real(i, slot);
    counts[bucket] = count;
  }
};

template <class T>
struct SumBucket {
  Tokens<T> tokens;
  Global<const T> x;
  Global<double> sums;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t first = tokens.first_slot(i);
    double sum = 0;
    for (std::int64_t slot = first; slot < first + tokens.s.bucket; ++slot)
      if (tokens.is_real(i, slot)) sum += Real<T>(x[tokens.place(i, slot)]);
    sums[i] = sum;
  }
};

template <class T>
struct Summarise {
  Summary kind;
  Tokens<T> tokens;
  Global<const double> sums;  // of the buckets before
  Global<const std::int32_t> counts;
  Global<const T> x;
  Global<Real<T>> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t first = tokens.first_slot(i);
    std::int64_t count = counts[tokens.bucket(i)];
    double total = sums[i], summary = 0;
    for (std::int64_t slot = first; slot < first + tokens.s.bucket; ++slot) {
      const bool real = tokens.is_real(i, slot);
      const double token = real ? double(Real<T>(x[tokens.place(i, slot)])) : 0.0;
      count += real;
      total += token;
      if (kind == Summary::value_at_first && slot == first) summary = token;
      if ((kind == Summary::mean_at_first && slot == first) || (kind == Summary::sum_of_means && real))
        summary += total * tokens.share(count);
    }
    y[i] = Real<T>(summary);
  }
};

// What flows from the means of one bucket into every real token up to it.
template <class T>
struct FlowOfBucket {
  Summary kind;
  Tokens<T> tokens;
  Global<const std::int32_t> counts;
  Global<const Real<T>> dy;
  Global<double> flows;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t first = tokens.first_slot(i);
    std::int64_t count = counts[tokens.bucket(i)];
    double flow = 0;
    for (std::int64_t slot = first; slot < first + tokens.s.bucket; ++slot) {
      const bool real = tokens.is_real(i, slot);
      count += real;
      if ((kind == Summary::mean_at_first && slot == first) || (kind == Summary::sum_of_means && real))
        flow += dy[i] * tokens.share(count);
    }
    flows[i] = flow;
  }
};

template <class T>
struct SummariseGradient {
  Summary kind;
  Tokens<T> tokens;
  Global<const double> flows;  // of the buckets behind
  Global<const std::int32_t> counts;
  Global<const Real<T>> dy;
  Global<T> dx;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t first = tokens.first_slot(i), end = first + tokens.s.bucket;
    std::int64_t count = counts[tokens.bucket(i)];
    for (std::int64_t slot = first; slot < end; ++slot) count += tokens.is_real(i, slot);
    double flow = flows[i];
    for (std::int64_t slot = end - 1; slot >= first; --slot) {
      const bool real = tokens.is_real(i, slot);
      if ((kind == Summary::mean_at_first && slot == first) || (kind == Summary::sum_of_means && real))
        flow += dy[i] * tokens.share(count);
      if (!real) continue;
      --count;
      if (kind != Summary::value_at_first)
        dx[tokens.place(i, slot)] = T(Real<T>(flow));
      else if (slot == first)
        dx[tokens.place(i, slot)] = T(dy[i]);
    }
  }
};

template <class T>
struct SummariseBucket {
  Summary kind;
  Tokens<T> tokens;
  Global<const T> x;
  Global<Real<T>> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t first = tokens.first_slot(i);
    std::int64_t count = 0;
    double sum = 0;
    for (std::int64_t slot = first; slot < first + tokens.s.bucket; ++slot) {
      if (!tokens.is_real(i, slot)) continue;
      ++count;
      sum += Real<T>(x[tokens.place(i, slot)]);
    }
    y[i] = Real<T>(kind == Summary::sum ? sum : sum * tokens.share(count));
  }
};

// The gradient of a bucket's mean or sum goes to its real tokens in equal parts.
template <class T>
struct SpreadOverBucket {
  Summary kind;
  Tokens<T> tokens;
  Global<const std::int32_t> counts;  // of the bucket itself
  Global<const Real<T>> dy;
  Global<T> dx;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t first = tokens.first_slot(i);
    const double share = kind == Summary::sum ? 1.0 : tokens.share(counts[tokens.bucket(i)]);
    for (std::int64_t slot = first; slot < first + tokens.s.bucket; ++slot)
      if (tokens.is_real(i, slot)) dx[tokens.place(i, slot)] = T(Real<T>(dy[i] * share));
  }
};

// Sums and counts of what the buckets before hold.
template <class T>
struct Before {
  explicit Before(const Tokens<T>& tokens)
      : items(tokens.s.batch * tokens.s.sorting()),
        buckets(tokens.s.buckets()),
        width(tokens.s.width),
        sums(workspace({items, buckets, width}, DType::f64)),
        counts(workspace({items, buckets}, DType::i32)) {
    for_each("bucket_summary", items * buckets, CountBucket<T>{tokens, count()});
    for_each("bucket_summary", items, SumBefore<std::int32_t>{buckets, 1, false, count()});
  }
  void add_up(bool backwards) const {
    for_each("bucket_summary", items * width, SumBefore<double>{buckets, width, backwards, sum()});
  }
  std::int64_t tasks() const { return items * buckets * width; }
  double* sum() const { return sums.data<double>(); }
  std::int32_t* count() const { return counts.data<std::int32_t>(); }

  std::int64_t items, buckets, width;
  Tensor sums, counts;
};

}  // namespace

template <class T>
void BucketSummary<T>::forward(Cuda, Summary kind, const SummaryShape& s, const T* x, const bool* mask, Real<T>* y) {
  const Tokens<T> tokens{s, mask};
  if (is_per_bucket(kind))
    return for_each("bucket_summary", s.batch * s.sorting() * s.buckets() * s.width,
                    SummariseBucket<T>{kind, tokens, x, y});
  const Before<T> before(tokens);
  for_each("bucket_summary", before.tasks(), SumBucket<T>{tokens, x, before.sum()});
  before.add_up(false);
  for_each("bucket_summary", before.tasks(), Summarise<T>{kind, tokens, before.sum(), before.count(), x, y});
}

template <class T>
void BucketSummary<T>::backward(Cuda, Summary kind, const SummaryShape& s, const Real<T>* dy, const bool* mask, T* dx) {
  const Tokens<T> tokens{s, mask};
  if (is_per_bucket(kind)) {
    const std::int64_t buckets = s.batch * s.sorting() * s.buckets();
    const Tensor counts = workspace({buckets}, DType::i32);
    for_each("bucket_summary", buckets, CountBucket<T>{tokens, counts.data<std::int32_t>()});
    return for_each("bucket_summary", buckets * s.width,
                    SpreadOverBucket<T>{kind, tokens, counts.data<std::int32_t>(), dy, dx});
  }
  const Before<T> before(tokens);
  for_each("bucket_summary", before.tasks(), FlowOfBucket<T>{kind, tokens, before.count(), dy, before.sum()});
  before.add_up(true);
  for_each("bucket_summary", before.tasks(), SummariseGradient<T>{kind, tokens, before.sum(), before.count(), dy, dx});
}

template struct BucketSummary<float>;
template struct BucketSummary<double>;
template struct BucketSummary<bf16>;

}  // namespace sinkhorn::kernels
