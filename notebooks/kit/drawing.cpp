#include "notebooks/kit/drawing.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace sinkhorn::drawing {
namespace {

bool is_set(const char* name) {
  const char* value = std::getenv(name);
  return value && *value;
}

bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    if (!is_set(name)) continue;
    std::string value = std::getenv(name);
    std::transform(value.begin(), value.end(), value.begin(), [](unsigned char c) { return char(std::tolower(c)); });
    return value.find("utf-8") != std::string::npos || value.find("utf8") != std::string::npos;
  }
  return true;  // containers set none, and their terminals know UTF-8
}

// Ten shades; without colour a cell is two characters wide, so that it is about square.
constexpr std::array<std::string_view, 5> kShades = {" ", "░", "▒", "▓", "█"};
constexpr std::string_view kCharacters = " .:-=+*#%@";
// The 256-colour cube from nearly white over blue to nearly black; cells name their foreground too, so that a light and
// a dark terminal show the same.
constexpr std::array<int, 8> kRamp = {255, 195, 153, 111, 69, 27, 19, 17};

std::string repeat(std::string_view text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

struct Grid {
  std::int64_t rows = 0, columns = 0;
  std::vector<double> cells;
  double at(std::int64_t r, std::int64_t c) const { return cells[std::size_t(r * columns + c)]; }
};

Grid grid_of(const Tensor& t) {
  const Shape& shape = t.shape();
  const std::int64_t columns = shape.rank() == 0 ? 1 : shape[-1];
  return {columns == 0 ? 0 : t.count() / columns, columns, t.to_vector()};
}

// The mean of each group of `by` x `by` cells.
Grid averaged(const Grid& grid, std::int64_t by) {
  if (by == 1) return grid;
  Grid result{(grid.rows + by - 1) / by, (grid.columns + by - 1) / by, {}};
  for (std::int64_t r = 0; r < result.rows; ++r) {
    for (std::int64_t c = 0; c < result.columns; ++c) {
      double sum = 0;
      std::int64_t count = 0;
      for (std::int64_t i = r * by; i < std::min(grid.rows, (r + 1) * by); ++i)
        for (std::int64_t j = c * by; j < std::min(grid.columns, (c + 1) * by); ++j, ++count) sum += grid.at(i, j);
      result.cells.push_back(sum / double(count));
    }
  }
  return result;
}

std::string cell(const Style& style, double share, const std::string& text) {
  if (std::isnan(share)) return text.empty() ? "??" : text;
  share = std::clamp(share, 0.0, 1.0);
  const auto level = [share](std::size_t levels) { return std::min(levels - 1, std::size_t(share * double(levels))); };
  if (style.colour) {
    const std::size_t i = level(kRamp.size());
    return fmt::format("\x1b[38;5;{};48;5;{}m{}\x1b[0m", i < 4 ? 16 : 231, kRamp[i], text.empty() ? "  " : text);
  }
  if (!text.empty()) return text;
  if (style.unicode) return repeat(kShades[level(kShades.size())], 2);
  return repeat(kCharacters.substr(level(kCharacters.size()), 1), 2);
}

bool is_number(std::string_view text) {
  return !text.empty() && (std::isdigit(static_cast<unsigned char>(text.front())) || text.front() == '-' ||
                           text.front() == '+' || text == "nan" || text == "inf");
}

}  // namespace

int terminal_columns() {
  const char* term = std::getenv("TERM");
  if (!isatty(STDOUT_FILENO) || (term && std::string_view(term) == "dumb")) return 0;
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

Style style_of_stdout() {
  Style style{.unicode = locale_is_utf8()};
  const int columns = terminal_columns();
  if (columns == 0) return style;
  style.columns = std::clamp(columns, 40, 120);
  style.colour = !is_set("NO_COLOR");
  return style;
}

std::string paint(const Style& style, Tone tone, std::string_view text) {
  static constexpr std::array<std::string_view, 6> codes = {"", "1", "2", "32", "31", "36"};
  const std::string_view code = codes[std::size_t(tone)];
  if (!style.colour || code.empty() || text.empty()) return std::string(text);
  return fmt::format("\x1b[{}m{}\x1b[0m", code, text);
}

int width(std::string_view text) {
  int columns = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\x1b') {
      while (i < text.size() && text[i] != 'm') ++i;
    } else if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80) {
      ++columns;
    }
  }
  return columns;
}

