#include "tools/sort_picture.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tools/xml.h"

namespace sinkhorn {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kMostSvgCells = 48, kMostHtmlCells = 128;

Json number_or_null(double x) { return std::isfinite(x) ? Json(x) : Json(); }

Json rows_of(const Tensor& matrix) {
  const std::int64_t rows = matrix.shape()[0], columns = matrix.shape()[1];
  const std::vector<double> values = matrix.to_vector();
  Json list = Json::array();
  for (std::int64_t i = 0; i < rows; ++i) {
    Json row = Json::array();
    for (std::int64_t j = 0; j < columns; ++j) row.push_back(number_or_null(values[std::size_t(i * columns + j)]));
    list.push_back(std::move(row));
  }
  return list;
}

std::string dumped(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void add(const Tensor& matrix) {
    for (const double x : matrix.to_vector()) {
      if (!std::isfinite(x)) continue;
      low = std::min(low, x);
      high = std::max(high, x);
    }
  }
  double share(double x) const {
    if (!std::isfinite(x)) return 0;
    return high > low ? std::clamp((x - low) / (high - low), 0.0, 1.0) : x > 0 ? 1 : 0;
  }
};

/// The scale of a frame: iterations share one that begins at 0, but for iteration 0, whose largest entry is 1.
Range range_of(const std::vector<SortFrame>& frames, const std::vector<Averaged>& drawn, std::size_t frame) {
  Range range;
  const bool iterations = frames[frame].iteration >= 0;
  for (std::size_t i = 0; i < frames.size(); ++i)
    if (i == frame || (iterations && frames[frame].iteration > 0 && frames[i].iteration > 0))
      range.add(drawn[i].values);
  if (iterations || frames[frame].name == "weights") range.low = 0;
  if (range.low > range.high) range = {0, 1};
  return range;
}

std::vector<Averaged> averages(const std::vector<SortFrame>& frames, std::int64_t most) {
  std::vector<Averaged> drawn;
  drawn.reserve(frames.size());
  for (const SortFrame& frame : frames) drawn.push_back(averaged(frame.values, most));
  return drawn;
}

std::string group_note(const std::vector<Averaged>& drawn) {
  const std::int64_t by = drawn.front().group;
  return by > 1 ? fmt::format("Each cell is the mean of {} x {}.", by, by) : std::string();
}

std::string bucket_name(const SortHead& head, std::int32_t pick) {
  if (pick < 0) return "nothing";
  if (pick < head.nulls) return fmt::format("null {}", pick + 1);
  return fmt::format("bucket {}", pick - head.nulls);
}

}  // namespace

Averaged averaged(const Tensor& matrix, std::int64_t most) {
  const std::int64_t rows = matrix.shape()[0], columns = matrix.shape()[1],
                     by = (std::max(rows, columns) + most - 1) / most;
  if (by <= 1) return {matrix, 1};
  const std::int64_t few_rows = (rows + by - 1) / by, few_columns = (columns + by - 1) / by;
  std::vector<double> sums(std::size_t(few_rows * few_columns), 0), counts(sums);
  const std::vector<double> values = matrix.to_vector();
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j) {
      const auto at = std::size_t(i / by * few_columns + j / by);
      sums[at] += values[std::size_t(i * columns + j)];
      ++counts[at];
    }
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] /= counts[i];
  return {Tensor::from(sums, {few_rows, few_columns}), by};
}

std::vector<std::string> remarks_of(const SortSource& source, const SortHead& head) {
  std::vector<std::string> remarks = source.remarks;
  if (head.by_top_k)
    remarks.push_back(head.nulls > 0
                          ? "This causal head routes by the differentiable top-k, not by Gumbel-Sinkhorn: it "
                            "chooses among nulls and earlier buckets."
                          : "This head routes by the differentiable top-k, not by Gumbel-Sinkhorn.");
  if (head.rotated)
    remarks.emplace_back("It sees its sequence rotated left by bucket_size - 1 tokens; buckets count in that order.");
  if (head.shared > 0)
    remarks.push_back(fmt::format("SortCut: all query buckets share the first {} {}.", head.shared,
                                  head.by_top_k ? "choices" : "rows"));
  return remarks;
}

