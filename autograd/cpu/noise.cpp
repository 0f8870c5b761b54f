#include "autograd/noise.h"

#include <cmath>

#include "autograd/cpu/random_words.h"
#include "autograd/parallel.h"

namespace sinkhorn::kernels {

template <class T>
void Gumbel<T>::forward(Cpu, std::int64_t count, RandomBits bits, T* y) {
  using R = Real<T>;
  parallel_for(count, grain_for(1), [=](std::int64_t begin, std::int64_t end) {
    cpu::for_random_words(bits, begin, end, [=](std::int64_t at, std::int64_t n, const std::uint32_t* words) {
      for (std::int64_t i = 0; i < n; ++i) y[at + i] = -std::log(-std::log(RandomBits::to_uniform<R>(words[i])));
    });
  });
}

template struct Gumbel<float>;
template struct Gumbel<double>;
template struct Gumbel<bf16>;

}  // namespace sinkhorn::kernels
