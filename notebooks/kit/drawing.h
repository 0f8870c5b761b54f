// Small pictures for a terminal: tables, bars, curves and heat maps, in colour or without, 80 columns wide if need be.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "autograd/tensor.h"

namespace sinkhorn::drawing {

/// Columns of the terminal on stdout, 80 if it does not say; 0 if stdout is none, or one without cursor movement
/// (TERM=dumb).
int terminal_columns();

/// What the terminal can show. The default is what a file or a pipe gets.
struct Style {
  int columns = 80;
  bool colour = false;
  bool unicode = true;  // false: ASCII alone
};
/// Of stdout: colours on a terminal, unless NO_COLOR is set or TERM is dumb; ASCII where the locale has no UTF-8.
Style style_of_stdout();

/// Meanings, not colours: each is one of the terminal's own sixteen, which its light or dark theme keeps readable.
enum class Tone { plain, strong, quiet, good, bad, accent };
/// The text in its tone; as it is where there is no colour.
std::string paint(const Style& style, Tone tone, std::string_view text);

/// Columns that the text takes: code points, escape sequences left out.
int width(std::string_view text);
/// Filled with spaces to `columns`, on the right or (for numbers) on the left.
std::string pad_right(std::string_view text, int columns);
std::string pad_left(std::string_view text, int columns);
/// Paragraphs broken at spaces to the style's columns. Empty lines part paragraphs; a line that begins with two spaces
/// stays as it is.
std::string wrap(const Style& style, std::string_view prose);

/// Two spaces before each line that is not empty; every line ends with a newline.
std::string indented(std::string_view lines);

/// A short number: at most `digits` significant ones, "inf", "nan".
std::string number(double x, int digits = 4);

/// Rows under a header, columns aligned (numbers to the right); every line ends with a newline. A row shorter than the
/// header leaves cells empty.
std::string table(const Style& style, const std::vector<std::string>& header,
                  const std::vector<std::vector<std::string>>& rows);

/// One bar a label, from 0 to the longest value, with the value behind it. Negative values are drawn in `Tone::bad`.
std::string bars(const Style& style, const std::vector<std::pair<std::string, double>>& values);

/// The curve of ys over their index, `height` lines high, with its least and largest value at the side. Values that are
/// not finite are left out.
std::string curve(const Style& style, const std::vector<double>& ys, int height = 8);

struct HeatMap {
  std::optional<double> low = {}, high = {};  // the ends of the scale; the matrix's own if absent
  std::string row_label = {}, column_label = {};
  bool numbers = false;  // writes each value into its cell, where the columns allow it
  int most_rows = 48;    // of cells
};
/// A matrix (R, C), or (C), as cells from light to dark: coloured backgrounds that bring their own foreground, shades
/// (unicode) or characters (ASCII) without colour. What does not fit into the columns and rows is averaged over equal
/// groups, and a last line says so. NaN is shown as '?'.
std::string heat_map(const Style& style, const Tensor& matrix, const HeatMap& map = {});

/// The elements of a tensor of rank 0 to 2 as aligned numbers, at most `most` rows and as many columns as fit; other
/// ranks are shown as (-1, last).
std::string values(const Style& style, const Tensor& tensor, int digits = 4, int most = 12);

}  // namespace sinkhorn::drawing
