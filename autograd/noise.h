// Noise, drawn where it is used.
#pragma once
#include "autograd/dispatch.h"
#include "autograd/rng.h"

namespace sinkhorn::kernels {

/// y_i = -log(-log(bits.uniform(i))), in f64 for f64, else in f32
template <class T>
struct Gumbel {
  static void forward(Cpu, std::int64_t count, RandomBits bits, T* y);
  static void forward(Cuda, std::int64_t count, RandomBits bits, T* y);
};

/// word_i = 1 if bits.uniform<double>(i) >= rate, else 0; and word_0 = 1 where that leaves none.
struct SwitchWords {
  static void forward(Cuda, std::int64_t count, double rate, RandomBits bits, std::int32_t* word);
};

}  // namespace sinkhorn::kernels