std::string pad_right(std::string_view text, int columns) {
  return std::string(text) + std::string(std::size_t(std::max(0, columns - width(text))), ' ');
}
std::string pad_left(std::string_view text, int columns) {
  return std::string(std::size_t(std::max(0, columns - width(text))), ' ') + std::string(text);
}

std::string wrap(const Style& style, std::string_view prose) {
  std::string result, line;
  const auto flush = [&] {
    if (!line.empty()) result += line + "\n";
    line.clear();
  };
  while (!prose.empty()) {
    const std::size_t end = std::min(prose.find('\n'), prose.size());
    std::string_view source = prose.substr(0, end);
    prose.remove_prefix(std::min(end + 1, prose.size()));
    if (source.substr(0, 2) == "  ") {
      flush();
      result += std::string(source) + "\n";
      continue;
    }
    if (source.find_first_not_of(' ') == std::string_view::npos) {
      flush();
      if (!result.empty()) result += "\n";
      continue;
    }
    while (!source.empty()) {
      const std::size_t begin = std::min(source.find_first_not_of(' '), source.size());
      source.remove_prefix(begin);
      const std::string_view word = source.substr(0, std::min(source.find(' '), source.size()));
      source.remove_prefix(word.size());
      if (word.empty()) continue;
      if (!line.empty() && width(line) + 1 + width(word) > style.columns) flush();
      if (!line.empty()) line += ' ';
      line += word;
    }
  }
  flush();
  return result;
}

std::string indented(std::string_view lines) {
  std::string result;
  while (!lines.empty()) {
    const std::string_view line = lines.substr(0, std::min(lines.find('\n'), lines.size()));
    lines.remove_prefix(std::min(line.size() + 1, lines.size()));
    if (!line.empty()) result += "  ";
    result += std::string(line) + "\n";
  }
  return result;
}

std::string number(double x, int digits) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x < 0 ? "-inf" : "inf";
  return fmt::format("{:.{}g}", x == 0 ? 0.0 : x, digits);
}

std::string table(const Style& style, const std::vector<std::string>& header,
                  const std::vector<std::vector<std::string>>& rows) {
  std::vector<int> widths;
  std::vector<bool> to_the_right;
  for (std::size_t c = 0; c < header.size(); ++c) {
    int widest = width(header[c]);
    bool numbers = !rows.empty();
    for (const auto& row : rows) {
      if (c >= row.size()) continue;
      widest = std::max(widest, width(row[c]));
      numbers = numbers && (row[c].empty() || is_number(row[c]));
    }
    widths.push_back(widest);
    to_the_right.push_back(numbers);
  }
  const auto put = [&](const std::vector<std::string>& row, Tone tone) {
    std::string line;
    for (std::size_t c = 0; c < header.size(); ++c) {
      const std::string text = c < row.size() ? row[c] : std::string();
      const std::string padded = to_the_right[c] ? pad_left(text, widths[c]) : pad_right(text, widths[c]);
      line += (c == 0 ? "" : "  ") + paint(style, tone, padded);
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    return line + "\n";
  };
  std::string result = put(header, Tone::strong);
  for (const auto& row : rows) result += put(row, Tone::plain);
  return result;
}

std::string bars(const Style& style, const std::vector<std::pair<std::string, double>>& values) {
  int label_width = 0, value_width = 0;
  double longest = 0;
  for (const auto& [label, value] : values) {
    label_width = std::max(label_width, width(label));
    value_width = std::max(value_width, width(number(value)));
    if (std::isfinite(value)) longest = std::max(longest, std::abs(value));
  }
  const int room = std::max(4, style.columns - label_width - value_width - 4);
  std::string result;
  for (const auto& [label, value] : values) {
    const double share = longest > 0 && std::isfinite(value) ? std::abs(value) / longest : 0;
    const std::string bar = repeat(style.unicode ? "█" : "#", int(std::lround(share * room)));
    result += pad_right(label, label_width) + "  " + paint(style, value < 0 ? Tone::bad : Tone::accent, bar) +
              (bar.empty() ? "" : " ") + number(value) + "\n";
  }
  return result;
}

std::string curve(const Style& style, const std::vector<double>& ys, int height) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (double y : ys) {
    if (!std::isfinite(y)) continue;
    low = std::min(low, y);
    high = std::max(high, y);
  }
  if (low > high) return "(nothing to draw)\n";
  const int side = std::max(width(number(low)), width(number(high)));
  const int columns = std::max(1, std::min(int(ys.size()), style.columns - side - 3));
  // Several values that share a column are averaged.
  std::vector<double> points(std::size_t(columns), std::numeric_limits<double>::quiet_NaN());
  for (int c = 0; c < columns; ++c) {
    const std::size_t begin = ys.size() * std::size_t(c) / std::size_t(columns),
                      end = std::max(begin + 1, ys.size() * std::size_t(c + 1) / std::size_t(columns));
    double sum = 0;
    int count = 0;
    for (std::size_t i = begin; i < end; ++i)
      if (std::isfinite(ys[i])) sum += ys[i], ++count;
    if (count > 0) points[std::size_t(c)] = sum / count;
  }
  std::string result;
  for (int row = height - 1; row >= 0; --row) {
    const std::string label = row == height - 1 ? number(high) : row == 0 ? number(low) : "";
    std::string line;
    for (double y : points) {
      const double share = high > low ? (y - low) / (high - low) : 0.5;
      const bool here = std::isfinite(y) && int(std::lround(share * (height - 1))) == row;
      line += here ? (style.unicode ? "•" : "*") : " ";
    }
    result += pad_left(label, side) + (style.unicode ? " │" : " |") + paint(style, Tone::accent, line) + "\n";
  }
  return result;
}

