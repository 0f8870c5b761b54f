#include "autograd/rng.h"

#include <cmath>
#include <numbers>

#include "autograd/cpu/random_words.h"
#include "autograd/dispatch.h"
#include "autograd/parallel.h"

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

Tensor gumbel(const Rng& rng, Shape shape, DType dtype) {
  Tensor noise(shape, dtype);
  dispatch(noise, [&, bits = rng.bits()]<class T>(auto) {
    using R = Real<T>;
    T* const out = noise.data<T>();
    parallel_for(noise.count(), grain_for(1), [=](std::int64_t begin, std::int64_t end) {
      cpu::for_random_words(bits, begin, end, [=](std::int64_t at, std::int64_t n, const std::uint32_t* words) {
        for (std::int64_t i = 0; i < n; ++i) out[at + i] = -std::log(-std::log(RandomBits::to_uniform<R>(words[i])));
      });
    });
  });
  return noise;
}

Tensor integers(Rng rng, Shape shape, std::int32_t end) {
  const RandomBits bits = rng.bits();
  return generate(shape, DType::i32, [=](std::uint64_t i) { return double(std::uint64_t(bits.word(i)) * end >> 32); });
}

}  // namespace sinkhorn
