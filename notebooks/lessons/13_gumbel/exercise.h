// Gumbel noise, sampling with it, and its soft version with a temperature. All tensors are f64; picks are i32.
#pragma once
#include "autograd/rng.h"

namespace sinkhorn::lesson {

/// -log(-log U), where U = (the upper 23 bits of the word + 1/2) / 2^23, computed in double. Finite for every word.
double gumbel(std::uint32_t word);

/// (rows, columns): element i, counted row after row, is made of word i of the stream.
Tensor gumbel_noise(const RandomBits& bits, std::int64_t rows, std::int64_t columns);

/// i32 (rows): the column of the largest scores + noise of each row; both are (rows, columns).
Tensor sample(const Tensor& scores, const Tensor& noise);

/// softmax((scores + noise) / temperature) of each row.
Tensor relaxed(const Tensor& scores, const Tensor& noise, double temperature);

struct RelaxedGradients {
  Tensor dscores;       // (rows, columns)
  double dtemperature;  // one number: the temperature is the same for all
};
/// The gradients of relaxed(), given the gradient dy of whatever is computed from it.
RelaxedGradients relaxed_backward(const Tensor& scores, const Tensor& noise, double temperature, const Tensor& dy);

}  // namespace sinkhorn::lesson
