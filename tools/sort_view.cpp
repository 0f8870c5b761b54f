#include "tools/sort_view.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>
#include <ostream>

#include "autograd/error.h"
#include "autograd/parallel.h"
#include "models/durable_file.h"
#include "tools/read_file.h"
#include "tools/sort_picture.h"

namespace sinkhorn {
namespace {

using drawing::Style;
using drawing::Tone;

constexpr int kLeastColumns = 40, kLeastRows = 14;
constexpr std::array kTemperatures = {0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75,
                                      0.9,  1.0,  1.25, 1.5,  2.0,  3.0, 4.0,  5.0, 7.0, 10., 20., 50., 100.};

double warmer(double temperature) {
  const auto next = std::upper_bound(kTemperatures.begin(), kTemperatures.end(), temperature * (1 + 1e-9));
  return next == kTemperatures.end() ? temperature : *next;
}

double colder(double temperature) {
  const auto next = std::lower_bound(kTemperatures.begin(), kTemperatures.end(), temperature * (1 - 1e-9));
  return next == kTemperatures.begin() ? temperature : *std::prev(next);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

/// The first `columns` code points of a text, without control characters.
std::string cut(const std::string& text, int columns) {
  std::string result;
  int used = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte & 0xC0) != 0x80 && ++used > columns) break;
    result += byte < 0x20 || byte == 0x7F ? '?' : c;
  }
  return result;
}

/// Blocks beside each other, with a gap between them.
std::vector<std::string> beside(const std::vector<std::string>& left, int left_width, const std::string& gap,
                                const std::vector<std::string>& right) {
  std::vector<std::string> lines;
  lines.reserve(std::max(left.size(), right.size()));
  for (std::size_t i = 0; i < std::max(left.size(), right.size()); ++i) {
    std::string line = i < left.size() ? left[i] : "";
    if (i < right.size()) line = drawing::pad_right(line, left_width) + gap + right[i];
    lines.push_back(line);
  }
  return lines;
}

int widest(const std::vector<std::string>& lines) {
  int columns = 0;
  for (const std::string& line : lines) columns = std::max(columns, drawing::width(line));
  return columns;
}

/// A heat map apart from the line below it that tells its scale.
struct Map {
  std::vector<std::string> lines;
  std::string scale;  // "0 .. 0.93; each cell is the mean of 2 x 2"
};

Map map_of(const Style& style, int columns, int rows, const Tensor& matrix, std::optional<double> low,
           std::optional<double> high, const std::string& label) {
  Style narrow = style;
  narrow.columns = columns;
  const std::string drawn = drawing::heat_map(narrow, matrix,
                                              {.low = low,
                                               .high = high,
                                               .row_label = "r",
                                               .column_label = cut(label, columns - 4),
                                               .most_rows = std::max(1, rows - 1)});
  const std::size_t legend = drawn.find("rows: r; ");
  Map map{lines_of(drawn.substr(0, drawn.rfind('\n', legend))), {}};
  bool escape = false;
  for (const char c : drawn.substr(legend + 9)) {
    if (c == '\x1b') escape = true;
    if (!escape) map.scale += c == '\n' ? ' ' : c;
    if (c == 'm') escape = false;
  }
  while (map.scale.ends_with(' ')) map.scale.pop_back();
  return map;
}

/// The largest finite entry of a matrix, and the least.
std::pair<double, double> range_of(const Tensor& matrix) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const double x : matrix.to_vector()) {
    if (!std::isfinite(x)) continue;
    low = std::min(low, x);
    high = std::max(high, x);
  }
  return low > high ? std::pair(0.0, 0.0) : std::pair(low, high);
}

/// Items after each other, as many to a line as fit.
std::vector<std::string> flow(const std::vector<std::string>& items, int columns) {
  std::vector<std::string> lines;
  for (const std::string& item : items) {
    if (!lines.empty() && drawing::width(lines.back()) + 2 + drawing::width(item) <= columns)
      lines.back() += "  " + item;
    else
      lines.push_back(item);
  }
  return lines;
}

std::vector<std::string> keys_of(const Style& style, const SortSource& source, const SortHead& head) {
  if (style.columns < 70) return {"? help", "q quit"};
  std::vector<std::string> keys;
  if (!head.by_top_k) keys.emplace_back(style.unicode ? "←/→ iteration" : "h/l iteration");
  keys.emplace_back("+/- temperature");
  if (!head.by_top_k) keys.insert(keys.end(), {"n new noise", "N noise on/off", "c causal"});
  if (source.model) keys.insert(keys.end(), {"[ ] head", "{ } layer"});
  keys.insert(keys.end(), {"s save SVG", "? help", "q quit"});
  return keys;
}

