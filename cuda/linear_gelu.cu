#include "autograd/ops/elementwise.h"
#include "autograd/ops/linear_gelu.h"
#include "cuda/sums.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// dh (rows, columns), made and written as its columns are summed. What is summed is what was written, rounded.
template <class T>
struct GeluTerm {
  std::int64_t columns;
  Global<const T> h, dy;
  Global<T> dh;
  SINKHORN_DEVICE static Real<T> through(Real<T> h, Real<T> dy) { return maps::Gelu::df(h) * dy; }
  SINKHORN_DEVICE Real<T> operator()(std::int64_t row, std::int64_t column) const {
    const std::int64_t i = row * columns + column;
    const T value = T(through(h[i], dy[i]));
    dh[i] = value;
    return value;
  }

  static constexpr int kPack = pack_width<T>();
  SINKHORN_DEVICE Pack<Real<T>, kPack> load(std::int64_t i) const {
    const Pack<T, kPack> at = h.template load<kPack>(i), flow = dy.template load<kPack>(i);
    Pack<Real<T>, kPack> numbers;
    for (int k = 0; k < kPack; ++k) numbers[k] = through(at[k], flow[k]);
    const Pack<T, kPack> values = rounded<T>(numbers);
    dh.store(i, values);
    for (int k = 0; k < kPack; ++k) numbers[k] = values[k];
    return numbers;
  }
  bool has_packs() const {
    return h.template is_aligned<kPack>() && dy.template is_aligned<kPack>() && dh.template is_aligned<kPack>();
  }
};

}  // namespace

template <class T, class P>
void LinearGelu<T, P>::backward(Cuda cuda, const LinearShape& s, const T* h, const T* dy, T* dh, Flow<P> dbias) {
  if (!dbias.to) return Map<maps::Gelu, T>::backward(cuda, s.rows * s.out, h, dy, dh);
  sum_axis<Real<T>>("linear_gelu", Around(Shape{1, s.rows, s.out}, 1), GeluTerm<T>{s.out, h, dy, dh}, dbias.to,
                    dbias.adds);
}

template struct LinearGelu<float, float>;
template struct LinearGelu<double, double>;
template struct LinearGelu<bf16, bf16>;
template struct LinearGelu<bf16, float>;

}  // namespace sinkhorn::kernels
