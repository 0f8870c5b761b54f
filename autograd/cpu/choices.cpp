#include "autograd/choices.h"

#include <algorithm>
#include <vector>

namespace sinkhorn::kernels {

void Choices::causal(Cpu, const ChoiceShape& s, const bool* mask, bool* open) {
  const std::int64_t length = s.buckets * s.bucket;
  std::vector<char> has_real(static_cast<std::size_t>(s.buckets));
  for (std::int64_t sequence = 0; sequence < s.batch; ++sequence) {
    for (std::int64_t head = 0; head < s.heads; ++head) {
      const std::int64_t shift = head >= s.heads / 2 ? s.bucket - 1 : 0;
      for (std::int64_t j = 0; j < s.buckets; ++j) {
        char& some = has_real[std::size_t(j)] = !mask;
        for (std::int64_t slot = j * s.bucket; slot < (j + 1) * s.bucket && !some; ++slot)
          some = mask[sequence * length + (slot + shift) % length];
      }
      for (std::int64_t u = 0; u < s.buckets; ++u) {
        for (std::int64_t j = 0; j < s.n_top; ++j) *open++ = true;
        for (std::int64_t j = 0; j < s.buckets; ++j) *open++ = j < u && has_real[std::size_t(j)];
      }
    }
  }
}

void Choices::with_tokens(Cpu, std::int64_t count, std::int64_t bucket, const bool* mask, bool* some) {
  for (std::int64_t i = 0; i < count; ++i) {
    const bool* const real = mask + i * bucket;
    some[i] = std::find(real, real + bucket, true) != real + bucket;
  }
}

void Choices::both(Cpu, std::int64_t count, const bool* a, const bool* b, bool* y) {
  for (std::int64_t i = 0; i < count; ++i) y[i] = a[i] && b[i];
}

}  // namespace sinkhorn::kernels
