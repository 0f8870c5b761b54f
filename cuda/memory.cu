#include <tuple>

#include "autograd/memory.h"
#include "cuda/elements.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

template <class T>
struct Constant {
  T value;
  SINKHORN_DEVICE T operator()() const { return value; }
};

template <class From, class To>
struct Converted {
  SINKHORN_DEVICE To operator()(From x) const { return static_cast<To>(x); }
};
template <>
struct Converted<float, bf16> {
  SINKHORN_DEVICE float operator()(float x) const { return x; }  // rounded as it is stored, two at once
};

template <class R>
struct Added {
  SINKHORN_DEVICE R operator()(R into, R term) const { return into + term; }
};

}  // namespace

template <class T>
void Fill<T>::forward(Cuda, std::int64_t count, T value, T* y) {
  map_elements("fill", count, Constant<T>{value}, y);
}

template <class From, class To>
void Convert<From, To>::forward(Cuda, std::int64_t count, const From* x, To* y) {
  map_elements("convert", count, Converted<From, To>{}, y, x);
}

template <class T, class Term>
void Accumulate<T, Term>::forward(Cuda, std::int64_t count, const Term* term, T* into) {
  map_elements("accumulate", count, Added<Real<T>>{}, into, into, term);
}

template struct Accumulate<float>;
template struct Accumulate<double>;
template struct Accumulate<bf16>;
template struct Accumulate<float, bf16>;

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
