#include "cuda/tensor_core_attention.h"

namespace sinkhorn::cuda {

// The emulated grid has no tensor cores: the scalar twin does it all.
template <class T>
bool TensorCoreAttention<T>::takes(const AttentionShape&) {
  return false;
}
template <class T>
void TensorCoreAttention<T>::forward(const Arguments&, const Results&) {}
template <class T>
void TensorCoreAttention<T>::backward(const Arguments&, const Results&, const T*, const Flows&) {}

template struct TensorCoreAttention<bf16>;
template struct TensorCoreAttention<float>;

}  // namespace sinkhorn::cuda
