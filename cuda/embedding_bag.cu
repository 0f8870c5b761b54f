#include "autograd/ops/embedding_bag.h"
#include "cuda/scatter.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// A block has N columns a thread of one bag. Blocks go slice of columns by slice, so that of a large table what is read
// at a time lies in the cache.
template <class T, int N>
struct SumBags {
  using R = Real<T>;
  static constexpr int kThreads = 64, kAhead = 8;  // rows that are read before the first is used
  static constexpr std::int64_t kColumns = kThreads * N;
  static constexpr std::size_t kSharedBytes = kThreads * (sizeof(std::int32_t) + sizeof(R));
  Bags bags;
  Global<const T> table, weights;
  Global<const std::int32_t> ids;
  Global<T> y;
  BadIndex* bad;
  const char* what;
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const auto rows = t.shared<std::int32_t>(kThreads);  // -1: outside the table
    const auto factors = t.shared<R>(kThreads);
    const std::int64_t slice = quotient(t.block(), bags.bags), bag = t.block() - slice * bags.bags;
    const std::int64_t column = slice * kColumns + t.index() * N;
    Pack<R, N> sum = {};
    for (std::int64_t from = 0; from < bags.size; from += kThreads) {
      const std::int64_t k = bag * bags.size + from + t.index();
      const int count = int(bags.size - from < kThreads ? bags.size - from : kThreads);
      if (from > 0) t.sync();  // the others have used what is there
      if (t.index() < count) {
        const std::int32_t id = ids[k];
        const bool inside = id >= 0 && id < bags.rows;
        if (!inside) *bad = {what, id, 0, bags.rows};
        rows[t.index()] = inside ? id : -1;
        factors[t.index()] = weights[k];
      }
      t.sync();
      if (column >= bags.width) continue;
      for (int first = 0; first < count; first += kAhead) {
        Pack<T, N> ahead[kAhead];
        for (int a = 0; a < kAhead; ++a) {
          const std::int64_t row = first + a < count ? std::int32_t(rows[first + a]) : -1;
          ahead[a] = row >= 0 ? table.template load<N>(row * bags.width + column) : Pack<T, N>{};
        }
        for (int a = 0; a < kAhead && first + a < count; ++a) {
          const R factor = factors[first + a];
          for (int n = 0; n < N; ++n) sum[n] += factor * R(ahead[a][n]);
        }
      }
    }
    if (column < bags.width) y.store(bag * bags.width + column, rounded<T>(sum));
  }
};

}  // namespace

template <class T>
void EmbeddingBag<T>::forward(Cuda, const Bags& bags, const T* table, const T* weights, const std::int32_t* ids, T* y) {
  const auto launched = [&]<int N>(Width<N>) {
    using Kernel = SumBags<T, N>;
    launch("embedding_bag", bags.bags * pieces(bags.width, Kernel::kColumns), Kernel::kThreads, Kernel::kSharedBytes,
           Kernel{bags, table, weights, ids, y, bad_index(), "embedding_bag: id"});
  };
  constexpr int N = pack_width<T>();
  if (bags.width % N == 0 && is_aligned<N>(table, static_cast<const T*>(y))) return launched(Width<N>{});
  launched(Width<1>{});
}

template <class T>
void EmbeddingBag<T>::backward(Cuda, const Bags& bags, const T* table, const T* weights, const std::int32_t* ids,
                               const T* dy, Flow<T> dtable, T* dweights) {
  if (!dtable.to && !dweights) return;
  scatter_rows<T>(
      "embedding_bag",
      {bags.bags * bags.size, bags.rows, bags.width, ids, dy, weights, std::max<std::int64_t>(bags.size, 1)}, dtable.to,
      dtable.adds, table, dweights);
}

template struct EmbeddingBag<float>;
template struct EmbeddingBag<double>;
template struct EmbeddingBag<bf16>;

}  // namespace sinkhorn::kernels