std::string heat_map(const Style& style, const Tensor& matrix, const HeatMap& map) {
  const Grid whole = grid_of(matrix);
  if (whole.cells.empty()) return "(empty)\n";
  const int margin = map.row_label.empty() ? 0 : 4;
  std::int64_t by = 1;
  while ((whole.columns + by - 1) / by * 2 > style.columns - margin || (whole.rows + by - 1) / by > map.most_rows) ++by;
  const Grid grid = averaged(whole, by);

  double low = map.low.value_or(std::numeric_limits<double>::infinity());
  double high = map.high.value_or(-std::numeric_limits<double>::infinity());
  for (double x : grid.cells) {
    if (!std::isfinite(x)) continue;
    if (!map.low) low = std::min(low, x);
    if (!map.high) high = std::max(high, x);
  }
  int number_width = 0;
  if (map.numbers && by == 1) {
    for (double x : grid.cells) number_width = std::max(number_width, width(number(x, 3)) + 1);
    if (number_width * grid.columns > style.columns - margin) number_width = 0;
  }
  std::string result;
  if (!map.column_label.empty())
    result += std::string(std::size_t(margin), ' ') + paint(style, Tone::quiet, map.column_label) + "\n";
  for (std::int64_t r = 0; r < grid.rows; ++r) {
    if (margin > 0) result += pad_right(pad_left(std::to_string(r * by), 3), margin);
    for (std::int64_t c = 0; c < grid.columns; ++c) {
      const double x = grid.at(r, c), share = high > low || std::isnan(x) ? (x - low) / (high - low) : x > 0 ? 1 : 0;
      result += cell(style, share, number_width > 0 ? pad_left(number(x, 3), number_width) : std::string());
    }
    result += "\n";
  }
  std::string legend = fmt::format("{} .. {}", number(low, 3), number(high, 3));
  if (!map.row_label.empty()) legend = "rows: " + map.row_label + "; " + legend;
  if (by > 1) legend += fmt::format("; each cell is the mean of {} x {}", by, by);
  std::string lines = wrap(style, legend);
  lines.pop_back();
  return result + paint(style, Tone::quiet, lines) + "\n";
}

std::string values(const Style& style, const Tensor& tensor, int digits, int most) {
  const Grid grid = grid_of(tensor);
  int widest = 1;
  for (double x : grid.cells) widest = std::max(widest, width(number(x, digits)));
  const std::int64_t fit = std::max<std::int64_t>(1, (style.columns - 4) / (widest + 2));
  const std::int64_t rows = std::min<std::int64_t>(grid.rows, most), columns = std::min(grid.columns, fit);
  std::string result;
  for (std::int64_t r = 0; r < rows; ++r) {
    std::string line;
    for (std::int64_t c = 0; c < columns; ++c) line += "  " + pad_left(number(grid.at(r, c), digits), widest);
    result += line + (columns < grid.columns ? " ..\n" : "\n");
  }
  if (rows < grid.rows) result += fmt::format("  .. ({} rows)\n", grid.rows);
  return result.empty() ? "  (empty)\n" : result;
}

}  // namespace sinkhorn::drawing
