#include "autograd/rng.h"

#include <cmath>
#include <numbers>

#include "autograd/noise.h"

namespace sinkhorn {
namespace {

template <class Draw>
Tensor generate(Shape shape, DType dtype, Draw draw) {
  Tensor values(shape, DType::f64);
  double* out = values.data<double>();
  for (std::int64_t i = 0; i < values.count(); ++i) out[i] = draw(std::uint64_t(i));
  return values.to(dtype);
}

}  // namespace

Tensor uniform(Rng rng, Shape shape, double low, double high, DType dtype) {
  const RandomBits bits = rng.bits();
  return generate(shape, dtype, [=](std::uint64_t i) { return low + (high - low) * bits.uniform<double>(i); });
}

Tensor normal(Rng rng, Shape shape, double mean, double stddev, DType dtype) {
  const RandomBits bits = rng.bits();
  return generate(shape, dtype, [=](std::uint64_t i) {
    const double radius = std::sqrt(-2 * std::log(bits.uniform<double>(2 * i)));
    return mean + stddev * radius * std::cos(2 * std::numbers::pi * bits.uniform<double>(2 * i + 1));
  });
}

Tensor gumbel(const Rng& rng, Shape shape, DType dtype, Device device) {
  Tensor noise(shape, dtype, device);
  dispatch(noise, [&]<class T>(auto space) {
    kernels::Gumbel<T>::forward(space, noise.count(), rng.bits(), noise.data<T>());
  });
  return noise;
}

Tensor integers(Rng rng, Shape shape, std::int32_t end) {
  const RandomBits bits = rng.bits();
  return generate(shape, DType::i32, [=](std::uint64_t i) { return double(std::uint64_t(bits.word(i)) * end >> 32); });
}

}  // namespace sinkhorn
