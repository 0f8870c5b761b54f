#include "autograd/choices.h"
#include "cuda/launch.h"
#include "cuda/runtime.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

struct SomeOf {
  std::int64_t bucket;
  Global<const bool> mask;
  Global<bool> some;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    bool found = false;
    for (std::int64_t slot = i * bucket; slot < (i + 1) * bucket && !found; ++slot) found = mask[slot];
    some[i] = found;
  }
};

// As the heads of either half see the sequence: some (B, 2, N).
struct SomeOfEitherHalf {
  std::int64_t buckets, bucket;
  Global<const bool> mask;
  Global<bool> some;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t length = buckets * bucket, row = i / (2 * buckets) * length, first = i % buckets * bucket;
    const std::int64_t shift = i / buckets % 2 == 1 ? bucket - 1 : 0;
    bool found = false;
    for (std::int64_t slot = 0; slot < bucket && !found; ++slot) found = mask[row + (first + slot + shift) % length];
    some[i] = found;
  }
};

struct Causal {
  std::int64_t heads, buckets, n_top;
  Global<const bool> some;  // null: all
  Global<bool> open;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t columns = n_top + buckets, j = i % columns - n_top, u = i / columns % buckets;
    const std::int64_t head = i / (columns * buckets) % heads, sequence = i / (columns * buckets * heads);
    const std::int64_t half = head >= heads / 2 ? 1 : 0;
    open[i] = j < 0 || (j < u && (!some || some[(2 * sequence + half) * buckets + j]));
  }
};

struct Both {
  Global<const bool> a, b;
  Global<bool> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { y[i] = a[i] && b[i]; }
};

}  // namespace

void Choices::causal(Cuda, const ChoiceShape& s, const bool* mask, bool* open) {
  const bool is_padded = mask != nullptr;
  const Tensor some = is_padded ? workspace({s.batch, 2, s.buckets}, DType::boolean) : Tensor();
  if (is_padded)
    for_each("causal choices", some.count(), SomeOfEitherHalf{s.buckets, s.bucket, mask, some.data<bool>()});
  for_each("causal choices", s.batch * s.heads * s.buckets * s.columns(),
           Causal{s.heads, s.buckets, s.n_top, is_padded ? some.data<bool>() : nullptr, open});
}

void Choices::with_tokens(Cuda, std::int64_t count, std::int64_t bucket, const bool* mask, bool* some) {
  for_each("buckets with tokens", count, SomeOf{bucket, mask, some});
}

void Choices::both(Cuda, std::int64_t count, const bool* a, const bool* b, bool* y) {
  for_each("masks", count, Both{a, b, y});
}

}  // namespace sinkhorn::kernels
