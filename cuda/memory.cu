#include <tuple>

#include "autograd/memory.h"
#include "cuda/launch.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

template <class T>
struct Constant {
  T value;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { y[i] = value; }
};

template <class From, class To>
struct Converted {
  Global<const From> x;
  Global<To> y;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { y[i] = static_cast<To>(From(x[i])); }
};

template <class T>
struct Added {
  Global<const T> term;
  Global<T> into;
  SINKHORN_DEVICE void operator()(std::int64_t i) const { into[i] = Real<T>(T(into[i])) + Real<T>(term[i]); }
};

}  // namespace

template <class T>
void Fill<T>::forward(Cuda, std::int64_t count, T value, T* y) {
  for_each("fill", count, Constant<T>{value, y});
}

template <class From, class To>
void Convert<From, To>::forward(Cuda, std::int64_t count, const From* x, To* y) {
  for_each("convert", count, Converted<From, To>{x, y});
}

template <class T>
void Accumulate<T>::forward(Cuda, std::int64_t count, const T* term, T* into) {
  for_each("accumulate", count, Added<T>{term, into});
}

template struct Accumulate<float>;
template struct Accumulate<double>;
template struct Accumulate<bf16>;

// Names the kernels of every type, so that they are compiled here for the engine to link with.
template <class From, class... To>
constexpr auto conversions(TypeList<To...>) {
  return std::tuple(static_cast<void (*)(Cuda, std::int64_t, const From*, To*)>(&Convert<From, To>::forward)...);
}
template <class... T>
constexpr auto compiled_for_cuda(TypeList<T...> all) {
  return std::tuple(conversions<T>(all)..., static_cast<void (*)(Cuda, std::int64_t, T, T*)>(&Fill<T>::forward)...);
}
extern const auto kCompiledBuffersForCuda = compiled_for_cuda(TypeList<float, double, bf16, std::int32_t, bool>{});

}  // namespace sinkhorn::kernels
