// Weights of the published PyTorch package: which tensor of a file is which parameter, and back.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "models/language_model.h"
#include "models/safetensors.h"

namespace sinkhorn::published {

/// What becomes of one tensor of a file.
enum class Fate {
  used,      // it is a parameter
  appended,  // it is the first part of a parameter whose table the package rounds down to whole buckets
  tied,      // a tied weight listed again, with the same bits
  ignored,   // no parameter: a buffer, or not under the prefix
  unknown    // under the prefix, of a parameter's type, and the model has no place for it
};

struct Match {
  const safetensors::Entry* entry = nullptr;
  Fate fate = Fate::unknown;
  std::string note;                // why, where that is not plain
  Parameter* parameter = nullptr;  // used, appended
};

/// A file beside a model.
struct Matching {
  std::vector<Match> tensors;            // all of the file, in its order
  std::vector<std::string> missing;      // names of parameters without a tensor
  std::vector<std::string> differences;  // one line for each tensor of another shape, or tied and not equal
};

/// What stands before the package's names, such as "net.net." of a wrapped and padded model: that before the only
/// `to_token_emb.weight`. Throws DataError where there is none (a foreign file) or more than one.
std::string find_prefix(const safetensors::File& file);
/// What put a prefix there, for messages; empty if that is not known.
std::string origin_of(const std::string& prefix);

/// Throws DataError, with the reason, if a product-key memory in the file normalises with BatchNorm.
void refuse_batch_norm(const safetensors::File& file, const std::string& prefix);

/// Finds each parameter's tensor. Changes nothing; the result points into file and model.
Matching match(const safetensors::File& file, const std::string& prefix, SinkhornTransformerLM& model);

/// Copies what `match` found into the parameters, in their dtype; appended parts are drawn from N(0, 1), as the package
/// initialises these tables. Throws DataError for a value that the dtype does not hold, or that is not finite.
void load(const safetensors::File& file, const Matching& matching, const Rng& rng);

/// The model's parameters under the package's names and in its shapes, tied ones under every name it lists.
std::vector<std::pair<std::string, Tensor>> tensors_of(SinkhornTransformerLM& model);

}  // namespace sinkhorn::published
