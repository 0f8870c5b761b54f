#include "autograd/visibility.h"
#include "cuda/launch.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// By the masks of queries and keys.
struct InWindow {
  WindowRule rule;
  Global<const bool> queries, keys;
  Global<bool> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { y[i] = rule(i, queries, keys); }
};

struct IfSorted {
  SortedRule rule;
  Global<const bool> seen, queries, keys;
  Global<bool> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { y[i] = rule(i, seen, queries, keys); }
};

// By picks or shares, and the mask of keys.
template <class Rule, class T>
struct InBlock {
  Rule rule;
  Global<const T> source;
  Global<const bool> keys;
  Global<bool> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { y[i] = rule(i, source, keys); }
};

}  // namespace

void Visible::windows(Cuda, std::int64_t count, const WindowRule& rule, const bool* queries, const bool* keys,
                      bool* y) {
  for_each("visible windows", count, InWindow{rule, queries, keys, y});
}
void Visible::chosen(Cuda, std::int64_t count, const ChosenRule& rule, const std::int32_t* picks, const bool* keys,
                     bool* y) {
  for_each("visible blocks", count, InBlock<ChosenRule, std::int32_t>{rule, picks, keys, y});
}
void Visible::sorted(Cuda, std::int64_t count, const SortedRule& rule, const bool* seen, const bool* queries,
                     const bool* keys, bool* y) {
  for_each("visible slots", count, IfSorted{rule, seen, queries, keys, y});
}
template <class T>
void VisibleBlends<T>::forward(Cuda, std::int64_t count, const BlendedRule& rule, const T* shares, const bool* keys,
                               bool* y) {
  for_each("visible blends", count, InBlock<BlendedRule, T>{rule, shares, keys, y});
}

template struct VisibleBlends<float>;
template struct VisibleBlends<double>;
template struct VisibleBlends<bf16>;

}  // namespace sinkhorn::kernels
