#include "autograd/ops/linear_gelu.h"

#include "autograd/ops/elementwise.h"

namespace sinkhorn::kernels {

template <class T, class P>
void LinearGelu<T, P>::backward(Cpu cpu, const LinearShape& s, const T* h, const T* dy, T* dh, Flow<P> dbias) {
  Map<maps::Gelu, T>::backward(cpu, s.rows * s.out, h, dy, dh);
  Linear<T, P>::backward(cpu, s, nullptr, nullptr, dh, {}, {}, dbias);
}

template struct LinearGelu<float, float>;
template struct LinearGelu<double, double>;
template struct LinearGelu<bf16, bf16>;
template struct LinearGelu<bf16, float>;

}  // namespace sinkhorn::kernels
