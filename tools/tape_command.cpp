#include "tools/tape_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <ostream>
#include <sstream>

#include "models/durable_file.h"
#include "tools/progress.h"
#include "tools/tape_graph.h"

namespace sinkhorn {
namespace {

using drawing::paint;
using drawing::Style;
using drawing::Tone;

/// "4 B", "1,024 B".
std::string bytes_text(std::size_t bytes) { return grouped(std::int64_t(bytes)) + " B"; }

/// The finite values of a tensor in a few numbers.
struct Summary {
  explicit Summary(const Tensor& tensor) {
    double sum = 0;
    for (const double x : tensor.to_vector()) {
      if (!std::isfinite(x)) {
        ++not_finite;
        continue;
      }
      low = std::min(low, x);
      high = std::max(high, x);
      sum += x;
      ++finite;
    }
    mean = finite > 0 ? sum / double(finite) : 0;
  }
  std::int64_t finite = 0, not_finite = 0;
  double low = std::numeric_limits<double>::infinity(), high = -low, mean = 0;
};

std::string summary_text(const Tensor& tensor) {
  const Summary summary(tensor);
  if (summary.finite == 0) return "no finite value";
  std::string text = fmt::format("{} to {}, mean {}", drawing::number(summary.low, 3), drawing::number(summary.high, 3),
                                 drawing::number(summary.mean, 3));
  if (summary.not_finite > 0) text += fmt::format(", {} not finite", summary.not_finite);
  return text;
}

/// Numbers where they are few, else shades; nothing where there is no room.
std::string tensor_picture(const Style& style, const Tensor& tensor, int most_rows) {
  if (most_rows < 1) return "";
  Style inside = style;
  inside.columns -= 2;
  const Shape& shape = tensor.shape();
  if (tensor.count() <= 48) return drawing::indented(drawing::values(inside, tensor, 4, most_rows));
  const Tensor matrix = shape.rank() > 2 ? tensor.reshape({-1, shape[-1]}) : tensor;
  drawing::HeatMap map;
  map.most_rows = most_rows;
  return drawing::indented(drawing::heat_map(inside, matrix, map));
}

/// A text behind its label, later lines below the first.
std::string labelled(const Style& style, std::string_view label, const std::string& text) {
  constexpr int indent = 9;
  Style inside = style;
  inside.columns -= indent;
  std::istringstream lines(drawing::wrap(inside, text));
  std::string result, line;
  while (std::getline(lines, line)) {
    result += drawing::pad_right(result.empty() ? label : std::string_view(), indent) + line + "\n";
  }
  return result;
}

/// The shape, the range and the values; one number stands in the line itself.
std::string described(const Style& style, std::string_view label, const std::string& what, const Tensor& tensor,
                      int most_rows) {
  if (tensor.count() == 1) return labelled(style, label, what + ": " + drawing::number(tensor.to_vector()[0]));
  return labelled(style, label, what + ": " + summary_text(tensor)) + tensor_picture(style, tensor, most_rows);
}

/// "to_q.weight (8, 8)" behind its number.
std::string named(const TapeWalk& walk, int node) {
  return fmt::format("#{} {} {}", node, walk.title(node), text_of(walk.nodes[std::size_t(node)].info.shape));
}

std::string kept_text(const TapeWalk& walk, int node, const TapeWalk::Kept& kept) {
  const std::string size =
      fmt::format("{} {}, {}", text_of(kept.tensor.shape), text_of(kept.tensor.dtype), bytes_text(kept.tensor.bytes));
  if (kept.value_of == node) return "its own value: " + size;
  if (kept.value_of >= 0) return fmt::format("the value of #{} {}: {}", kept.value_of, walk.title(kept.value_of), size);
  const std::vector<int>& inputs = walk.nodes[std::size_t(node)].info.inputs;
  const bool has_constant = std::find(inputs.begin(), inputs.end(), -1) != inputs.end();
  return (has_constant ? "a constant, or numbers of its own: " : "numbers of its own: ") + size;
}

std::string memory_bar(const Style& style, const TapeWalk& walk, std::size_t bytes) {
  std::size_t most = 1;
  for (const TapeWalk::Node& node : walk.nodes) most = std::max(most, node.kept_after_forward);
  const int room = std::max(8, std::min(40, style.columns - 40));
  const auto filled = int(std::lround(double(bytes) / double(most) * room));
  std::string bar, rest;
  for (int i = 0; i < room; ++i)
    (i < filled ? bar : rest) += i < filled ? (style.unicode ? "█" : "#") : (style.unicode ? "·" : ".");
  return paint(style, Tone::accent, bar) + paint(style, Tone::quiet, rest) + " " + bytes_text(bytes);
}

nlohmann::json extents(const Shape& shape) {
  auto list = nlohmann::json::array();
  for (const std::int64_t extent : shape.extents()) list.push_back(extent);
  return list;
}

/// Shape, range and, of a small tensor, the values; NaN and infinity are null.
nlohmann::json summary_json(const Tensor& tensor) {
  constexpr std::int64_t most = 64;
  if (!tensor) return nullptr;
  const Summary summary(tensor);
  nlohmann::json json = {{"shape", extents(tensor.shape())},
                         {"dtype", text_of(tensor.dtype())},
                         {"not_finite", summary.not_finite},
                         {"min", summary.finite > 0 ? nlohmann::json(summary.low) : nlohmann::json()},
                         {"max", summary.finite > 0 ? nlohmann::json(summary.high) : nlohmann::json()},
                         {"mean", summary.finite > 0 ? nlohmann::json(summary.mean) : nlohmann::json()}};
  if (tensor.count() <= most) json["values"] = tensor.to_vector();
  return json;
}

}  // namespace

int TapeStepper::node_at(int step) const {
  const auto nodes = int(walk_.nodes.size());
  return step < nodes ? step : walk_.root - (step - nodes);
}

bool TapeStepper::press(const Key& key) {
  using Kind = Key::Kind;
  note_.clear();
  if (key.kind == Kind::character && key.character >= U'0' && key.character <= U'9') {
    if (typed_.size() < 6) typed_ += char(key.character);
    return true;
  }
  if (key.kind == Kind::redraw || key.kind == Kind::none) return true;
  const bool goes_on =
      key.kind == Kind::enter || key.kind == Kind::right || key.kind == Kind::down || key.is(U' ') || key.is(U'n');
  if (key.kind == Kind::enter && !typed_.empty()) {
    jump();
    return true;
  }
  if (key.kind == Kind::backspace && !typed_.empty()) {
    typed_.pop_back();
    return true;
  }
  const bool was_typing = !typed_.empty();
  typed_.clear();
  if (key.kind == Kind::interrupt) exit_code_ = 130;
  if (key.kind == Kind::interrupt || key.kind == Kind::closed || key.is(U'q')) return false;
  if (key.kind == Kind::escape) return was_typing;
  if (goes_on) {
    if (step_ + 1 < steps())
      ++step_;
    else
      note_ = "That was the last step; the tape keeps nothing any more.";
  } else if (key.kind == Kind::left || key.kind == Kind::up || key.kind == Kind::backspace || key.is(U'b')) {
    step_ = std::max(0, step_ - 1);
  } else if (key.kind == Kind::home) {
    step_ = 0;
  } else if (key.kind == Kind::end) {
    step_ = steps() - 1;
  } else if (key.is(U'f')) {
    step_ = int(walk_.nodes.size()) - 1;
  } else {
    note_ = "That key does nothing here.";
  }
  return true;
}

// To the node's step in the direction that is shown.
void TapeStepper::jump() {
  const int node = std::stoi(typed_);
  typed_.clear();
  const auto nodes = int(walk_.nodes.size());
  const int last = is_backward(step_) ? walk_.root : nodes - 1;
  if (node > last)
    note_ = fmt::format("There is no node {} here; they are 0 to {}.", node, last);
  else
    step_ = is_backward(step_) ? nodes + walk_.root - node : node;
}

std::string TapeStepper::input_list(int node) const {
  const TapeWalk::Node& shown = walk_.nodes[std::size_t(node)];
  std::vector<std::string> parts;
  parts.reserve(shown.info.inputs.size());
  for (const int input : shown.info.inputs) parts.push_back(input < 0 ? "a constant" : named(walk_, input));
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string TapeStepper::forward(const Style& style, int node, int most_rows) const {
  const TapeWalk::Node& shown = walk_.nodes[std::size_t(node)];
  std::string text;
  if (!shown.is_leaf()) text += labelled(style, "of", input_list(node));
  text +=
      described(style, "value", text_of(shown.info.shape) + " " + text_of(shown.value.dtype()), shown.value, most_rows);
  if (!shown.is_leaf() && shown.kept.empty())
    text += labelled(style, "keeps", "nothing: backward needs the incoming gradient alone");
  for (std::size_t i = 0; i < shown.kept.size(); ++i)
    text += labelled(style, i == 0 ? "keeps" : "", kept_text(walk_, node, shown.kept[i]));
  return text + labelled(style, "memory", memory_bar(style, walk_, shown.kept_after_forward));
}

std::string TapeStepper::backward(const Style& style, int node, int most_rows) const {
  const TapeWalk::Node& shown = walk_.nodes[std::size_t(node)];
  std::string text;
  if (!shown.incoming) {
    text += labelled(style, "arrives", "nothing: the loss does not depend on this node");
  } else {
    const std::string what =
        shown.is_leaf() ? "d loss / d " + walk_.title(node) : "d loss / d #" + std::to_string(node);
    text += described(style, "arrives", what + " " + text_of(shown.incoming.shape()), shown.incoming, most_rows);
  }
  int sources = 0;
  for (const TapeWalk::Node& other : walk_.nodes)
    for (const TapeWalk::Flow& flow : other.flows) sources += flow.to == node;
  if (sources > 1)
    text += labelled(style, "", fmt::format("the sum of {} flows, as the value was used {} times", sources, sources));
  for (const TapeWalk::Flow& flow : shown.flows) {
    const bool is_same = flow.tensor.raw() == shown.incoming.raw() && flow.tensor.shape() == shown.incoming.shape();
    if (is_same)
      text += labelled(style, "flows", "to " + named(walk_, flow.to) + ": the same, unchanged");
    else
      text += described(style, "flows", "to " + named(walk_, flow.to), flow.tensor, most_rows);
  }
  if (const auto constants = std::count(shown.info.inputs.begin(), shown.info.inputs.end(), -1); constants > 0)
    text += labelled(style, "",
                     constants == 1 ? "nothing flows to the constant input"
                                    : fmt::format("nothing flows to the {} constant inputs", constants));
  if (shown.info.kept_bytes > 0) text += labelled(style, "frees", bytes_text(shown.info.kept_bytes));
  return text + labelled(style, "memory", memory_bar(style, walk_, shown.kept_after_backward));
}

std::string TapeStepper::picture(const Style& style, int step, int most_rows) const {
  const int node = node_at(step);
  const auto nodes = int(walk_.nodes.size());
  const bool back = is_backward(step);
  const TapeWalk::Node& shown = walk_.nodes[std::size_t(node)];
  const std::string kind = shown.is_leaf() && !shown.label.empty() ? " (leaf)" : "";
  const std::string head =
      fmt::format("{} {} of {}   #{} {}{}", back ? "backward" : "forward", back ? step - nodes + 1 : step + 1,
                  back ? walk_.root + 1 : nodes, node, walk_.title(node), kind);
  return paint(style, Tone::strong, head) + "\n" +
         (back ? backward(style, node, most_rows) : forward(style, node, most_rows));
}

std::string TapeStepper::screen(const Style& style, int rows) const {
  const std::string keys = "Enter next   b back   f run forward   0-9 Enter: to that node   q quit";
  // Every tensor gets as many lines as fit; its description and a legend take one each, everything else eleven.
  const TapeWalk::Node& shown = walk_.nodes[std::size_t(node_at(step_))];
  const int tensors = 1 + (is_backward(step_) ? int(shown.flows.size()) : 0);
  const int room = (rows - 11 - int(shown.kept.size()) * !is_backward(step_)) / tensors - 2;
  const int most_rows = room < 2 ? 0 : std::min(room, 24);
  std::string text = drawing::wrap(style, walk_.example + ": " + walk_.purpose) + "\n";
  text += picture(style, step_, most_rows);
  if (!note_.empty()) text += "\n" + note_ + "\n";
  if (!typed_.empty()) text += "\nto node " + typed_ + "_  (Enter)\n";
  const auto used = int(std::count(text.begin(), text.end(), '\n'));
  text += std::string(std::size_t(std::max(1, rows - 1 - used)), '\n');
  return text + paint(style, Tone::quiet, keys);
}

std::string TapeStepper::everything(const Style& style) const {
  std::string text = drawing::wrap(style, walk_.example + ": " + walk_.purpose) + "\n";
  std::vector<std::vector<std::string>> rows;
  rows.reserve(walk_.nodes.size());
  for (std::size_t i = 0; i < walk_.nodes.size(); ++i) {
    const NodeInfo& info = walk_.nodes[i].info;
    std::string inputs;
    for (const int input : info.inputs)
      inputs += (inputs.empty() ? "" : " ") + (input < 0 ? std::string("-") : std::to_string(input));
    rows.push_back({fmt::format("#{}", i), walk_.title(int(i)), text_of(info.shape), inputs,
                    std::to_string(info.kept_bytes), std::to_string(walk_.nodes[i].kept_after_forward)});
  }
  text += drawing::table(style, {"node", "name", "shape", "inputs", "keeps", "total"}, rows);
  text += "\n" + drawing::wrap(
                     style,
                     "keeps: bytes for backward; total: of all nodes up to this one. A tensor that several nodes keep "
                     "counts for each of them, though they share its memory. An input \"-\" is a constant.");
  std::vector<double> memory;
  for (int step = 0; step < steps(); ++step) {
    if (step == int(walk_.nodes.size()))
      text += "\n" + paint(style, Tone::strong, "Now backward, from the loss.") + "\n";
    text += "\n" + picture(style, step);
    const TapeWalk::Node& shown = walk_.nodes[std::size_t(node_at(step))];
    memory.push_back(double(is_backward(step) ? shown.kept_after_backward : shown.kept_after_forward));
  }
  return text + "\nBytes kept, step by step: memory falls as backward rises.\n" + drawing::curve(style, memory, 6);
}

std::string to_json(const TapeWalk& walk) {
  auto nodes = nlohmann::json::array(), forward = nlohmann::json::array(), backward = nlohmann::json::array();
  for (std::size_t i = 0; i < walk.nodes.size(); ++i) {
    const TapeWalk::Node& node = walk.nodes[i];
    auto kept = nlohmann::json::array();
    for (const TapeWalk::Kept& each : node.kept)
      kept.push_back({{"shape", extents(each.tensor.shape)},
                      {"dtype", text_of(each.tensor.dtype)},
                      {"bytes", each.tensor.bytes},
                      {"value_of", each.value_of >= 0 ? nlohmann::json(each.value_of) : nlohmann::json()}});
    auto inputs = nlohmann::json::array();
    for (const int input : node.info.inputs) inputs.push_back(input >= 0 ? nlohmann::json(input) : nlohmann::json());
    nodes.push_back({{"index", i},
                     {"name", node.info.name},
                     {"label", node.label},
                     {"shape", extents(node.info.shape)},
                     {"inputs", inputs},
                     {"kept", kept},
                     {"kept_bytes", node.info.kept_bytes},
                     {"value", summary_json(node.value)},
                     {"gradient", summary_json(node.incoming)}});
    forward.push_back({{"node", i}, {"kept_bytes", node.kept_after_forward}});
  }
  for (int i = walk.root; i >= 0; --i) {
    const TapeWalk::Node& node = walk.nodes[std::size_t(i)];
    auto flows = nlohmann::json::array();
    for (const TapeWalk::Flow& flow : node.flows)
      flows.push_back({{"input", flow.input}, {"to", flow.to}, {"gradient", summary_json(flow.tensor)}});
    backward.push_back({{"node", i},
                        {"kept_bytes_before", node.kept_before_backward},
                        {"kept_bytes", node.kept_after_backward},
                        {"flows", flows}});
  }
  const nlohmann::json json = {{"example", walk.example}, {"purpose", walk.purpose}, {"loss", walk.root},
                               {"nodes", nodes},          {"forward", forward},      {"backward", backward}};
  return json.dump(2) + "\n";
}

Fields fields(TapeOptions& o) {
  std::vector<std::string> names;
  names.reserve(tape_examples().size());
  for (const TapeExample& example : tape_examples()) names.push_back(example.name);
  return {
      {"example", &o.example, anything(), fmt::format("what to walk through: {}", fmt::join(names, ", "))},
      {"all", &o.all, anything(), "print every step, also on a terminal"},
      {"dot", &o.dot, anything(), "file for the graph in Graphviz's language; - is the standard output"},
      {"svg", &o.svg, anything(), "file for the graph as a picture; - is the standard output"},
      {"json", &o.json, anything(), "file for all numbers; - is the standard output"},
  };
}

namespace {

/// Writes what was asked for. True if there was something.
bool write_files(const TapeOptions& options, const TapeWalk& walk, std::ostream& out) {
  struct File {
    std::string path;
    std::string (*make)(const TapeWalk&);
  };
  const std::vector<File> files = {{options.dot, to_dot}, {options.svg, to_svg}, {options.json, to_json}};
  const auto to_out = std::count_if(files.begin(), files.end(), [](const File& file) { return file.path == "-"; });
  if (to_out > 1) fail<UsageError>("tape: only one of --dot, --svg and --json can be -, the standard output");
  bool wrote = false;
  for (const File& file : files) {
    if (file.path.empty()) continue;
    wrote = true;
    const std::string content = file.make(walk);
    if (file.path == "-") {
      out << content;
      continue;
    }
    const std::span<const std::byte> piece = std::as_bytes(std::span(content));
    write_durably(file.path, std::span(&piece, 1));
    if (to_out == 0) out << fmt::format("wrote {}: the tape of {}\n", file.path, walk.example);
  }
  return wrote;
}

int show(TapeStepper stepper) {
  RawTerminal terminal;
  Style style = drawing::style_of_stdout();
  do {
    const TerminalSize size = terminal.size();
    style.columns = std::clamp(size.columns, 40, 120);
    terminal.draw(stepper.screen(style, size.rows));
  } while (stepper.press(terminal.read(-1)));
  return stepper.exit_code();
}

}  // namespace

int tape_command(const TapeOptions& options, std::ostream& out) {
  TapeWalk walk = walk_tape(find_tape_example(options.example));
  if (write_files(options, walk, out)) return 0;
  TapeStepper stepper(std::move(walk));
  if (!options.all && RawTerminal::available()) return show(std::move(stepper));
  out << stepper.everything(drawing::style_of_stdout());
  return 0;
}

}  // namespace sinkhorn
