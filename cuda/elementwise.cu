#include <tuple>

#include "autograd/ops/elementwise.h"
#include "cuda/random.h"
#include "cuda/strided.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

template <class F, class R>
struct MapForward {
  SINKHORN_DEVICE R operator()(R x) const { return F::template f<R>(x); }
};
template <class F, class R>
struct MapBackward {
  SINKHORN_DEVICE R operator()(R kept, R dy) const { return F::template df<R>(kept) * dy; }
};

template <class R>
struct Affine {
  R a, b;
  SINKHORN_DEVICE R operator()(R x) const { return a * x + b; }
};

template <class R>
struct ScaledBy {
  Global<const R> a;
  SINKHORN_DEVICE R operator()(R x) const { return a[0] * x; }
};

template <class R>
struct SumOf {
  SINKHORN_DEVICE R operator()(R a, R b) const { return a + b; }
};
template <class R>
struct ProductOf {
  SINKHORN_DEVICE R operator()(R a, R b) const { return a * b; }
};

template <class From, class To>
struct TermAdded {
  Real<To> factor;
  SINKHORN_DEVICE Real<To> operator()(To onto, From x) const {
    return Real<To>(onto) + factor * Real<To>(static_cast<To>(x));
  }
};

template <class T>
struct Masked {
  T value;
  SINKHORN_DEVICE T operator()(T x, bool allowed) const { return allowed ? x : value; }
};

// Four elements share one Philox block.
template <class T>
struct DropFour {
  RandomStream stream;
  std::uint32_t threshold;
  Real<T> scale;
  Global<const T> x;
  Global<T> y;
  template <int N>
  SINKHORN_DEVICE void operator()(std::int64_t i, Width<N>) const {
    const Pack<Real<T>, N> in = load_real<N>(x, i);
    Pack<Real<T>, N> out;
    Word4 words = {};
    for (int k = 0; k < N; ++k) {
      if (k % 4 == 0) words = stream.four_words((i + k) / 4);
      out[k] = words[N >= 4 ? k % 4 : i % 4] >> 9 >= threshold ? in[k] * scale : Real<T>(0);
    }
    y.store(i, rounded<T>(out));
  }
};

// Packs of rows that are a whole number of them, of a gate's half rows: element i of (rows, width).
template <class T>
struct Gated {
  std::int64_t width;
  Global<const T> x;
  Global<T> y;
  template <int N>
  SINKHORN_DEVICE void operator()(std::int64_t i, Width<N>) const {
    const std::int64_t at = i + quotient(i, width) * width;
    const auto a = load_real<N>(x, at), gate = load_real<N>(x, at + width);
    Pack<Real<T>, N> out;
    for (int k = 0; k < N; ++k) out[k] = math::gelu(a[k]) * gate[k];
    y.store(i, rounded<T>(out));
  }
};
template <class T>
struct GatedGradient {
  std::int64_t width;
  Global<const T> x, dy;
  Global<T> dx;
  template <int N>
  SINKHORN_DEVICE void operator()(std::int64_t i, Width<N>) const {
    using R = Real<T>;
    const std::int64_t at = i + quotient(i, width) * width;
    const auto a = load_real<N>(x, at), gate = load_real<N>(x, at + width), d = load_real<N>(dy, i);
    Pack<R, N> da, dgate;
    for (int k = 0; k < N; ++k) {
      const math::Normal<R> normal = math::normal(a[k]);
      da[k] = d[k] * gate[k] * (normal.cdf + a[k] * normal.pdf);
      dgate[k] = d[k] * a[k] * normal.cdf;
    }
    dx.store(at, rounded<T>(da));
    dx.store(at + width, rounded<T>(dgate));
  }
};

}  // namespace

template <class F, class T>
void Map<F, T>::forward(Cuda, std::int64_t count, const T* x, T* y) {
  map_elements(F::name, count, MapForward<F, Real<T>>{}, y, x);
}
template <class F, class T>
void Map<F, T>::backward(Cuda, std::int64_t count, const T* kept, const T* dy, T* dx) {
  map_elements(F::name, count, MapBackward<F, Real<T>>{}, dx, kept, dy);
}

template <class T>
void Scale<T>::forward(Cuda, std::int64_t count, const T* x, double a, double b, T* y) {
  map_elements("scale", count, Affine<Real<T>>{Real<T>(a), Real<T>(b)}, y, x);
}

template <class From, class To>
void AddConverted<From, To>::forward(Cuda, std::int64_t count, Real<To> factor, const To* onto, const From* x, To* y) {
  map_elements("cast", count, TermAdded<From, To>{factor}, y, onto, x);
}

template <class T>
void Scale<T>::by(Cuda, std::int64_t count, const T* x, const Real<T>* a, T* y) {
  map_elements("scale", count, ScaledBy<Real<T>>{a}, y, x);
}

template <class T>
void Add<T>::forward(Cuda, const StridedLoop<2>& loop, const T* a, const T* b, T* y) {
  map_strided("add", loop, SumOf<Real<T>>{}, y, a, b);
}

template <class T>
void Mul<T>::forward(Cuda, const StridedLoop<2>& loop, const T* a, const T* b, T* y) {
  map_strided("mul", loop, ProductOf<Real<T>>{}, y, a, b);
}

template <class T>
void MaskFill<T>::forward(Cuda, const StridedLoop<2>& loop, const T* x, const bool* allowed, double value, T* y) {
  map_strided("mask_fill", loop, Masked<T>{T(value)}, y, x, allowed);
}

template <class T>
void Dropout<T>::forward(Cuda, std::int64_t count, RandomBits bits, std::uint32_t threshold, double scale, const T* x,
                         T* y) {
  constexpr int N = 2 * pack_width<T>();  // at least four
  for_each_pack<N>("dropout", count, is_aligned<N>(x, y),
                   DropFour<T>{RandomStream(bits), threshold, Real<T>(scale), x, y});
}

template <class T>
void GatedGelu<T>::forward(Cuda, std::int64_t rows, std::int64_t width, const T* x, T* y) {
  constexpr int N = pack_width<T>();
  for_each_pack<N>("gated_gelu", rows * width, width % N == 0 && is_aligned<N>(x, y), Gated<T>{width, x, y});
}
template <class T>
void GatedGelu<T>::backward(Cuda, std::int64_t rows, std::int64_t width, const T* x, const T* dy, T* dx) {
  constexpr int N = pack_width<T>();
  for_each_pack<N>("gated_gelu", rows * width, width % N == 0 && is_aligned<N>(x, dy, dx),
                   GatedGradient<T>{width, x, dy, dx});
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
template struct AddConverted<float, float>;
template struct AddConverted<float, double>;
template struct AddConverted<float, bf16>;
template struct AddConverted<double, float>;
template struct AddConverted<double, double>;
template struct AddConverted<double, bf16>;
template struct AddConverted<bf16, float>;
template struct AddConverted<bf16, double>;
template struct AddConverted<bf16, bf16>;
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
