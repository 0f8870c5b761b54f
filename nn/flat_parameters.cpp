#include "nn/flat_parameters.h"

#include <algorithm>

#include "autograd/memory.h"

namespace sinkhorn {

void FlatParameters::adopt() {
  if (entries_.empty()) fail("flat parameters: the module has none");
  const Tensor& first = entries_.front().parameter->value;
  auto zeros = [&] { return Tensor::zeros({count()}, first.dtype(), first.device()); };
  values = zeros();
  gradients = zeros();
  first_moment = zeros();
  second_moment = zeros();
  for (const Entry& entry : entries_) {
    Parameter& parameter = *entry.parameter;
    const Tensor place = slice_of(values, entry);
    place.assign(parameter.value);
    parameter.value = place;
    parameter.gradient = slice_of(gradients, entry);
  }
}

const FlatParameters::Entry* FlatParameters::find(std::string_view name) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.name == name; });
  return found == entries_.end() ? nullptr : &*found;
}

Tensor FlatParameters::slice_of(const Tensor& flat, const Entry& entry) const {
  return flat.slice(entry.begin, entry.end).reshape(entry.parameter->value.shape());
}

void FlatParameters::zero_gradients() { gradients.fill(0); }

void FlatParameters::round() {
  if (!rounded) {
    rounded = Tensor(values.shape(), DType::bf16, values.device());
    for (const Entry& entry : entries_)
      if (!entry.parameter->is_memory) entry.parameter->rounded = slice_of(rounded, entry);
  }
  const auto round_part = [&](std::int64_t begin, std::int64_t end) {
    dispatch(values, [&]<class T>(auto space) {
      kernels::Convert<T, bf16>::forward(space, end - begin, values.data<T>() + begin, rounded.data<bf16>() + begin);
    });
  };
  std::int64_t begin = 0;  // of what stands between two memories
  for (const Entry& entry : entries_) {
    if (!entry.parameter->is_memory) continue;
    if (begin < entry.begin) round_part(begin, entry.begin);
    begin = entry.end;
  }
  if (begin < count()) round_part(begin, count());
}

}  // namespace sinkhorn