std::string help_text(const Style& style) {
  return drawing::wrap(
      style,
      "Rows are query buckets, columns are key buckets. The darker a cell, the larger the share of that key bucket in "
      "what the query bucket gets to see.\n\n"
      "  left right, h l  iteration\n"
      "  Home End, 0 G    the first, the last\n"
      "  + -  temperature: low is decided\n"
      "  n    new Gumbel noise\n"
      "  N    noise on and off\n"
      "  c    causal mask on and off\n"
      "  [ ]  head of a checkpoint\n"
      "  { }  layer of a checkpoint\n"
      "  s    save all iterations as SVG\n"
      "  q, Esc, Ctrl-C   quit\n\n"
      "An iteration divides every row by its sum, then every column by its own. In the end both sums are 1: each query "
      "bucket gets one bucket's worth, each key bucket is given away once.\n\n"
      "Any key goes back.");
}

/// One sentence about what stands there.
std::string meaning(const SortSource& source, const SortState& state, const SortHead& head) {
  const SortSetting& now = state.setting;
  if (source.model && state.iteration == source.model->iterations && !now.noise && !now.causal &&
      now.temperature == source.model->temperature)
    return "The model stops here: this is the matrix it sorts with.";
  if (state.iteration == 0)
    return std::string("Nothing is divided yet: exp(") + (now.noise ? "(scores + noise)" : "scores") +
           " / temperature), the largest entry set to 1.";
  if (now.causal)
    return "No query sees a later bucket. The only such matrix whose sums are all 1 is the identity. So causal models "
           "route by top-k instead.";
  if (head.open && std::count(head.open.data<bool>(), head.open.data<bool>() + head.open.count(), false) > 0)
    return "Key buckets without a token stay 0. The rows share what the others give.";
  return "Columns were divided last, so their sums are 1. The rows come closer with each iteration.";
}

std::string number_of(double error) { return drawing::number(error, 3); }

}  // namespace

std::string describe(const SortHead& head, const SortSetting& setting) {
  std::string temperature = "temperature " + drawing::number(setting.temperature);
  if (head.by_top_k) return temperature;
  return fmt::format("{}, noise {}, causal mask {}", temperature,
                     setting.noise ? fmt::format("on (draw {})", setting.draw + 1) : "off",
                     setting.causal ? "on" : "off");
}

std::string place_name(const SortSource& source, const SortState& state) {
  if (!source.model) return {};
  const SortLayer& layer = source.layers[state.layer];
  const SortHead& head = layer.heads[state.head];
  return fmt::format("{}, head {} of {}{}", layer.name, head.number,
                     layer.local_heads + std::int64_t(layer.heads.size()), head.rotated ? " (rotated)" : "");
}

