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
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t at = i / width, id = ids[at];
    const bool inside = id >= 0 && id < rows;
    if (!inside) *bad = {what, id, 0, rows};
    y[i] = inside ? T(table[id * width + i - at * width]) : T(0);
  }
};

}  // namespace

template <class T>
void Embedding<T>::forward(Cuda, std::int64_t rows, std::int64_t width, std::int64_t count, const T* table,
                           const std::int32_t* ids, T* y) {
  for_each("embedding", count * width, LookUp<T>{rows, width, table, ids, y, bad_index(), "embedding: id"});
}

template <class T>
void Embedding<T>::backward(Cuda, std::int64_t rows, std::int64_t width, std::int64_t count, const std::int32_t* ids,
                            const T* dy, T* dtable) {
  scatter_rows<T>("embedding", count, rows, width, ids, nullptr, dy, dtable);
}

template struct Embedding<float>;
template struct Embedding<double>;
template struct Embedding<bf16>;

}  // namespace sinkhorn::kernels
