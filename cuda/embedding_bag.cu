#include "autograd/ops/embedding_bag.h"
#include "cuda/reduce.h"
#include "cuda/scatter.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

template <class T>
struct SumBags {
  using R = Real<T>;
  Bags bags;
  Global<const T> table, weights;
  Global<const std::int32_t> ids;
  Global<T> y;
  BadIndex* bad;
  const char* what;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t bag = i / bags.width, column = i - bag * bags.width;
    R sum = 0;
    for (std::int64_t k = bag * bags.size; k < (bag + 1) * bags.size; ++k) {
      const std::int64_t id = ids[k];
      const bool inside = id >= 0 && id < bags.rows;
      if (!inside) *bad = {what, id, 0, bags.rows};
      if (inside) sum += R(weights[k]) * R(table[id * bags.width + column]);
    }
    y[i] = sum;
  }
};

// <dy of the bag, the row>; one block per weight.
template <class T>
struct BagWeightGradient {
  using R = Real<T>;
  Bags bags;
  Global<const T> table, dy;
  Global<const std::int32_t> ids;
  Global<T> dweights;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const BlockReducer<R> reduce(t);
    const std::int64_t k = t.block(), id = ids[k];
    R dot = 0;
    if (id >= 0 && id < bags.rows) {
      const auto row = table + id * bags.width, flow = dy + k / bags.size * bags.width;
      for (std::int64_t i = t.index(); i < bags.width; i += t.size()) dot += R(row[i]) * R(flow[i]);
    }
    dot = reduce.sum(dot);
    if (t.index() == 0) dweights[k] = dot;
  }
};

}  // namespace

template <class T>
void EmbeddingBag<T>::forward(Cuda, const Bags& bags, const T* table, const T* weights, const std::int32_t* ids, T* y) {
  for_each("embedding_bag", bags.bags * bags.width,
           SumBags<T>{bags, table, weights, ids, y, bad_index(), "embedding_bag: id"});
}

template <class T>
void EmbeddingBag<T>::backward(Cuda, const Bags& bags, const T* table, const T* weights, const std::int32_t* ids,
                               const T* dy, T* dtable, T* dweights) {
  const std::int64_t count = bags.bags * bags.size;
  if (dtable)
    scatter_rows<T>("embedding_bag", count, bags.rows, bags.width, ids, weights, dy, dtable,
                    std::max<std::int64_t>(bags.size, 1));
  if (dweights)
    launch("embedding_bag", count, threads_for(bags.width), reducer_bytes<Real<T>>(),
           BagWeightGradient<T>{bags, table, dy, ids, dweights});
}

template struct EmbeddingBag<float>;
template struct EmbeddingBag<double>;
template struct EmbeddingBag<bf16>;

}  // namespace sinkhorn::kernels