SortState pressed(const SortState& state, const Key& key, const SortSource& source) {
  using Kind = Key::Kind;
  SortState next = state;
  next.note.clear();
  if (key.kind == Kind::interrupt || key.kind == Kind::closed) {
    next.exit_code = 130;
    return next;
  }
  if (key.kind == Kind::none || key.kind == Kind::redraw) return state;
  if (state.help && !key.is('q')) {
    next.help = false;
    return next;
  }
  const SortHead& head = source.layers[state.layer].heads[state.head];
  const auto sorts_with_sinkhorn = [&](const char* what) {
    if (head.by_top_k) next.note = fmt::format("This head routes by top-k, which has no {}.", what);
    return !head.by_top_k;
  };
  const auto to_iteration = [&](std::int64_t iteration) {
    if (sorts_with_sinkhorn("iterations")) next.iteration = std::clamp<std::int64_t>(iteration, 0, state.iterations);
  };
  const auto to_head = [&](std::size_t layer, std::size_t position) {
    next.layer = layer;
    next.head = std::min(position, source.layers[layer].heads.size() - 1);
  };
  const std::size_t layers = source.layers.size(), heads = source.layers[state.layer].heads.size();
  switch (key.kind) {
    case Kind::left:
      to_iteration(state.iteration - 1);
      return next;
    case Kind::right:
      to_iteration(state.iteration + 1);
      return next;
    case Kind::home:
      to_iteration(0);
      return next;
    case Kind::end:
      to_iteration(state.iterations);
      return next;
    case Kind::escape:
      next.exit_code = 0;
      return next;
    case Kind::character:
      break;
    default:
      return next;
  }
  switch (key.character) {
    case 'h':
      to_iteration(state.iteration - 1);
      break;
    case 'l':
      to_iteration(state.iteration + 1);
      break;
    case '0':
      to_iteration(0);
      break;
    case 'G':
      to_iteration(state.iterations);
      break;
    case '+':
    case '=':
      next.setting.temperature = warmer(state.setting.temperature);
      break;
    case '-':
      next.setting.temperature = colder(state.setting.temperature);
      break;
    case 'n':
      if (!sorts_with_sinkhorn("noise")) break;
      if (state.setting.noise) ++next.setting.draw;
      next.setting.noise = true;
      break;
    case 'N':
      if (sorts_with_sinkhorn("noise")) next.setting.noise = !state.setting.noise;
      break;
    case 'c':
      if (head.by_top_k)
        next.note = "This head routes by top-k; its model says what it may see.";
      else if (head.scores.shape()[0] != head.scores.shape()[1])
        next.note = "The causal mask needs as many key buckets as query buckets.";
      else
        next.setting.causal = !state.setting.causal;
      break;
    case '[':
      to_head(state.layer, (state.head + heads - 1) % heads);
      if (!source.model) next.note = "These scores come from no model: there is one head.";
      break;
    case ']':
      to_head(state.layer, (state.head + 1) % heads);
      if (!source.model) next.note = "These scores come from no model: there is one head.";
      break;
    case '{':
      to_head((state.layer + layers - 1) % layers, state.head);
      if (layers == 1) next.note = "There is one layer with a sort net.";
      break;
    case '}':
      to_head((state.layer + 1) % layers, state.head);
      if (layers == 1) next.note = "There is one layer with a sort net.";
      break;
    case 's':
      next.save = true;
      break;
    case '?':
      next.help = true;
      break;
    case 'q':
      next.exit_code = 0;
      break;
    default:
      next.note = "That key does nothing here; ? shows those that do.";
  }
  const SortHead& shown = source.layers[next.layer].heads[next.head];
  if (shown.scores.shape()[0] != shown.scores.shape()[1]) next.setting.causal = false;
  return next;
}

SortView::SortView(SortSource source, const SortState& state) : source_(std::move(source)), state_(state) {}

void SortView::change(const SortState& state) {
  if (state.layer != state_.layer || state.head != state_.head || state.setting != state_.setting ||
      state.iterations != state_.iterations)
    steps_.reset();
  state_ = state;
}

SortSteps& SortView::steps() {
  if (!steps_) steps_ = std::make_unique<SortSteps>(head(), state_.setting, state_.iterations);
  return *steps_;
}

bool SortView::compute_one() { return !head().by_top_k && steps().compute_one(); }

std::string SortView::header(const Style& style) const {
  const std::string place = place_name(source_, state_);
  const std::string title =
      head().by_top_k ? "Routing by top-k: scores and chosen buckets"
                      : fmt::format("Sorting matrix, iteration {} of {}", state_.iteration, state_.iterations);
  std::string what = source_.name;
  if (!place.empty()) what = place + "  " + what;
  return drawing::paint(style, Tone::strong, cut(title, style.columns)) + "\n" + cut(what, style.columns) + "\n" +
         drawing::paint(style, Tone::accent, cut(describe(head(), state_.setting), style.columns)) + "\n";
}

std::vector<std::string> SortView::panel(const Style& style, int rows, const std::string& shades) {
  const SortErrors now = steps().errors(state_.iteration);
  std::vector<std::string> lines = {cut("largest |sum - 1|", style.columns), "  rows     " + number_of(now.rows),
                                    "  columns  " + number_of(now.columns)};
  const auto add = [&](const std::string& prose) {
    const std::vector<std::string> more = lines_of(drawing::wrap(style, prose));
    if (int(lines.size() + more.size()) + 1 > rows) return;
    lines.emplace_back();
    lines.insert(lines.end(), more.begin(), more.end());
  };
  add("shades: " + shades);
  add(meaning(source_, state_, head()));
  for (const std::string& remark : remarks_of(source_, head())) add(remark);
  const int height = std::min(rows - int(lines.size()) - 3, 7);
  if (height < 3) return lines;

  std::vector<double> curve;
  curve.reserve(steps().known_errors().size());
  for (const auto& errors : steps().known_errors())
    curve.push_back(errors && errors->rows > 0 ? std::round(10 * std::log10(errors->rows)) / 10
                                               : std::numeric_limits<double>::quiet_NaN());
  const std::vector<std::string> drawn = lines_of(drawing::curve(style, curve, height));
  lines.insert(lines.end(), {std::string(), drawing::paint(style, Tone::quiet, "log10 of the rows' error")});
  lines.insert(lines.end(), drawn.begin(), drawn.end());
  if (drawn.size() < 2) return lines;
  const std::string& first = drawn.front();
  const int side = drawing::width(first.substr(0, first.find(style.unicode ? "│" : "|"))) + 1;
  const auto points = std::int64_t(curve.size()), columns = std::min<std::int64_t>(points, style.columns - side - 1);
  lines.push_back(std::string(std::size_t(side + state_.iteration * columns / points), ' ') +
                  drawing::paint(style, Tone::accent, "^"));
  return lines;
}

