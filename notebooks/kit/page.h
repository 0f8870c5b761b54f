// What a walk-through writes on: steps of prose, numbers, pictures and quoted source, shown one at a time or all at
// once.
#pragma once
#include <fmt/format.h>

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "autograd/tensor.h"
#include "notebooks/kit/drawing.h"

namespace sinkhorn::lessons {

/// The lines of a source file from the only one that holds `anchor` (a string that begins with it does not count) to
/// the end of what begins there: the line on which its brackets close and a `;` or `}` ends. So text quotes code that
/// exists. A DataError if the file cannot be read or no line, or more than one, holds the anchor.
std::string quote(const std::filesystem::path& file, std::string_view anchor);

/// `{{FILE: ANCHOR}}` on a line of its own becomes that quotation, indented by two spaces and broken to fit into
/// `columns`; FILE is a path from the root.
std::string with_quotes(std::string_view text, const std::filesystem::path& root, int columns = 80);

class Page {
 public:
  struct Step {
    std::string title, body;
  };
  /// Thrown through the walk-through when the reader leaves.
  struct Left {};

  /// `root`: the folder that holds autograd/, nn/, ...; `seen` gets each step when it is complete, and says whether to
  /// go on.
  Page(drawing::Style style, std::filesystem::path root, std::function<bool(const Step&)> seen)
      : style_(style), root_(std::move(root)), seen_(std::move(seen)) {}

  /// Begins a step.
  void step(std::string_view title);
  /// Prose, wrapped; empty lines part paragraphs, lines that begin with two spaces stay as they are.
  void text(std::string_view prose);
  /// The same with values put in: text("the sum is {}", 3).
  template <class First, class... Rest>
  void text(fmt::format_string<First, Rest...> prose, First&& first, Rest&&... rest) {
    text(std::string_view(fmt::format(prose, std::forward<First>(first), std::forward<Rest>(rest)...)));
  }
  /// What `drawing` made: lines that stay as they are.
  void picture(std::string_view lines);
  /// A name and the elements of a tensor.
  void values(std::string_view name, const Tensor& tensor, int digits = 4);
  /// Source from the repository, see quote().
  void code(std::string_view file, std::string_view anchor);
  /// Hands the last step over. Called by whoever called the walk-through.
  void finish();

  const drawing::Style& style() const { return style_; }

 private:
  void gap();

  drawing::Style style_;
  std::filesystem::path root_;
  std::function<bool(const Step&)> seen_;
  Step step_;
};

}  // namespace sinkhorn::lessons
