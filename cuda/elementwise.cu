#include <tuple>

#include "autograd/ops/elementwise.h"
#include "cuda/launch.h"
#include "cuda/strided.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

template <class F, class T>
struct MapForward {
  Global<const T> x;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { y[i] = F::template f<Real<T>>(x[i]); }
};
template <class F, class T>
struct MapBackward {
  Global<const T> kept, dy;
  Global<T> dx;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { dx[i] = F::template df<Real<T>>(kept[i]) * Real<T>(dy[i]); }
};

template <class T>
struct Affine {
  Global<const T> x;
  Real<T> a, b;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { y[i] = a * Real<T>(x[i]) + b; }
};

struct SumOf {
  template <class R>
  SINKHORN_DEVICE R operator()(R a, R b) const {
    return a + b;
  }
};
struct ProductOf {
  template <class R>
  SINKHORN_DEVICE R operator()(R a, R b) const {
    return a * b;
  }
};
template <class F, class T>
struct Combined {
  StridedLoop<2> loop;
  Global<const T> a, b;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const auto from = offsets(loop, i);
    y[i] = F{}(Real<T>(a[from.at[0]]), Real<T>(b[from.at[1]]));
  }
};

template <class T>
struct Masked {
  StridedLoop<2> loop;
  Global<const T> x;
  Global<const bool> allowed;
  T value;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const auto from = offsets(loop, i);
    y[i] = allowed[from.at[1]] ? T(x[from.at[0]]) : value;
  }
};

// Four elements share one Philox block.
template <class T>
struct DropFour {
  std::int64_t count;
  RandomBits bits;
  std::uint32_t threshold;
  Real<T> scale;
  Global<const T> x;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t block) const {
    const Word4 words = philox({std::uint32_t(block), std::uint32_t(std::uint64_t(block) >> 32), bits.step, 0},
                               std::uint32_t(bits.key), std::uint32_t(bits.key >> 32));
    for (int k = 0; k < 4; ++k) {
      const std::int64_t i = 4 * block + k;
      if (i < count) y[i] = words[k] >> 9 >= threshold ? Real<T>(x[i]) * scale : Real<T>(0);
    }
  }
};

template <class T>
struct Gated {
  std::int64_t width;
  Global<const T> x;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t a = i / width * 2 * width + i % width;
    y[i] = math::gelu(Real<T>(x[a])) * Real<T>(x[a + width]);
  }
};
template <class T>
struct GatedGradient {
  std::int64_t width;
  Global<const T> x, dy;
  Global<T> dx;
  SINKHORN_DEVICE void operator()(std::int64_t i) const {
    using R = Real<T>;
    const std::int64_t a = i / width * 2 * width + i % width;
    const R x_i = x[a], d = dy[i];
    const math::Normal<R> at = math::normal(x_i);
    dx[a] = d * R(x[a + width]) * (at.cdf + x_i * at.pdf);
    dx[a + width] = d * x_i * at.cdf;
  }
};

}  // namespace

template <class F, class T>
void Map<F, T>::forward(Cuda, std::int64_t count, const T* x, T* y) {
  for_each(F::name, count, MapForward<F, T>{x, y});
}
template <class F, class T>
void Map<F, T>::backward(Cuda, std::int64_t count, const T* kept, const T* dy, T* dx) {
  for_each(F::name, count, MapBackward<F, T>{kept, dy, dx});
}

template <class T>
void Scale<T>::forward(Cuda, std::int64_t count, const T* x, double a, double b, T* y) {
  for_each("scale", count, Affine<T>{x, Real<T>(a), Real<T>(b), y});
}

template <class T>
void Add<T>::forward(Cuda, const StridedLoop<2>& loop, const T* a, const T* b, T* y) {
  for_each("add", loop.count, Combined<SumOf, T>{loop, a, b, y});
}

template <class T>
void Mul<T>::forward(Cuda, const StridedLoop<2>& loop, const T* a, const T* b, T* y) {
  for_each("mul", loop.count, Combined<ProductOf, T>{loop, a, b, y});
}

template <class T>
void MaskFill<T>::forward(Cuda, const StridedLoop<2>& loop, const T* x, const bool* allowed, double value, T* y) {
  for_each("mask_fill", loop.count, Masked<T>{loop, x, allowed, T(value), y});
}

template <class T>
void Dropout<T>::forward(Cuda, std::int64_t count, RandomBits bits, std::uint32_t threshold, double scale, const T* x,
                         T* y) {
  for_each("dropout", pieces(count, 4), DropFour<T>{count, bits, threshold, Real<T>(scale), x, y});
}

template <class T>
void GatedGelu<T>::forward(Cuda, std::int64_t rows, std::int64_t width, const T* x, T* y) {
  for_each("gated_gelu", rows * width, Gated<T>{width, x, y});
}
template <class T>
void GatedGelu<T>::backward(Cuda, std::int64_t rows, std::int64_t width, const T* x, const T* dy, T* dx) {
  for_each("gated_gelu", rows * width, GatedGradient<T>{width, x, dy, dx});
}

// Names every map's kernels once, so that they are compiled here for the ops to link with.
template <class F, class... T>
constexpr auto compiled_map(TypeList<T...>) {
  return std::tuple(static_cast<void (*)(Cuda, std::int64_t, const T*, T*)>(&Map<F, T>::forward)...,
                    static_cast<void (*)(Cuda, std::int64_t, const T*, const T*, T*)>(&Map<F, T>::backward)...);
}
template <class... F>
constexpr auto compiled_for_cuda(TypeList<F...>) {
  return std::tuple(compiled_map<F>(TypeList<float, double, bf16>{})...);
}
extern const auto kCompiledMapsForCuda = compiled_for_cuda(maps::All{});

template struct Scale<float>;
template struct Scale<double>;
template struct Scale<bf16>;
template struct Add<float>;
template struct Add<double>;
template struct Add<bf16>;
template struct Mul<float>;
template struct Mul<double>;
template struct Mul<bf16>;
template struct MaskFill<float>;
template struct MaskFill<double>;
template struct MaskFill<bf16>;
template struct Dropout<float>;
template struct Dropout<double>;
template struct Dropout<bf16>;
template struct GatedGelu<float>;
template struct GatedGelu<double>;
template struct GatedGelu<bf16>;

}  // namespace sinkhorn::kernels
