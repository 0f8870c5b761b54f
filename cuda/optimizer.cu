#include <cmath>

#include "autograd/optimizer.h"
#include "cuda/sums.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

template <class T>
struct AdamWElement {
  using R = Real<T>;
  R beta1, rest1, beta2, rest2, eps, scale, keep, rate, root;
  Global<const T> gradient;
  Global<T> value, m, v;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const R g = R(gradient[i]) * scale;
    const R m_i = beta1 * R(T(m[i])) + rest1 * g, v_i = beta2 * R(T(v[i])) + rest2 * g * g;
    m[i] = m_i;
    v[i] = v_i;
    value[i] = keep * R(T(value[i])) - rate * m_i / (std::sqrt(v_i) * root + eps);
  }
};

template <class T>
struct SquareOf {
  Global<const T> x;
  SINKHORN_DEVICE double operator()(std::int64_t row, std::int64_t) const {
    return double(Real<T>(x[row])) * double(Real<T>(x[row]));
  }

  static constexpr int kPack = pack_width<T>();
  SINKHORN_DEVICE Pack<double, kPack> load(std::int64_t i) const {
    const auto numbers = load_real<kPack>(x, i);
    Pack<double, kPack> squares;
    for (int k = 0; k < kPack; ++k) squares[k] = double(numbers[k]) * double(numbers[k]);
    return squares;
  }
  bool has_packs() const { return x.template is_aligned<kPack>(); }
};

}  // namespace

template <class T>
void Optimizer<T>::adamw(Cuda, AdamWStep step, std::int64_t count, T* value, const T* gradient, T* m, T* v) {
  using R = Real<T>;
  for_each("adamw", count,
           AdamWElement<T>{R(step.beta1), R(1 - step.beta1), R(step.beta2), R(1 - step.beta2), R(step.eps),
                           R(step.gradient_scale), R(step.keep), R(step.rate), R(step.root), gradient, value, m, v});
}

template <class T>
double Optimizer<T>::square_sum(Cuda, std::int64_t count, const T* x) {
  const Tensor sum = workspace({}, DType::f64);
  sum_axis<double>("global_norm", Around(Shape{1, count, 1}, 1), SquareOf<T>{x}, sum.data<double>());
  return read(sum.data<double>());
}

template struct Optimizer<float>;
template struct Optimizer<double>;
template struct Optimizer<bf16>;

}  // namespace sinkhorn::kernels
