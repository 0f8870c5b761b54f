#include "models/weights.h"

#include <algorithm>
#include <limits>

namespace sinkhorn {

Tensor read_tensor(const safetensors::File& file, const safetensors::Entry& entry, DType dtype) {
  const Shape shape(entry.shape);
  if (is_floating(dtype)) return Tensor::from(safetensors::as_f64(file, entry), shape).to(dtype);
  const std::vector<std::int64_t> values = safetensors::as_i64(file, entry);
  Tensor result(shape, dtype);
  if (dtype == DType::boolean) {
    std::transform(values.begin(), values.end(), result.data<bool>(), [](std::int64_t x) { return x != 0; });
    return result;
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i] < std::numeric_limits<std::int32_t>::min() || values[i] > std::numeric_limits<std::int32_t>::max())
      fail<DataError>(file.path, ": tensor ", entry.name, ": ", values[i], " does not fit in 32 bits");
    result.data<std::int32_t>()[i] = std::int32_t(values[i]);
  }
  return result;
}

safetensors::Type file_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return safetensors::Type::F32;
    case DType::f64:
      return safetensors::Type::F64;
    case DType::bf16:
      return safetensors::Type::BF16;
    case DType::i32:
      return safetensors::Type::I32;
    case DType::boolean:
      return safetensors::Type::BOOL;
  }
  fail("file_type: no such dtype");
}

safetensors::Item to_item(std::string name, const Tensor& tensor) {
  const auto extents = tensor.shape().extents();
  const auto here = std::make_shared<Tensor>(tensor.to(Device::cpu));
  return {
      std::move(name), file_type(tensor.dtype()), {extents.begin(), extents.end()}, {here->raw(), here->bytes()}, here};
}

void load_parameter(const safetensors::File& file, const std::string& name, Parameter& into) {
  const safetensors::Entry& entry = file.require(name);
  if (Shape(entry.shape) != into.value.shape())
    fail<DataError>(file.path, ": tensor ", name, " is ", Shape(entry.shape), ", the model's is ", into.value.shape(),
                    "; is the config another one?");
  into.value.assign(read_tensor(file, entry, into.value.dtype()));
}

}  // namespace sinkhorn
