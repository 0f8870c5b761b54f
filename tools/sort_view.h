// `sinkhorn sort-view`: the sorting matrix, iteration by iteration, on a terminal under the user's keys or as a file.
#pragma once
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>

#include "models/fields.h"
#include "notebooks/kit/drawing.h"
#include "tools/raw_terminal.h"
#include "tools/sort_steps.h"

namespace sinkhorn {

struct SortViewOptions {
  std::int64_t buckets = 16, seed = 1;
  std::string scores;  // file with a matrix
  std::string checkpoint, text, prompt;
  std::string part = "auto";
  std::int64_t layer = 0, head = 0;
  std::int64_t iterations = 20;
  double temperature = 0;  // 0: the checkpoint's, else 0.75
  bool noise = false, causal = false, all = false;
  std::optional<std::int64_t> iteration = {};
  std::string json, svg, html;
  std::int64_t threads = 0;
};
/// The table of options; its slots point into `options`.
Fields fields(SortViewOptions& options);

/// Shows, prints or writes the matrices. Returns the exit code; errors are thrown.
int sort_view(const SortViewOptions& options, std::ostream& out);

/// What the keys change.
struct SortState {
  std::size_t layer = 0, head = 0;  // places in the source's lists
  std::int64_t iteration = 0, iterations = 20;
  SortSetting setting;
  bool help = false;
  bool save = false;                  // an SVG file is asked for
  std::optional<int> exit_code = {};  // set: the viewer ends with it
  std::string note;                   // what the last key did, where the picture does not show it
};

/// The state after a key. Temperatures move along a ladder from 0.01 to 100.
SortState pressed(const SortState& state, const Key& key, const SortSource& source);

/// A source, the state, and what was computed for it.
class SortView {
 public:
  SortView(SortSource source, const SortState& state);
  SortView(const SortView&) = delete;  // what is computed points into the source

  const SortSource& source() const { return source_; }
  const SortState& state() const { return state_; }
  void press(const Key& key) { change(pressed(state_, key, source_)); }
  void change(const SortState& state);
  /// The picture, at most `style.columns` wide and `rows` lines high; a request for a larger window below 40 x 14.
  std::string render(const drawing::Style& style, int rows);
  /// Computes a little of what the error curve still lacks; false if it lacks nothing.
  bool compute_one();

 private:
  const SortHead& head() const { return source_.layers[state_.layer].heads[state_.head]; }
  SortSteps& steps();
  std::string header(const drawing::Style& style) const;
  std::string sinkhorn_body(const drawing::Style& style, int rows);
  std::string top_k_body(const drawing::Style& style, int rows) const;
  std::vector<std::string> panel(const drawing::Style& style, int rows, const std::string& shades);

  SortSource source_;
  SortState state_;
  std::unique_ptr<SortSteps> steps_;  // of the present head and setting
};

/// "temperature 0.75, noise off, causal mask off"; a top-k head has a temperature alone.
std::string describe(const SortHead& head, const SortSetting& setting);
/// "layer 1 of 4, head 3 (rotated)"; empty for scores that come from no model.
std::string place_name(const SortSource& source, const SortState& state);

}  // namespace sinkhorn