std::string SortView::sinkhorn_body(const Style& style, int rows) {
  const Tensor& matrix = steps().matrix(state_.iteration);
  const bool wide = style.columns >= 70;
  constexpr int panel_width = 30;
  const int room = wide ? style.columns - panel_width - 3 : style.columns, below = wide ? 0 : 3;
  Map map = map_of(style, room, rows - below, matrix, 0.0, std::nullopt, "key buckets");
  Style narrow = style;
  if (wide) {
    const int left = widest(map.lines);
    narrow.columns = std::min(style.columns - left - 3, 44);
    return joined(beside(map.lines, left, "   ", panel(narrow, rows, map.scale)));
  }
  const SortErrors now = steps().errors(state_.iteration);
  map.lines.push_back(
      cut(fmt::format("|sum - 1|: rows {}, columns {}", number_of(now.rows), number_of(now.columns)), style.columns));
  for (const std::string& line : lines_of(drawing::wrap(style, "shades: " + map.scale))) map.lines.push_back(line);
  return joined(map.lines);
}

std::string SortView::top_k_body(const Style& style, int rows) const {
  const SortHead& shown = head();
  const SortChoice choice = choose_buckets(shown, state_.setting.temperature);
  const int room = (style.columns - 3) / 2;
  const auto [low, high] = range_of(shown.scores);
  const std::string columns = shown.nulls > 0
                                  ? fmt::format("{} null{}, then buckets", shown.nulls, shown.nulls == 1 ? "" : "s")
                                  : "key buckets";
  const Map scores = map_of(style, room, rows - 2, shown.scores, low, high, "scores: " + columns),
            weights = map_of(style, room, rows - 2, choice.matrix, 0.0, 1.0, "weights of the picks");
  std::vector<std::string> lines = beside(scores.lines, room, "   ", weights.lines);
  for (const std::string& line :
       lines_of(drawing::wrap(style, fmt::format("shades: scores {}, weights 0 .. 1", scores.scale))))
    lines.push_back(drawing::paint(style, Tone::quiet, line));
  for (const std::string& remark : remarks_of(source_, shown)) {
    const std::vector<std::string> more = lines_of(drawing::wrap(style, remark));
    if (int(lines.size() + more.size()) <= rows) lines.insert(lines.end(), more.begin(), more.end());
  }
  const std::vector<std::string> list = choice_lines(shown, choice);
  for (std::size_t i = 0; i < list.size() && int(lines.size()) < rows; ++i) {
    const bool last = int(lines.size()) + 1 == rows && i + 1 < list.size();
    lines.push_back(cut(last ? fmt::format("... and {} more", list.size() - i) : list[i], style.columns));
  }
  return joined(lines);
}

std::string SortView::render(const Style& style, int rows) {
  if (style.columns < kLeastColumns || rows < kLeastRows) {
    std::vector<std::string> lines = lines_of(drawing::wrap(
        style, fmt::format("The window has {} x {} characters; the viewer needs {} x {}. Make it larger. q quits.",
                           style.columns, rows, kLeastColumns, kLeastRows)));
    for (std::string& line : lines) line = cut(line, style.columns);
    if (int(lines.size()) > rows) lines.resize(std::size_t(rows));
    return joined(lines);
  }
  std::vector<std::string> lines;
  if (state_.help) {
    lines = lines_of(help_text(style));
    if (int(lines.size()) > rows) lines.resize(std::size_t(rows));
    return joined(lines);
  }
  std::vector<std::string> footer = {cut(state_.note, style.columns)};
  for (const std::string& line : flow(keys_of(style, source_, head()), style.columns))
    footer.push_back(drawing::paint(style, Tone::quiet, line));
  lines = lines_of(header(style));
  const int room = rows - int(lines.size() + footer.size());
  std::vector<std::string> body = lines_of(head().by_top_k ? top_k_body(style, room) : sinkhorn_body(style, room));
  if (int(body.size()) > room) body.resize(std::size_t(room));
  lines.insert(lines.end(), body.begin(), body.end());
  lines.insert(lines.end(), footer.begin(), footer.end());
  return joined(lines);
}