std::vector<std::string> choice_lines(const SortHead& head, const SortChoice& choice) {
  const std::int64_t rows = choice.picks.shape()[0], n = choice.picks.shape()[1];
  const std::vector<double> weights = choice.weights.to_vector();
  std::vector<std::string> lines;
  lines.reserve(std::size_t(rows));
  for (std::int64_t u = 0; u < rows; ++u) {
    std::string line = fmt::format("query {:<3}", u);
    for (std::int64_t i = 0; i < n; ++i)
      line += fmt::format("  {:<9} {:.2f}", bucket_name(head, choice.picks.data<std::int32_t>()[u * n + i]),
                          weights[std::size_t(u * n + i)]);
    lines.push_back(line);
  }
  return lines;
}

SortPicture sort_picture(const SortSource& source, const SortState& state, std::optional<std::int64_t> only) {
  const SortHead& head = source.layers[state.layer].heads[state.head];
  SortPicture picture;
  picture.source = source.name;
  picture.place = place_name(source, state);
  picture.setting = describe(head, state.setting);
  picture.remarks = remarks_of(source, head);
  picture.head = head;
  picture.settings = state.setting;
  if (head.by_top_k) {
    picture.choice = choose_buckets(head, state.setting.temperature);
    picture.frames = {{"scores", head.scores}, {"weights", picture.choice.matrix}};
    return picture;
  }
  SortSteps steps(head, state.setting, only ? *only : state.iterations);
  const std::int64_t first = only.value_or(0), last = only.value_or(state.iterations);
  picture.frames.reserve(std::size_t(last - first + 1));
  for (std::int64_t k = first; k <= last; ++k) {
    const Tensor matrix = steps.matrix(k);
    picture.frames.push_back({fmt::format("iteration {}", k), matrix, steps.errors(k), k});
  }
  return picture;
}

std::string to_text(const SortPicture& picture, const drawing::Style& style) {
  std::string text =
      drawing::wrap(style, "Sorting matrix of " + picture.source + (picture.place.empty() ? "" : ", " + picture.place));
  text += drawing::wrap(style, picture.setting);
  for (const std::string& remark : picture.remarks) text += drawing::wrap(style, remark);
  std::vector<std::vector<std::string>> table;
  for (const SortFrame& frame : picture.frames) {
    text += "\n" + drawing::paint(style, drawing::Tone::strong, frame.name);
    drawing::HeatMap map{.row_label = "query buckets", .column_label = "key buckets"};
    if (frame.errors) {
      const std::string rows = drawing::number(frame.errors->rows, 3),
                        columns = drawing::number(frame.errors->columns, 3);
      text += fmt::format("   largest |sum - 1|: rows {}, columns {}", rows, columns);
      table.push_back({std::to_string(frame.iteration), rows, columns});
    }
    if (frame.errors || frame.name == "weights") map.low = 0;
    if (picture.head.nulls > 0)
      map.column_label =
          fmt::format("{} null{}, then key buckets", picture.head.nulls, picture.head.nulls == 1 ? "" : "s");
    if (Range range; frame.name == "scores") {
      range.add(frame.values);
      map.low = range.low > range.high ? 0 : range.low;
      map.high = range.low > range.high ? 0 : range.high;
    }
    text += "\n" + drawing::heat_map(style, frame.values, map);
  }
  if (picture.head.by_top_k) {
    text += "\n";
    for (const std::string& line : choice_lines(picture.head, picture.choice)) text += line + "\n";
  } else if (table.size() > 1) {
    text += "\n" + drawing::table(style, {"iteration", "rows", "columns"}, table);
  }
  return text;
}

