#include "autograd/ops/embedding.h"
#include "cuda/scatter.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

template <class T>
struct LookUp {
  std::int64_t rows, width;
  Global<const T> table;
  Global<const std::int32_t> ids;
  Global<T> y;
  BadIndex* bad;
  const char* what;
  template <int N>
  SINKHORN_DEVICE void operator()(std::int64_t i, Width<N>) const {
    const std::int64_t at = quotient(i, width), id = ids[at];
    const bool inside = id >= 0 && id < rows;
    if (!inside) *bad = {what, id, 0, rows};
    y.store(i, inside ? table.template load<N>(id * width + i - at * width) : Pack<T, N>{});
  }
};

}  // namespace

template <class T>
void Embedding<T>::forward(Cuda, std::int64_t rows, std::int64_t width, std::int64_t count, const T* table,
                           const std::int32_t* ids, T* y) {
  constexpr int N = pack_width<T>();
  for_each_pack<N>("embedding", count * width, width % N == 0 && is_aligned<N>(table) && is_aligned<N>(y),
                   LookUp<T>{rows, width, table, ids, y, bad_index(), "embedding: id"});
}

template <class T>
void Embedding<T>::backward(Cuda, std::int64_t rows, std::int64_t width, std::int64_t count, const std::int32_t* ids,
                            const T* dy, T* dtable) {
  scatter_rows<T>("embedding", {count, rows, width, ids, dy}, dtable);
}

template struct Embedding<float>;
template struct Embedding<double>;
template struct Embedding<bf16>;

}  // namespace sinkhorn::kernels