Fields fields(SortViewOptions& o) {
  return {
      {"buckets", &o.buckets, between(1, 1024), "size of a matrix of random scores"},
      {"seed", &o.seed, at_least(0), "of random scores and noise"},
      {"scores", &o.scores, anything(), "text file with a square matrix of log scores, one row a line; - reads stdin"},
      {"checkpoint", &o.checkpoint, anything(), "checkpoint file, or a run's folder, whose best one is taken"},
      {"prompt", &o.prompt, anything(), "text that the checkpoint's model reads"},
      {"text", &o.text, anything(), "file with that text; - reads standard input"},
      {"layer", &o.layer, at_least(0), "layer, from 1; 0 takes the first that has a sort net"},
      {"head", &o.head, at_least(0), "head, from 1; 0 takes the first that has a sort net"},
      {"part", &o.part, one_of({"auto", "encoder", "decoder", "cross"}),
       "of an encoder-decoder, cross for cross-attention; auto takes the first that has a sort net"},
      {"iterations", &o.iterations, between(1, 200), "how many to look at"},
      {"temperature", &o.temperature, between(0, 1000), "0 takes the checkpoint's, else 0.75"},
      {"noise", &o.noise, anything(), "add Gumbel noise, as training does"},
      {"causal", &o.causal, anything(), "close later buckets to earlier ones"},
      {"iteration", &o.iteration, between(0, 200), "print this one alone"},
      {"all", &o.all, anything(), "print all iterations, also on a terminal"},
      {"json", &o.json, anything(), "write matrices and errors to this file; - is standard output"},
      {"svg", &o.svg, anything(), "write one picture of all iterations"},
      {"html", &o.html, anything(), "write a page with a slider, which needs no network"},
      {"threads", &o.threads, between(0, 1024), "threads of the CPU backend; 0 takes all cores"},
  };
}