std::string to_json(const SortPicture& picture) {
  Json json;
  json["source"] = picture.source;
  if (!picture.place.empty()) json["place"] = picture.place;
  json["routing"] = picture.head.by_top_k ? "top-k" : "gumbel-sinkhorn";
  json["setting"]["temperature"] = picture.settings.temperature;
  if (picture.head.by_top_k) {
    json["nulls"] = picture.head.nulls;
    json["scores"] = rows_of(picture.head.scores);
    json["picks"] = rows_of(picture.choice.picks);
    for (Json& row : json["picks"])
      for (Json& pick : row) pick = std::int64_t(pick.get<double>());
    json["weights"] = rows_of(picture.choice.weights);
    return dumped(json) + "\n";
  }
  json["setting"]["noise"] = picture.settings.noise;
  json["setting"]["noise_draw"] = picture.settings.draw;
  json["setting"]["seed"] = picture.settings.seed;
  json["setting"]["causal"] = picture.settings.causal;
  json["rows"] = picture.head.scores.shape()[0];
  json["columns"] = picture.head.scores.shape()[1];
  json["iterations"] = Json::array();
  for (const SortFrame& frame : picture.frames) {
    Json one;
    one["iteration"] = frame.iteration;
    one["row_error"] = number_or_null(frame.errors->rows);
    one["column_error"] = number_or_null(frame.errors->columns);
    one["matrix"] = rows_of(frame.values);
    json["iterations"].push_back(std::move(one));
  }
  return dumped(json) + "\n";
}

namespace {

/// Points of a curve over the frames, on a log scale from 1e-16 to 1e2: "x,y x,y".
struct LogAxis {
  double left, top, width, height, low = -16, high = 2;
  std::size_t count;
  double y(double error) const {
    const double at = error > 0 ? std::clamp(std::log10(error), low, high) : low;
    return top + height * (high - at) / (high - low);
  }
  double x(std::size_t i) const { return left + (count > 1 ? width * double(i) / double(count - 1) : width / 2); }
};

std::string curve_of(const SortPicture& picture, const LogAxis& axis, double SortErrors::*which, const char* name) {
  std::string points;
  for (std::size_t i = 0; i < picture.frames.size(); ++i)
    points += fmt::format("{}{:.1f},{:.1f}", i ? " " : "", axis.x(i), axis.y((*picture.frames[i].errors).*which));
  std::string svg = fmt::format("<polyline class=\"{}\" points=\"{}\"/>\n", name, points);
  for (std::size_t i = 0; i < picture.frames.size(); ++i)
    svg += fmt::format(
        "<circle class=\"{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2\"><title>iteration {}: {} {:.3g}</title></circle>\n",
        name, axis.x(i), axis.y((*picture.frames[i].errors).*which), picture.frames[i].iteration, name,
        (*picture.frames[i].errors).*which);
  return svg;
}

std::string curves(const SortPicture& picture, double top, double width) {
  const LogAxis axis{60, top + 24, width - 80, 150, -16, 2, picture.frames.size()};
  std::string svg = fmt::format(
      "<text x=\"16\" y=\"{:.0f}\">largest |sum - 1|, log scale: <tspan class=\"t rows\">rows"
      "</tspan> and <tspan class=\"t columns\">columns</tspan></text>\n",
      top + 8);
  for (int power = -16; power <= 2; power += 6)
    svg += fmt::format(
        "<path class=\"grid\" d=\"M{:.0f} {:.1f}H{:.0f}\"/><text class=\"small\" x=\"54\" y=\"{:.1f}\" "
        "text-anchor=\"end\">1e{}</text>\n",
        axis.left, axis.y(std::pow(10, power)), axis.left + axis.width, axis.y(std::pow(10, power)) + 4, power);
  for (const std::size_t i : {std::size_t(0), picture.frames.size() - 1})
    svg += fmt::format("<text class=\"small\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n", axis.x(i),
                       axis.top + axis.height + 16, picture.frames[i].iteration);
  return svg + curve_of(picture, axis, &SortErrors::rows, "rows") +
         curve_of(picture, axis, &SortErrors::columns, "columns");
}

/// One path a shade keeps the file small: the cells of all entries that look alike.
std::string cells_of(const Tensor& matrix, const Range& range) {
  constexpr int shades = 16;
  std::array<std::string, shades + 1> paths;
  const std::int64_t rows = matrix.shape()[0], columns = matrix.shape()[1];
  const std::vector<double> values = matrix.to_vector();
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j)
      paths[std::size_t(std::lround(range.share(values[std::size_t(i * columns + j)]) * shades))] +=
          fmt::format("M{} {}h1v1h-1z", j, i);
  std::string svg = fmt::format("<rect class=\"ground\" width=\"{}\" height=\"{}\"/>", columns, rows);
  for (std::size_t shade = 1; shade < paths.size(); ++shade)
    if (!paths[shade].empty())
      svg += fmt::format("<path fill-opacity=\"{:.3g}\" d=\"{}\"/>", double(shade) / shades, paths[shade]);
  return svg;
}

}  // namespace

