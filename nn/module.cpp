#include "nn/module.h"

namespace sinkhorn {

Tensor InjectedNoise::of(const Rng& stream, Shape shape, DType dtype) {
  std::size_t i = std::find(streams_.begin(), streams_.end(), stream.key()) - streams_.begin();
  if (i == streams_.size()) streams_.push_back(stream.key());
  if (i >= arrays_.size()) fail("noise: array ", i, " is asked for, but only ", arrays_.size(), " are given");
  if (arrays_[i].shape() != shape) fail("noise: array ", i, " is ", arrays_[i].shape(), ", expected ", shape);
  return arrays_[i].to(dtype);
}

void lay_together(std::span<Parameter* const> parameters, Device device) {
  if (parameters.empty()) return;
  std::int64_t count = 0;
  for (const Parameter* parameter : parameters) count += parameter->value.count();
  const Tensor all({count}, parameters[0]->value.dtype(), device);
  std::int64_t begin = 0;
  for (Parameter* parameter : parameters) {
    const std::int64_t end = begin + parameter->value.count();
    const Tensor place = all.slice(begin, end).reshape(parameter->value.shape());
    place.assign(parameter->value);
    parameter->value = place;
    begin = end;
  }
}

}  // namespace sinkhorn
