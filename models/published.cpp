#include "models/published.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "models/weights.h"

namespace sinkhorn::published {
namespace {

constexpr std::string_view token_table = "to_token_emb.weight";

/// A name inside the stack: "...layers.layers.{block}.{slot}.{rest}", slot 0 or 1, or f.net or g.net where reversible.
struct StackName {
  std::string stack, slot, rest;
  std::int64_t block;
};

std::optional<StackName> parse(const std::string& name) {
  for (const auto& [stack, slots] : {std::pair<std::string, std::vector<std::string>>{"layers.layers.", {"0", "1"}},
                                     {"layers.blocks.", {"f.net", "g.net"}}}) {
    const std::size_t at = name.find(stack);
    if (at == std::string::npos) continue;
    const std::size_t digits = at + stack.size();
    std::int64_t block = 0;
    const auto [end, error] = std::from_chars(name.data() + digits, name.data() + name.size(), block);
    if (error != std::errc{} || end == name.data() + name.size() || *end != '.') continue;
    const std::string left(end + 1, name.data() + name.size());
    for (const std::string& slot : slots)
      if (left.starts_with(slot + "."))
        return StackName{name.substr(0, digits), slot, left.substr(slot.size() + 1), block};
  }
  return std::nullopt;
}

/// The names under which the package lists shared tensors again, each with the name that carries it. Sublayers of one
/// kind share one module: the first of them that has it, and those that have a norm or a scale alone.
std::map<std::string, std::string> tied_names(const std::vector<std::string>& names, const ModelConfig& config) {
  std::map<std::string, std::string> tied;
  if (!config.weight_tie) return tied;
  const std::int64_t period = config.receives_context ? 2 : 1;  // self and cross blocks alternate
  struct Kind {
    std::set<std::int64_t> blocks;
    std::map<std::int64_t, std::vector<std::string>> modules;  // block -> what its module holds
  };
  std::map<std::string, Kind> kinds;
  for (const std::string& name : names) {
    const auto part = parse(name);
    if (!part) continue;
    const bool feed_forward = part->slot == "1" || part->slot == "g.net", self = part->block % period == 0;
    if (feed_forward && self && config.has_pkm(part->block / period)) continue;  // never shared
    Kind& kind = kinds[part->stack + "*." + part->slot + "/" + std::to_string(part->block % period)];
    kind.blocks.insert(part->block);
    if (part->rest.starts_with("fn.")) kind.modules[part->block].push_back(part->rest);
  }
  for (const auto& [key, kind] : kinds) {
    if (kind.modules.empty()) continue;
    const std::string stack = key.substr(0, key.find('*')),
                      slot = key.substr(stack.size() + 2, key.find('/') - stack.size() - 2);
    const auto& [owner, module] = *kind.modules.begin();
    for (const std::int64_t block : kind.blocks)
      for (const std::string& rest : module)
        if (block != owner)
          tied[stack + std::to_string(block) + "." + slot + "." + rest] =
              stack + std::to_string(owner) + "." + slot + "." + rest;
  }
  return tied;
}

/// The axis that counts the buckets of max_seq_len; -1 for tensors without one.
int length_axis(std::string_view name) {
  if (name.ends_with("axial_pos_emb.weights_0")) return 1;
  return name.ends_with("sort_net.linear") ? 3 : -1;
}

/// The package rounds max_seq_len down to whole buckets where we round up (rule 13).
Shape shape_in_package(const std::string& name, const Shape& ours, const ModelConfig& config) {
  const int axis = length_axis(name);
  if (axis < 0 || config.max_seq_len % config.bucket_size == 0) return ours;
  return ours.with(axis, ours[axis] - 1);
}

/// Copies the common part of two tensors that differ along `axis` alone.
void copy_along(const Tensor& from, const Tensor& to, int axis) {
  const std::int64_t outer = from.shape().product(0, axis);
  if (outer == 0) return;
  const std::size_t from_row = from.bytes() / std::size_t(outer), to_row = to.bytes() / std::size_t(outer);
  for (std::int64_t i = 0; i < outer; ++i)
    std::copy_n(from.raw() + std::size_t(i) * from_row, std::min(from_row, to_row), to.raw() + std::size_t(i) * to_row);
}

/// Why a tensor that is no parameter can be left out; empty if it cannot.
std::string reason_to_ignore(const safetensors::Entry& entry, const std::string& prefix) {
  using safetensors::Type;
  if (!entry.name.starts_with(prefix)) return "not under the prefix: no part of this model";
  switch (entry.type) {
    case Type::F64:
    case Type::F32:
    case Type::F16:
    case Type::BF16:
      return "";
    case Type::BOOL:
      return "a mask: a buffer that the package makes again, as the model here does";
    default:
      return "whole numbers: a buffer of ids or a counter; every parameter is a fraction";
  }
}

}  // namespace

std::string find_prefix(const safetensors::File& file) {
  std::vector<std::string> prefixes;
  for (const safetensors::Entry& entry : file.entries)
    if (entry.name == token_table || entry.name.ends_with("." + std::string(token_table)))
      prefixes.push_back(entry.name.substr(0, entry.name.size() - token_table.size()));
  if (prefixes.empty())
    fail<DataError>(file.path, ": holds no tensor ", token_table,
                    ", so no language model of the package sinkhorn_transformer; ",
                    file.entries.empty() ? "it is empty" : "its first tensor is " + file.entries.front().name);
  if (prefixes.size() > 1) {
    std::string all;
    for (const std::string& prefix : prefixes) all += (all.empty() ? "'" : ", '") + prefix + "'";
    fail<DataError>(file.path, ": holds ", prefixes.size(), " models; choose one with --prefix: ", all);
  }
  return prefixes.front();
}

std::string origin_of(const std::string& prefix) {
  static const std::map<std::string, std::string> known = {
      {"net.", "a wrapper such as Autopadder"},
      {"net.net.", "AutoregressiveWrapper, and the Autopadder in it"},
      {"module.", "DataParallel"},
      {"module.net.net.", "DataParallel, AutoregressiveWrapper, and the Autopadder in it"},
      {"model.", "the training program's model"},
      {"_orig_mod.", "torch.compile"},
      {"param.", "a reference file"},
  };
  const auto found = known.find(prefix);
  return found == known.end() ? "" : found->second;
}

void refuse_batch_norm(const safetensors::File& file, const std::string& prefix) {
  for (const safetensors::Entry& entry : file.entries)
    if (entry.name.starts_with(prefix) && entry.name.ends_with("norm.running_mean"))
      fail<DataError>(file.path, ": ", entry.name,
                      " is of a product-key memory that normalises its queries with BatchNorm, whose statistics reach "
                      "over batch and time and let training see the future; here it is a LayerNorm, so these weights "
                      "cannot be used: train the model anew");
}

Matching match(const safetensors::File& file, const std::string& prefix, SinkhornTransformerLM& model) {
  Matching result;
  std::map<std::string, Parameter*> parameters;
  std::vector<std::string> names;
  for_each_parameter(model, [&](const std::string& name, Parameter& parameter) {
    parameters[name] = &parameter;
    names.push_back(name);
  });
  const std::map<std::string, std::string> tied = tied_names(names, model.config());
  // A shared tensor may be listed under any of its names, or under all of them.
  std::map<std::string, std::string> carrier;
  for (const std::string& name : names)
    if (file.find(prefix + name)) carrier[name] = name;
  for (const auto& [alias, name] : tied)
    if (file.find(prefix + alias)) carrier.emplace(name, alias);

  for (const safetensors::Entry& entry : file.entries) {
    Match match{&entry, Fate::unknown, "", nullptr};
    const std::string name = entry.name.starts_with(prefix) ? entry.name.substr(prefix.size()) : "";
    const auto alias = tied.find(name);
    const std::string owner = alias == tied.end() ? name : alias->second;
    const auto own = parameters.find(owner);
    if (name.empty() || own == parameters.end()) {
      match.note = reason_to_ignore(entry, prefix);
      match.fate = match.note.empty() ? Fate::unknown : Fate::ignored;
    } else if (const std::string& first = carrier.at(owner); first != name) {
      match.fate = Fate::tied;
      match.note = "the same as " + first + ", with which it is tied";
      const safetensors::Entry& other = file.require(prefix + first);
      if (other.type != entry.type || other.shape != entry.shape ||
          !std::ranges::equal(file.bytes(other), file.bytes(entry)))
        result.differences.push_back(entry.name + " differs from " + other.name +
                                     ", with which weight_tie ties it; set weight_tie = false");
    } else {
      const Shape ours = own->second->value.shape(), theirs = shape_in_package(owner, ours, model.config());
      // Entries have at most max_rank axes, as shapes do.
      const Shape shape(entry.shape);
      match.parameter = own->second;
      match.fate = shape == ours ? Fate::used : Fate::appended;
      if (match.fate == Fate::appended && shape == theirs)
        match.note =
            "max_seq_len is no multiple of bucket_size: what the last, partial bucket needs is drawn from N(0, 1)";
      if (shape != ours && shape != theirs) {
        std::ostringstream line;
        line << "tensor " << entry.name << " is " << shape << ", the model's is " << theirs;
        result.differences.push_back(line.str());
      }
    }
    result.tensors.push_back(match);
  }
  for (const std::string& name : names)
    if (!carrier.contains(name)) result.missing.push_back(name);
  return result;
}

void load(const safetensors::File& file, const Matching& matching, const Rng& rng) {
  std::uint32_t stream = 0;
  for (const Match& match : matching.tensors) {
    if (match.parameter == nullptr) continue;
    const Tensor& into = match.parameter->value;
    const Tensor loaded = read_tensor(file, *match.entry, into.dtype());
    const std::vector<double> numbers = loaded.to_vector();
    if (!std::ranges::all_of(numbers, [](double x) { return std::isfinite(x); }))
      fail<DataError>(file.path, ": tensor ", match.entry->name, " holds a value that is not finite in ", into.dtype(),
                      "; these weights are of no use");
    if (match.fate == Fate::used) {
      std::copy_n(loaded.raw(), loaded.bytes(), into.raw());
    } else {
      const Tensor drawn = normal(rng.split(stream++), into.shape(), 0, 1, into.dtype());
      std::copy_n(drawn.raw(), drawn.bytes(), into.raw());
      copy_along(loaded, into, length_axis(match.entry->name));
    }
  }
}

std::vector<std::pair<std::string, Tensor>> tensors_of(SinkhornTransformerLM& model) {
  std::vector<std::pair<std::string, Tensor>> tensors;
  std::vector<std::string> names;
  std::map<std::string, Tensor> values;
  for_each_parameter(model, [&](const std::string& name, const Parameter& parameter) {
    const Shape ours = parameter.value.shape(), theirs = shape_in_package(name, ours, model.config());
    Tensor value = parameter.value;
    if (theirs != ours) {
      value = parameter.value.like(theirs);
      copy_along(parameter.value, value, length_axis(name));
    }
    names.push_back(name);
    values[name] = value;
    tensors.emplace_back(name, value);
  });
  for (const auto& [alias, name] : tied_names(names, model.config())) tensors.emplace_back(alias, values.at(name));
  return tensors;
}

}  // namespace sinkhorn::published
