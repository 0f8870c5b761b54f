// All iterations of a sorting matrix, or the routing of a top-k head, as text, JSON, SVG or a page.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "notebooks/kit/drawing.h"
#include "tools/sort_view.h"

namespace sinkhorn {

/// One matrix to draw.
struct SortFrame {
  std::string name;  // "iteration 3", "scores", "weights"
  Tensor values;     // (rows, columns); -inf: closed
  std::optional<SortErrors> errors = {};
  std::int64_t iteration = -1;
};

struct SortPicture {
  std::string source, place, setting;  // what, which head, how
  std::vector<std::string> remarks;
  SortHead head;
  SortSetting settings;
  SortChoice choice;  // of a top-k head
  std::vector<SortFrame> frames;
};

/// All iterations 0 .. state.iterations, or `only` one of them; of a top-k head its scores and its weights.
SortPicture sort_picture(const SortSource& source, const SortState& state, std::optional<std::int64_t> only = {});

/// Sentences about a head that a user should know: what it is, what its columns are.
std::vector<std::string> remarks_of(const SortSource& source, const SortHead& head);
/// One line a query bucket: "query 3   null 1 0.52   bucket 1 0.48".
std::vector<std::string> choice_lines(const SortHead& head, const SortChoice& choice);

/// Heat maps under each other, then the errors as a table.
std::string to_text(const SortPicture& picture, const drawing::Style& style);
/// One object: "source", "setting", and "iterations" with "iteration", "row_error", "column_error" and "matrix"; or
/// "scores" (null: closed), "picks", "weights".
std::string to_json(const SortPicture& picture);
/// Small multiples with the curves of the errors. Matrices of more than 48 rows or columns are averaged.
std::string to_svg(const SortPicture& picture);
/// One page with its data and script inside: a slider over the matrices, values under the pointer. More than 128 rows
/// or columns are averaged.
std::string to_html(const SortPicture& picture);

/// The mean of groups of equal size, so that at most `most` rows and columns are left; and the size.
struct Averaged {
  Tensor values;
  std::int64_t group = 1;
};
Averaged averaged(const Tensor& matrix, std::int64_t most);

}  // namespace sinkhorn
