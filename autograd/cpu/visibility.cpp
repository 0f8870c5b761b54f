#include "autograd/visibility.h"

#include "autograd/parallel.h"

namespace sinkhorn::kernels {
namespace {

template <class Rule, class... Reads>
void fill(std::int64_t count, const Rule& rule, bool* y, Reads... reads) {
  parallel_for(count, grain_for(4), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) y[i] = rule(i, reads...);
  });
}

}  // namespace

void Visible::windows(Cpu, std::int64_t count, const WindowRule& rule, const bool* queries, const bool* keys, bool* y) {
  fill(count, rule, y, queries, keys);
}
void Visible::chosen(Cpu, std::int64_t count, const ChosenRule& rule, const std::int32_t* picks, const bool* keys,
                     bool* y) {
  fill(count, rule, y, picks, keys);
}
void Visible::sorted(Cpu, std::int64_t count, const SortedRule& rule, const bool* seen, const bool* queries,
                     const bool* keys, bool* y) {
  fill(count, rule, y, seen, queries, keys);
}
template <class T>
void VisibleBlends<T>::forward(Cpu, std::int64_t count, const BlendedRule& rule, const T* shares, const bool* keys,
                               bool* y) {
  fill(count, rule, y, shares, keys);
}

template struct VisibleBlends<float>;
template struct VisibleBlends<double>;
template struct VisibleBlends<bf16>;

}  // namespace sinkhorn::kernels