namespace {

/// What it is, how it was made, and what to know about it.
std::vector<std::string> head_of(const SortPicture& picture, const std::vector<Averaged>& drawn) {
  std::vector<std::string> head = {"Sorting matrix of " + picture.source,
                                   picture.place + (picture.place.empty() ? "" : ", ") + picture.setting};
  head.insert(head.end(), picture.remarks.begin(), picture.remarks.end());
  if (const std::string note = group_note(drawn); !note.empty()) head.push_back(note);
  return head;
}

std::vector<std::string> wrapped(const std::vector<std::string>& paragraphs, int columns) {
  std::vector<std::string> lines;
  for (const std::string& paragraph : paragraphs) {
    std::istringstream text(drawing::wrap({.columns = columns}, paragraph));
    for (std::string line; std::getline(text, line);) lines.push_back(line);
  }
  return lines;
}

}  // namespace

std::string to_svg(const SortPicture& picture) {
  const std::vector<Averaged> drawn = averages(picture.frames, kMostSvgCells);
  const bool with_curves = picture.frames.front().errors.has_value();
  const double side = picture.head.by_top_k ? 320 : 120, gap = 24, margin = 16;
  const std::size_t across = picture.head.by_top_k ? 2 : 6, count = picture.frames.size(),
                    down = (count + across - 1) / across;
  const double width = margin * 2 + double(across) * (side + gap) - gap;
  // A letter is about 7 wide.
  const std::vector<std::string> head = wrapped(head_of(picture, drawn), int((width - 2 * margin) / 7));
  const double top = margin + double(head.size()) * 20 + 8;
  const double bottom = top + double(down) * (side + 58), height = bottom + (with_curves ? 220 : 0);

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\" font-family=\"sans-serif\" font-size=\"13\">\n",
      width, height);
  svg += R"(<style>
svg { background: #fff; color: #222; --cell: #123a7a; --ground: #eef1f6; --rows: #c2410c; --columns: #2563eb; }
@media (prefers-color-scheme: dark) {
  svg { background: #16181d; color: #ddd; --cell: #9cc4ff; --ground: #23262e; --rows: #fb923c; --columns: #60a5fa; }
}
text { fill: currentColor; } .small { font-size: 11px; opacity: .8; } .ground { fill: var(--ground); }
path { fill: var(--cell); } .grid { stroke: currentColor; stroke-opacity: .2; fill: none; }
polyline { fill: none; stroke-width: 1.5; } polyline.rows { stroke: var(--rows); } polyline.columns { stroke: var(--columns); }
circle.rows, .t.rows { fill: var(--rows); } circle.columns, .t.columns { fill: var(--columns); }
</style>
)";
  for (std::size_t i = 0; i < head.size(); ++i)
    svg += fmt::format("<text x=\"{:.0f}\" y=\"{:.0f}\"{}>{}</text>\n", margin, margin + 4 + 20 * double(i),
                       i == 0 ? " font-weight=\"bold\"" : "", escaped_for_xml(head[i]));
  for (std::size_t i = 0; i < count; ++i) {
    const SortFrame& frame = picture.frames[i];
    const std::size_t column = i % across, row = i / across;
    const double x = margin + double(column) * (side + gap), y = top + double(row) * (side + 58);
    const Range range = range_of(picture.frames, drawn, i);
    const Tensor& cells = drawn[i].values;
    const double scale = side / double(std::max(cells.shape()[0], cells.shape()[1]));
    svg += fmt::format(
        "<g transform=\"translate({:.1f} {:.1f}) scale({:.4f})\" shape-rendering=\"crispEdges\"><title>{}, "
        "shades {:.3g} to {:.3g}</title>{}</g>\n",
        x, y, scale, escaped_for_xml(frame.name), range.low, range.high, cells_of(cells, range));
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", x, y + side + 14, escaped_for_xml(frame.name));
    if (!frame.errors) continue;
    svg += fmt::format("<text class=\"small\" x=\"{0:.1f}\" y=\"{1:.1f}\">rows {2:.2g}</text>\n", x, y + side + 28,
                       frame.errors->rows);
    svg += fmt::format("<text class=\"small\" x=\"{0:.1f}\" y=\"{1:.1f}\">columns {2:.2g}</text>\n", x, y + side + 41,
                       frame.errors->columns);
  }
  if (with_curves) svg += curves(picture, bottom + 8, width);
  return svg + "</svg>\n";
}

