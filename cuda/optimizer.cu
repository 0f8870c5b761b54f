#include <cmath>
#include <limits>

#include "autograd/optimizer.h"
#include "cuda/sums.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// Where weight decay begins and ends, as a kernel argument.
struct Borders {
  static constexpr int kMost = 128;
  int count = 0;
  std::int64_t at[kMost] = {};

  /// How many lie at or before element i: an odd number of them, and it decays.
  SINKHORN_DEVICE int before(std::int64_t i) const {
    int low = 0, high = count;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (at[middle] <= i)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

template <class T>
struct AdamWElements {
  using R = Real<T>;
  R beta1, rest1, beta2, rest2, eps;
  double scale;
  Borders borders;
  Global<const double> numbers, clip;
  Global<const T> gradient;
  Global<T> value, m, v;
  template <int N>
  SINKHORN_DEVICE void operator()(std::int64_t i, Width<N>) const {
    const double factor = clip ? double(clip[0]) : 1;
    if (factor != factor) return;  // not a number: the step is not finite
    const R scaled = R(scale * factor), keep = R(double(numbers[0])), rate = R(double(numbers[1]));
    const R root = R(double(numbers[2]));
    auto value_i = load_real<N>(value, i), m_i = load_real<N>(m, i), v_i = load_real<N>(v, i);
    const auto flow = load_real<N>(gradient, i);
    int passed = borders.before(i);
    for (int k = 0; k < N; ++k) {
      while (passed < borders.count && borders.at[passed] <= i + k) ++passed;
      const R g = flow[k] * scaled;
      m_i[k] = beta1 * m_i[k] + rest1 * g;
      v_i[k] = beta2 * v_i[k] + rest2 * g * g;
      value_i[k] = (passed % 2 != 0 ? keep : R(1)) * value_i[k] - rate * m_i[k] / (std::sqrt(v_i[k]) * root + eps);
    }
    m.store(i, rounded<T>(m_i));
    v.store(i, rounded<T>(v_i));
    value.store(i, rounded<T>(value_i));
  }
};

struct ClipOf {
  std::int64_t count;
  double clip_norm;
  Global<const double> known;
  Global<double> factor;
  SINKHORN_DEVICE void operator()(std::int64_t) const {
    double least = clip_norm > 0 ? clip_norm / (std::sqrt(double(known[count - 1])) + 1e-6) : 1;
    if (least > 1) least = 1;
    for (std::int64_t i = 0; i < count; ++i)
      if (!std::isfinite(double(known[i]))) least = std::numeric_limits<double>::quiet_NaN();
    factor[0] = least;
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

// One pass over the buffers; further ones only for more borders than fit in a kernel's arguments, from the last of them
// on: an even number, so that each pass begins without decay.
template <class T>
void Optimizer<T>::adamw(Cuda, const AdamWStep& step, std::span<const std::int64_t> borders, std::int64_t count,
                         T* value, const T* gradient, T* m, T* v) {
  using R = Real<T>;
  constexpr int N = pack_width<T>();
  std::int64_t begin = 0;
  for (std::size_t next = 0;;) {
    Borders some;
    for (; some.count < Borders::kMost && next < borders.size(); ++next) some.at[some.count++] = borders[next] - begin;
    const std::int64_t end = next < borders.size() ? borders[next - 1] : count;
    const AdamWElements<T> kernel{R(step.beta1), R(1 - step.beta1),   R(step.beta2), R(1 - step.beta2),
                                  R(step.eps),   step.gradient_scale, some,          step.numbers,
                                  step.clip,     gradient + begin,    value + begin, m + begin,
                                  v + begin};
    for_each_pack<N>("adamw", end - begin, is_aligned<N>(gradient + begin, value + begin, m + begin, v + begin),
                     kernel);
    if (end == count) return;
    begin = end;
  }
}

template <class T>
void Optimizer<T>::add_square_sum(Cuda, std::int64_t count, const T* x, double* sum) {
  sum_axis<double>("global_norm", Around(Shape{1, count, 1}, 1), SquareOf<T>{x}, sum, true);
}

void ClipFactor::forward(Cuda, std::int64_t count, const double* known, double clip_norm, double* factor) {
  for_each("clip_factor", 1, ClipOf{count, clip_norm, known, factor});
}

template struct Optimizer<float>;
template struct Optimizer<double>;
template struct Optimizer<bf16>;

}  // namespace sinkhorn::kernels
