// Parameters from and to safetensors files, by the published package's names.
#pragma once
#include "models/safetensors.h"
#include "nn/module.h"

namespace sinkhorn {

/// The elements of one entry of a file as a tensor, converted to `dtype` (to the nearest value). DataError for a
/// fraction as i32, or an integer that i32 does not hold.
Tensor read_tensor(const safetensors::File& file, const safetensors::Entry& entry, DType dtype);

/// What a tensor is called in a file: its type and its extents. The item holds the elements, copied if they lie on
/// another device.
safetensors::Type file_type(DType dtype);
safetensors::Item to_item(std::string name, const Tensor& tensor);

/// Loads `into` from the entry `name`, converting to its dtype. DataError naming file and tensor if it is missing or
/// has another shape.
void load_parameter(const safetensors::File& file, const std::string& name, Parameter& into);

/// Loads every parameter of a module from `prefix` + its name. Entries of the file under `prefix` that no parameter
/// took are a DataError naming the first, and so is a parameter without an entry.
template <class Module>
void load_parameters(const safetensors::File& file, const std::string& prefix, Module& module) {
  std::vector<std::string> taken;
  for_each_parameter(module, [&](const std::string& name, Parameter& parameter) {
    load_parameter(file, prefix + name, parameter);
    taken.push_back(prefix + name);
  });
  for (const safetensors::Entry& entry : file.entries)
    if (entry.name.starts_with(prefix) && std::find(taken.begin(), taken.end(), entry.name) == taken.end())
      fail<DataError>(file.path, ": tensor ", entry.name,
                      " belongs to no parameter of the model; is the config another one?");
}

}  // namespace sinkhorn
