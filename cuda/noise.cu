#include <cmath>

#include "autograd/noise.h"
#include "cuda/random.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

// Four elements share one Philox block.
template <class T>
struct GumbelOfFour {
  std::int64_t count;
  RandomStream stream;
  Global<T> y;
  SINKHORN_DEVICE void operator()(std::int64_t block) const {
    using R = Real<T>;
    const Word4 words = stream.four_words(block);
    for (int k = 0; k < 4; ++k) {
      const std::int64_t i = 4 * block + k;
      if (i < count) y[i] = -std::log(-std::log(RandomBits::to_uniform<R>(words[k])));
    }
  }
};

struct DrawWords {
  std::int64_t count;
  double rate;
  RandomStream stream;
  Global<std::int32_t> word;
  SINKHORN_DEVICE void operator()(std::int64_t) const {
    const RandomBits bits = stream.now();
    bool is_any_on = false;
    for (std::int64_t i = 0; i < count; ++i) {
      const bool on = bits.uniform<double>(std::uint64_t(i)) >= rate;
      word[i] = on;
      is_any_on |= on;
    }
    if (!is_any_on) word[0] = 1;
  }
};

}  // namespace

void SwitchWords::forward(Cuda, std::int64_t count, double rate, RandomBits bits, std::int32_t* word) {
  if (count > 0) for_each("switches", 1, DrawWords{count, rate, RandomStream(bits), word});  // a few: one thread
}

template <class T>
void Gumbel<T>::forward(Cuda, std::int64_t count, RandomBits bits, T* y) {
  for_each("gumbel", pieces(count, 4), GumbelOfFour<T>{count, RandomStream(bits), y});
}

template struct Gumbel<float>;
template struct Gumbel<double>;
template struct Gumbel<bf16>;

}  // namespace sinkhorn::kernels
