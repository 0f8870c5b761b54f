// What sort nets choose from: scores at random, from a file, or of every head of a checkpoint reading a text.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "autograd/tensor.h"

namespace sinkhorn {

/// What one head's sort net makes of one sequence: N query buckets (rows) look for M key buckets (columns).
struct SortHead {
  std::int64_t number = 1;  // among the heads of its layer, from 1
  bool rotated = false;     // sees its sequence rotated, so that buckets begin one token before their end
  bool by_top_k = false;    // routes by the differentiable top-k; else by Gumbel-Sinkhorn
  /// Gumbel-Sinkhorn: log scores (N, M), before noise and temperature. Top-k: scores (N, nulls + M), -inf where closed.
  Tensor scores;
  Tensor open = {};                    // Gumbel-Sinkhorn: which key buckets hold a token, bool (M); none: all
  Tensor picks = {}, weights = {};     // top-k: what the model chose (N, n)
  Tensor matrix = {};                  // Gumbel-Sinkhorn: what the model computed (N, M)
  std::int64_t nulls = 0, shared = 0;  // columns before the key buckets; SortCut: rows that all query buckets share
};

/// One attention layer, with the heads that have a sort net.
struct SortLayer {
  std::string name;         // "layer 1 of 4"
  std::string part;         // of an encoder-decoder: "encoder", "decoder" or "cross"
  std::int64_t number = 1;  // from 1, within its part
  std::int64_t local_heads = 0;
  std::vector<SortHead> heads;
};

/// The settings with which a model itself sorts.
struct SortModel {
  double temperature = 0.75;
  std::int64_t iterations = 5;
};

struct SortSource {
  std::string name;                  // what is shown
  std::vector<std::string> remarks;  // sentences that a user should know
  std::vector<SortLayer> layers;     // at least one, each with at least one head
  std::optional<SortModel> model;    // of a checkpoint
};

/// Log scores (buckets, buckets), drawn from N(0, 1) in f64.
SortSource random_scores(std::int64_t buckets, std::uint64_t seed);

/// Log scores from text: a row a line, numbers parted by spaces, tabs, commas or semicolons; # begins a comment. Throws
/// DataError, beginning with `where`, naming the line, if the text is no square matrix of at most 1024 rows of numbers
/// between -1e6 and 1e6.
SortSource parse_scores(const std::string& text, const std::string& where);

/// Which head of a checkpoint to begin with. 0 and "auto" take the first that has a sort net.
struct HeadChoice {
  std::string part = "auto";  // of an encoder-decoder: "encoder", "decoder" or "cross"
  std::int64_t layer = 0, head = 0;
};

/// Where a choice stands in a source.
struct HeadPlace {
  std::size_t layer = 0, head = 0;
};

/// Runs the model of a checkpoint over `text` in evaluation and keeps what its sort nets compute. A model of a task
/// reads the text as a source, followed by its right answer. `where` names the text in errors. Throws DataError for
/// what cannot be read and UsageError for a model without sort nets or a choice that it does not have.
SortSource checkpoint_scores(const std::string& checkpoint, const std::string& text, const std::string& where,
                             const HeadChoice& choice, HeadPlace& place);

}  // namespace sinkhorn