namespace {

void check(const SortViewOptions& o) {
  const auto refuse = [](const auto&... parts) { fail<UsageError>("sort-view: ", parts...); };
  if (!o.checkpoint.empty() && !o.scores.empty())
    refuse("--checkpoint and --scores exclude each other; give one of them");
  if (!o.text.empty() && !o.prompt.empty()) refuse("--text and --prompt exclude each other; give one of them");
  if (o.checkpoint.empty() && !(o.text.empty() && o.prompt.empty() && o.part == "auto" && o.layer == 0 && o.head == 0))
    refuse("--text, --prompt, --layer, --head and --part belong to a model; give --checkpoint too");
  if (!o.checkpoint.empty() && o.text.empty() && o.prompt.empty())
    refuse("--checkpoint needs something to read: give --prompt TEXT or --text FILE");
  if (o.temperature != 0 && o.temperature < 1e-3)
    refuse("--temperature ", o.temperature, " is too low; give at least 0.001, or 0 for the default");
  if (o.iteration && *o.iteration > o.iterations)
    refuse("--iteration ", *o.iteration, " is more than --iterations ", o.iterations, "; raise that too");
  if ((o.json == "-") + (o.svg == "-") + (o.html == "-") > 1)
    refuse("only one of --json, --svg and --html can go to standard output");
}

/// The state to begin with: a model's own settings where there is one.
SortState first_state(const SortViewOptions& o, const SortSource& source, const HeadPlace& place) {
  SortState state;
  state.layer = place.layer;
  state.head = place.head;
  const SortHead& head = source.layers[place.layer].heads[place.head];
  const double usual = source.model ? source.model->temperature : 0.75;
  state.setting = {o.temperature > 0 ? o.temperature : usual, o.noise, std::uint64_t(o.seed), 0, o.causal};
  state.iterations = o.iterations;
  if (source.model) state.iteration = std::min(source.model->iterations, o.iterations);
  const auto refuse = [&](const auto&... parts) {
    fail<UsageError>("sort-view: ", place_name(source, state), " ", parts...);
  };
  if (head.by_top_k && (o.noise || o.causal || o.iteration))
    refuse("routes by top-k, which has no ", o.noise    ? "noise; leave --noise out"
                                             : o.causal ? "mask to switch; leave --causal out"
                                                        : "iterations; leave --iteration out");
  if (o.causal && head.scores.shape()[0] != head.scores.shape()[1])
    refuse("has ", head.scores.shape()[0], " query buckets and ", head.scores.shape()[1],
           " key buckets; --causal needs as many");
  const double numbers = double(head.scores.count()) * double(o.iteration ? 1 : o.iterations + 1);
  if (const bool prints = o.all || !o.json.empty() || !o.svg.empty() || !o.html.empty(); prints && numbers > 1e8)
    fail<UsageError>("sort-view: ", o.iterations, " iterations of ", head.scores.shape(),
                     " are too many numbers; lower --iterations, or pick one with --iteration");
  return state;
}

void write_file(const std::string& path, const std::string& content) {
  const std::span<const std::byte> piece = std::as_bytes(std::span(content));
  write_durably(path, std::span(&piece, 1));
}

/// Writes what was asked for. True if there was something.
bool write_pictures(const SortViewOptions& o, const SortPicture& picture, std::ostream& out) {
  bool wrote = false;
  const auto put = [&](const std::string& path, std::string (*make)(const SortPicture&)) {
    if (path.empty()) return;
    wrote = true;
    if (path == "-") {
      out << make(picture);
      return;
    }
    write_file(path, make(picture));
    if (o.json != "-" && o.svg != "-" && o.html != "-")
      out << "wrote " << path << ": " << picture.source << ", " << picture.setting << "\n";
  };
  put(o.json, to_json);
  put(o.svg, to_svg);
  put(o.html, to_html);
  return wrote;
}

/// The first name of its kind that is free in this folder.
std::string free_name() {
  for (int i = 1;; ++i) {
    std::string name = fmt::format("sort-view-{}.svg", i);
    if (!std::filesystem::exists(name)) return name;
  }
}

void save_svg(SortView& view) {
  SortState state = view.state();
  state.save = false;
  try {
    const std::string name = free_name();
    write_file(name, to_svg(sort_picture(view.source(), state)));
    state.note = "Saved " + name + ".";
  } catch (const std::exception& error) {
    state.note = error.what();
  }
  view.change(state);
}

/// The picture follows the keys; while none comes the error curve is completed.
int show(SortView& view) {
  RawTerminal terminal;
  Style style = drawing::style_of_stdout();
  using Clock = std::chrono::steady_clock;
  auto drawn = Clock::time_point();
  const auto draw = [&] {
    const TerminalSize size = terminal.size();
    style.columns = std::min(size.columns, 120);
    terminal.draw(view.render(style, size.rows));
    drawn = Clock::now();
  };
  draw();
  bool computing = true, stale = false;
  while (!view.state().exit_code) {
    const Key key = terminal.read(computing ? 0 : -1);
    if (key.kind == Key::Kind::none) {
      computing = view.compute_one();
      stale = stale || computing;
      if (stale && (!computing || Clock::now() - drawn > std::chrono::milliseconds(100))) {
        draw();
        stale = false;
      }
      continue;
    }
    view.press(key);
    if (view.state().save) save_svg(view);
    computing = true;
    if (!view.state().exit_code) draw();
  }
  return *view.state().exit_code;
}

}  // namespace

int sort_view(const SortViewOptions& options, std::ostream& out) {
  check(options);
  if (options.threads > 0) set_threads(int(options.threads));
  HeadPlace place;
  SortSource source;
  if (!options.checkpoint.empty()) {
    const std::string text = options.text.empty() ? options.prompt : read_file(options.text, "--text");
    source = checkpoint_scores(options.checkpoint, text, options.text.empty() ? "--prompt" : "--text " + options.text,
                               {options.part, options.layer, options.head}, place);
  } else if (!options.scores.empty()) {
    source = parse_scores(read_file(options.scores, "--scores"), "--scores " + options.scores);
  } else {
    source = random_scores(options.buckets, std::uint64_t(options.seed));
  }
  // A path may hold what would move the cursor.
  std::replace_if(
      source.name.begin(), source.name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; }, '?');
  const SortState state = first_state(options, source, place);
  const bool pictures = !options.json.empty() || !options.svg.empty() || !options.html.empty();
  if (!pictures && !options.all && !options.iteration && RawTerminal::available()) {
    SortView view(std::move(source), state);
    return show(view);
  }
  const SortPicture picture = sort_picture(source, state, options.iteration);
  if (!write_pictures(options, picture, out)) out << to_text(picture, drawing::style_of_stdout());
  return 0;
}

}  // namespace sinkhorn
