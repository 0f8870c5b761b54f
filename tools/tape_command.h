// `sinkhorn tape`: forward and backward through a small model, one node at a time.
#pragma once
#include <iosfwd>
#include <string>

#include "models/fields.h"
#include "notebooks/kit/drawing.h"
#include "tools/raw_terminal.h"
#include "tools/tape_walk.h"

namespace sinkhorn {

/// The steps of a walk: one for each node forward, then one for each backward. Which one is shown, and what a key does.
class TapeStepper {
 public:
  explicit TapeStepper(TapeWalk walk) : walk_(std::move(walk)) {}

  int steps() const { return int(walk_.nodes.size()) + walk_.root + 1; }
  int step() const { return step_; }
  bool is_backward(int step) const { return step >= int(walk_.nodes.size()); }
  /// The node that the step is about.
  int node_at(int step) const;

  /// False once the program should end: q, Escape, Ctrl-C.
  bool press(const Key& key);
  /// 0, or 130 after Ctrl-C.
  int exit_code() const { return exit_code_; }

  /// One step as lines of text; values take at most `most_rows` lines each.
  std::string picture(const drawing::Style& style, int step, int most_rows = 12) const;
  /// The step that is shown, with what the keys do.
  std::string screen(const drawing::Style& style, int rows) const;
  /// Everything: a table of the nodes, all steps, and the memory kept over them.
  std::string everything(const drawing::Style& style) const;

  const TapeWalk& walk() const { return walk_; }

 private:
  std::string forward(const drawing::Style& style, int node, int most_rows) const;
  std::string backward(const drawing::Style& style, int node, int most_rows) const;
  std::string input_list(int node) const;
  void jump();

  TapeWalk walk_;
  int step_ = 0;
  std::string typed_;  // digits of the node to go to
  std::string note_;
  int exit_code_ = 0;
};

/// Nodes, forward steps and backward steps as JSON.
std::string to_json(const TapeWalk& walk);

struct TapeOptions {
  std::string example = "line";
  bool all = false;
  std::string dot = {}, svg = {}, json = {};  // files to write, - is the standard output
};
/// The table of options; its slots point into `options`.
Fields fields(TapeOptions& options);

/// Steps through the example on a terminal, or prints all of it where there is none, or writes the files asked for.
/// Returns the exit code: 0, or 130 after Ctrl-C. A UsageError for an unknown example, a DataError for a file that
/// cannot be written.
int tape_command(const TapeOptions& options, std::ostream& out);

}  // namespace sinkhorn
