#include "autograd/ops/bucket_summary.h"

#include <algorithm>
#include <vector>

#include "autograd/parallel.h"

namespace sinkhorn::kernels {
namespace {

// Calls visit(head index (sequence * h + s), place(slot) -> row of x, is_real(slot)) for every sorting head.
template <class Visit>
void each_head(const SummaryShape& s, const bool* mask, Visit visit) {
  parallel_for(s.batch * s.sorting(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t sequence = item / s.sorting(), head = item % s.sorting();
      const std::int64_t shift = s.rotates && head >= s.sorting() / 2 ? s.bucket - 1 : 0;
      auto position = [=](std::int64_t slot) {
        const std::int64_t rotated = slot + shift;
        return sequence * s.length + (rotated < s.length ? rotated : rotated - s.length);
      };
      visit(
          item,
          [=](std::int64_t slot) { return ((position(slot) * s.parts + s.part) * s.heads + s.local + head) * s.width; },
          [=](std::int64_t slot) { return !mask || mask[position(slot)]; });
    }
  });
}

// Whether a summary looks at its own bucket alone; the others run from the start of the sequence.
bool is_per_bucket(Summary kind) { return kind == Summary::mean || kind == Summary::sum; }

}  // namespace

template <class T>
void BucketSummary<T>::forward(Cpu, Summary kind, const SummaryShape& s, const T* x, const bool* mask, Real<T>* y) {
  each_head(s, mask, [=](std::int64_t item, auto row, auto is_real) {
    std::vector<double> total(s.width), summary(s.width);
    std::int64_t count = 0;
    for (std::int64_t slot = 0; slot < s.length; ++slot) {
      const T* token = x + row(slot);
      const bool real = is_real(slot), first = slot % s.bucket == 0, last = slot % s.bucket == s.bucket - 1;
      if (first) std::fill(summary.begin(), summary.end(), 0.0);
      if (first && is_per_bucket(kind)) {
        std::fill(total.begin(), total.end(), 0.0);
        count = 0;
      }
      if (real) {
        ++count;
        for (std::int64_t e = 0; e < s.width; ++e) total[e] += Real<T>(token[e]);
      }
      const double share = kind == Summary::sum ? 1 : 1.0 / double(std::max<std::int64_t>(count, 1));
      if (kind == Summary::value_at_first && first && real)
        for (std::int64_t e = 0; e < s.width; ++e) summary[e] = Real<T>(token[e]);
      if ((kind == Summary::mean_at_first && first) || (kind == Summary::sum_of_means && real) ||
          (is_per_bucket(kind) && last))
        for (std::int64_t e = 0; e < s.width; ++e) summary[e] += total[e] * share;
      Real<T>* out = y + (item * s.buckets() + slot / s.bucket) * s.width;
      if (last)
        for (std::int64_t e = 0; e < s.width; ++e) out[e] = Real<T>(summary[e]);
    }
  });
}

namespace {

// The gradient of a bucket's mean or sum goes to its real tokens in equal parts.
template <class T>
void spread(Summary kind, const SummaryShape& s, const Real<T>* dy, const bool* mask, T* dx) {
  each_head(s, mask, [=](std::int64_t item, auto row, auto is_real) {
    for (std::int64_t begin = 0; begin < s.length; begin += s.bucket) {
      const Real<T>* d_summary = dy + (item * s.buckets() + begin / s.bucket) * s.width;
      std::int64_t count = 0;
      for (std::int64_t slot = begin; slot < begin + s.bucket; ++slot) count += is_real(slot);
      const double share = kind == Summary::sum ? 1 : 1.0 / double(std::max<std::int64_t>(count, 1));
      for (std::int64_t slot = begin; slot < begin + s.bucket; ++slot)
        for (std::int64_t e = 0; is_real(slot) && e < s.width; ++e)
          dx[row(slot) + e] = T(Real<T>(dx[row(slot) + e]) + Real<T>(d_summary[e] * share));
    }
  });
}

}  // namespace

template <class T>
void BucketSummary<T>::backward(Cpu, Summary kind, const SummaryShape& s, const Real<T>* dy, const bool* mask, T* dx) {
  if (is_per_bucket(kind)) return spread(kind, s, dy, mask, dx);
  each_head(s, mask, [=](std::int64_t item, auto row, auto is_real) {
    std::int64_t count = 0;
    for (std::int64_t slot = 0; slot < s.length; ++slot) count += is_real(slot);
    std::vector<double> flow(s.width);  // sum_{t >= slot} dm_t / max(1, c_t)
    for (std::int64_t slot = s.length - 1; slot >= 0; --slot) {
      const bool real = is_real(slot), first = slot % s.bucket == 0;
      const Real<T>* d_summary = dy + (item * s.buckets() + slot / s.bucket) * s.width;
      T* out = dx + row(slot);
      const double share = 1.0 / double(std::max<std::int64_t>(count, 1));
      if ((kind == Summary::mean_at_first && first) || (kind == Summary::sum_of_means && real))
        for (std::int64_t e = 0; e < s.width; ++e) flow[e] += d_summary[e] * share;
      if (real) {
        --count;
        if (kind != Summary::value_at_first)
          for (std::int64_t e = 0; e < s.width; ++e) out[e] = T(Real<T>(out[e]) + Real<T>(flow[e]));
        else if (first)
          for (std::int64_t e = 0; e < s.width; ++e) out[e] = T(Real<T>(out[e]) + d_summary[e]);
      }
    }
  });
}

template struct BucketSummary<float>;
template struct BucketSummary<double>;
template struct BucketSummary<bf16>;

}  // namespace sinkhorn::kernels
