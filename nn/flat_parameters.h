// A model's parameters in one flat buffer per kind, so that optimizer, global norm and checkpoint are one pass each.
#pragma once
#include <string>
#include <vector>

#include "nn/module.h"

namespace sinkhorn {

/// Moves the parameters of a module into flat buffers and points each at its slice. The module must outlive it, and may
/// not be moved. All buffers have the parameters' dtype and one element per scalar.
class FlatParameters {
 public:
  struct Entry {
    std::string name;
    Parameter* parameter;
    std::int64_t begin, end;  // elements of the flat buffers
  };

  template <class Module>
  explicit FlatParameters(Module& module) {
    for_each_parameter(module, [this](const std::string& name, Parameter& parameter) {
      const std::int64_t begin = entries_.empty() ? 0 : entries_.back().end;
      entries_.push_back({name, &parameter, begin, begin + parameter.value.count()});
    });
    adopt();
  }

  const std::vector<Entry>& entries() const { return entries_; }
  std::int64_t count() const { return entries_.empty() ? 0 : entries_.back().end; }
  const Entry* find(std::string_view name) const;

  /// The slice of a flat buffer that belongs to an entry, in its parameter's shape.
  Tensor slice_of(const Tensor& flat, const Entry& entry) const;
  void zero_gradients();
  /// Keeps a copy of the values in bf16, for mixed precision, and brings it up to date; memories, which are read as
  /// they are, have none.
  void round();

  Tensor values, gradients;
  Tensor first_moment, second_moment;  // of Adam; 0 at first
  Tensor rounded;                      // values in bf16; empty without mixed precision

 private:
  void adopt();
  std::vector<Entry> entries_;
};

}  // namespace sinkhorn
