#include "autograd/ops/elementwise.h"

#include <tuple>

#include "autograd/cpu/random_words.h"
#include "autograd/cpu/strided.h"
#include "autograd/cpu/vector_math.h"
#include "autograd/parallel.h"

namespace sinkhorn::kernels {
namespace {

// y[i] = f(i) for all i.
template <class T, class F>
void fill(std::int64_t count, T* y, F f) {
  parallel_for(count, grain_for(1), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) y[i] = f(i);
  });
}

// y = f(a, b) over a loop in which the last axis of an operand is contiguous or stretched.
template <class A, class B, class T, class F>
void combine(const StridedLoop<2>& loop, const A* a, const B* b, T* y, F f) {
  cpu::for_runs(loop, [=](std::int64_t i, const auto& at, std::int64_t n, const auto& steps) {
    const A* const p = a + at[0];
    const B* const q = b + at[1];
    T* const out = y + i;
    if (steps[0] == 1 && steps[1] == 1) {
      for (std::int64_t j = 0; j < n; ++j) out[j] = f(p[j], q[j]);
    } else if (steps[0] == 1) {
      const B fixed = *q;
      for (std::int64_t j = 0; j < n; ++j) out[j] = f(p[j], fixed);
    } else {
      const A fixed = *p;
      for (std::int64_t j = 0; j < n; ++j) out[j] = f(fixed, q[j * steps[1]]);
    }
  });
}

}  // namespace

template <class F, class T>
void Map<F, T>::forward(Cpu, std::int64_t count, const T* x, T* y) {
  fill(count, y, [=](std::int64_t i) { return F::template f<Real<T>>(x[i]); });
}

template <class F, class T>
void Map<F, T>::backward(Cpu, std::int64_t count, const T* kept, const T* dy, T* dx) {
  fill(count, dx, [=](std::int64_t i) { return F::template df<Real<T>>(kept[i]) * Real<T>(dy[i]); });
}

template <class T>
void Scale<T>::forward(Cpu, std::int64_t count, const T* x, double a, double b, T* y) {
  using R = Real<T>;
  fill(count, y, [x, a = R(a), b = R(b)](std::int64_t i) { return a * R(x[i]) + b; });
}

template <class From, class To>
void AddConverted<From, To>::forward(Cpu, std::int64_t count, Real<To> factor, const To* onto, const From* x, To* y) {
  using R = Real<To>;
  fill(count, y, [=](std::int64_t i) { return R(onto[i]) + factor * R(static_cast<To>(x[i])); });
}

template <class T>
void Scale<T>::by(Cpu, std::int64_t count, const T* x, const Real<T>* a, T* y) {
  using R = Real<T>;
  fill(count, y, [x, factor = *a](std::int64_t i) { return factor * R(x[i]); });
}

template <class T>
void Add<T>::forward(Cpu, const StridedLoop<2>& loop, const T* a, const T* b, T* y) {
  combine(loop, a, b, y, [](Real<T> p, Real<T> q) { return p + q; });
}

template <class T>
void Mul<T>::forward(Cpu, const StridedLoop<2>& loop, const T* a, const T* b, T* y) {
  combine(loop, a, b, y, [](Real<T> p, Real<T> q) { return p * q; });
}

template <class T>
void MaskFill<T>::forward(Cpu, const StridedLoop<2>& loop, const T* x, const bool* allowed, double value, T* y) {
  combine(loop, x, allowed, y, [v = T(value)](T p, bool open) { return open ? p : v; });
}

template <class T>
void Dropout<T>::forward(Cpu, std::int64_t count, RandomBits bits, std::uint32_t threshold, double scale, const T* x,
                         T* y) {
  using R = Real<T>;
  const R factor = R(scale);
  parallel_for(count, grain_for(1), [=](std::int64_t begin, std::int64_t end) {
    cpu::for_random_words(bits, begin, end, [=](std::int64_t at, std::int64_t n, const std::uint32_t* words) {
      for (std::int64_t j = 0; j < n; ++j) y[at + j] = words[j] >> 9 >= threshold ? R(x[at + j]) * factor : R(0);
    });
  });
}

template <class T>
void GatedGelu<T>::forward(Cpu, std::int64_t rows, std::int64_t width, const T* x, T* y) {
  using R = Real<T>;
  parallel_for(rows, grain_for(2 * width), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T *a = x + 2 * r * width, *g = a + width;
      T* const out = y + r * width;
      for (std::int64_t j = 0; j < width; ++j) out[j] = math::gelu(R(a[j])) * R(g[j]);
    }
  });
}

template <class T>
void GatedGelu<T>::backward(Cpu, std::int64_t rows, std::int64_t width, const T* x, const T* dy, T* dx) {
  using R = Real<T>;
  parallel_for(rows, grain_for(2 * width), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T *a = x + 2 * r * width, *g = a + width, *d = dy + r * width;
      T *da = dx + 2 * r * width, *dg = da + width;
      for (std::int64_t j = 0; j < width; ++j) {
        const R x_j = a[j];
        const math::Normal<R> at = math::normal(x_j);
        da[j] = R(d[j]) * R(g[j]) * (at.cdf + x_j * at.pdf);
        dg[j] = R(d[j]) * x_j * at.cdf;
      }
    }
  });
}

// Names every map's kernels once, so that they are compiled here for the ops to link with.
template <class F, class... T>
constexpr auto compiled_map(TypeList<T...>) {
  return std::tuple(static_cast<void (*)(Cpu, std::int64_t, const T*, T*)>(&Map<F, T>::forward)...,
                    static_cast<void (*)(Cpu, std::int64_t, const T*, const T*, T*)>(&Map<F, T>::backward)...);
}
template <class... F>
constexpr auto compiled(TypeList<F...>) {
  return std::tuple(compiled_map<F>(TypeList<float, double, bf16>{})...);
}
extern const auto kCompiledMaps = compiled(maps::All{});

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