namespace {

constexpr const char* kPage = R"html(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sorting matrix</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #222; --cell: 18,58,122; --ground: #eef1f6; --rows: #c2410c; --columns: #2563eb; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181d; --ink: #ddd; --cell: 156,196,255; --ground: #23262e; --rows: #fb923c; --columns: #60a5fa; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.5 sans-serif; margin: 1.5rem auto; max-width: 46rem; padding: 0 1rem; }
h1 { font-size: 1.25rem; margin: 0; } p { margin: .3rem 0; }
canvas { display: block; width: 100%; max-width: 32rem; image-rendering: pixelated; margin: .6rem 0; }
input { width: 100%; max-width: 32rem; } svg { width: 100%; max-width: 32rem; }
.rows { color: var(--rows); } .columns { color: var(--columns); } #value { min-height: 1.5em; font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1 id="title"></h1>
<div id="about"></div>
<p><strong id="frame"></strong> <span id="errors"></span></p>
<input id="slider" type="range" min="0" step="1" value="0" aria-label="which matrix">
<p id="value">Arrow keys move through the matrices; point at a cell to read its value.</p>
<canvas id="map" role="img" aria-label="heat map of the matrix"></canvas>
<p id="scale"></p>
<svg id="curves" viewBox="0 0 512 170" role="img" aria-label="errors of every iteration"></svg>
<script>
"use strict";
const data = /*DATA*/;
const at = id => document.getElementById(id), frames = data.frames;
let now = data.start;
at("title").textContent = data.title;
for (const line of data.about) { const p = document.createElement("p"); p.textContent = line; at("about").append(p); }
at("slider").max = frames.length - 1;
const short = x => x === null ? "closed" : String(Number(Number(x).toPrecision(3)));
const share = (f, x) => x === null ? 0 : f.high > f.low ? Math.min(1, Math.max(0, (x - f.low) / (f.high - f.low))) : x > 0 ? 1 : 0;
function errorsText(f) {
  return f.errors ? `largest |sum - 1|: <span class="rows">rows ${short(f.errors[0])}</span>, <span class="columns">columns ${short(f.errors[1])}</span>` : "";
}
function draw() {
  const f = frames[now], style = getComputedStyle(document.documentElement), canvas = at("map");
  const rows = f.values.length, columns = f.values[0].length, size = Math.max(4, Math.floor(512 / Math.max(rows, columns)));
  canvas.width = columns * size; canvas.height = rows * size;
  const pen = canvas.getContext("2d");
  pen.fillStyle = style.getPropertyValue("--ground"); pen.fillRect(0, 0, canvas.width, canvas.height);
  const cell = style.getPropertyValue("--cell").trim();
  f.values.forEach((row, i) => row.forEach((x, j) => {
    pen.fillStyle = `rgba(${cell},${share(f, x)})`; pen.fillRect(j * size, i * size, size, size);
  }));
  at("frame").textContent = f.name;
  at("errors").innerHTML = errorsText(f);
  at("scale").textContent = `Rows: query buckets. Columns: ${data.columns}. Shades: ${short(f.low)} to ${short(f.high)}.`;
  at("slider").value = now;
  drawCurves();
}
function drawCurves() {
  if (!frames[0].errors) { at("curves").remove(); drawCurves = () => {}; return; }
  const y = e => 10 + 140 * (2 - Math.min(2, Math.max(-16, e > 0 ? Math.log10(e) : -16))) / 18;
  const x = i => 48 + (frames.length > 1 ? 450 * i / (frames.length - 1) : 225);
  const line = which => frames.map((f, i) => `${x(i)},${y(f.errors[which])}`).join(" ");
  let text = "";
  for (const p of [2, -4, -10, -16])
    text += `<path d="M48 ${y(10 ** p)}H498" stroke="currentColor" opacity=".2"/><text x="42" y="${y(10 ** p) + 4}" text-anchor="end" font-size="11" fill="currentColor">1e${p}</text>`;
  text += `<path d="M${x(now)} 10V150" stroke="currentColor" opacity=".5"/>`;
  ["rows", "columns"].forEach((name, which) =>
    text += `<polyline points="${line(which)}" fill="none" stroke="var(--${name})" stroke-width="2"/>`);
  at("curves").innerHTML = text;
}
function go(to) { now = Math.min(frames.length - 1, Math.max(0, to)); draw(); }
at("slider").addEventListener("input", event => go(Number(event.target.value)));
document.addEventListener("keydown", event => {
  const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: frames.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault(); go(to);
});
at("map").addEventListener("mousemove", event => {
  const f = frames[now], box = event.target.getBoundingClientRect();
  const i = Math.floor((event.clientY - box.top) / box.height * f.values.length);
  const j = Math.floor((event.clientX - box.left) / box.width * f.values[0].length);
  if (f.values[i] === undefined || f.values[i][j] === undefined) return;
  const g = data.group, name = k => g > 1 ? `${k * g}..${k * g + g - 1}` : k;
  const column = g === 1 && j < data.nulls ? `null ${j + 1}` : g === 1 ? `key bucket ${j - data.nulls}` : `columns ${name(j)}`;
  at("value").textContent = `query bucket ${name(i)}, ${column}: ${short(f.values[i][j])}`;
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
</script>
</body>
</html>
)html";

/// Four digits are more than a shade or a glance can tell.
Json rounded(const Tensor& matrix) {
  Json rows = rows_of(matrix);
  for (Json& row : rows)
    for (Json& x : row)
      if (x.is_number()) x = std::stod(fmt::format("{:.4g}", x.get<double>()));
  return rows;
}

}  // namespace

std::string to_html(const SortPicture& picture) {
  const std::vector<Averaged> drawn = averages(picture.frames, kMostHtmlCells);
  Json data;
  data["title"] = "Sorting matrix of " + picture.source;
  data["about"] = Json::array();
  if (!picture.place.empty()) data["about"].push_back(picture.place);
  data["about"].push_back(picture.setting);
  for (const std::string& remark : picture.remarks) data["about"].push_back(remark);
  if (const std::string note = group_note(drawn); !note.empty()) data["about"].push_back(note);
  data["nulls"] = picture.head.nulls;
  data["group"] = drawn.front().group;
  data["columns"] =
      picture.head.nulls > 0 ? fmt::format("{} nulls, then key buckets", picture.head.nulls) : "key buckets";
  data["start"] = 0;
  data["frames"] = Json::array();
  for (std::size_t i = 0; i < picture.frames.size(); ++i) {
    const SortFrame& frame = picture.frames[i];
    const Range range = range_of(picture.frames, drawn, i);
    Json one;
    one["name"] = frame.name;
    one["low"] = range.low;
    one["high"] = range.high;
    if (frame.errors) one["errors"] = {number_or_null(frame.errors->rows), number_or_null(frame.errors->columns)};
    one["values"] = rounded(drawn[i].values);
    data["frames"].push_back(std::move(one));
  }
  // No text of the user's may end the script.
  std::string json = dumped(data);
  for (std::size_t at = 0; (at = json.find('<', at)) != std::string::npos;) json.replace(at, 1, "\\u003c");
  std::string page = kPage;
  const std::string place = "/*DATA*/";
  return page.replace(page.find(place), place.size(), json);
}

}  // namespace sinkhorn
