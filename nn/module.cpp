#include "nn/module.h"

namespace sinkhorn {

Tensor InjectedNoise::of(const Rng& stream, Shape shape, DType dtype) {
  std::size_t i = std::find(streams_.begin(), streams_.end(), stream.key()) - streams_.begin();
  if (i == streams_.size()) streams_.push_back(stream.key());
  if (i >= arrays_.size()) fail("noise: array ", i, " is asked for, but only ", arrays_.size(), " are given");
  if (arrays_[i].shape() != shape) fail("noise: array ", i, " is ", arrays_[i].shape(), ", expected ", shape);
  return arrays_[i].to(dtype);
}

}  // namespace sinkhorn
