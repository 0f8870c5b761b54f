// Pictures for the terminal: they fit, and colour changes nothing but colour.
#include "notebooks/kit/drawing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <regex>
#include <sstream>

namespace sinkhorn::drawing {
namespace {

std::string without_colour(const std::string& text) {
  return std::regex_replace(text, std::regex("\x1b\\[[0-9;]*m"), "");
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

Tensor ramp(std::int64_t rows, std::int64_t columns) {
  Tensor t({rows, columns}, DType::f64);
  for (std::int64_t i = 0; i < t.count(); ++i) t.data<double>()[i] = double(i);
  return t;
}

TEST(Drawing, NothingIsWiderThanTheTerminal) {
  for (const bool colour : {false, true}) {
    for (const bool unicode : {false, true}) {
      for (const int columns : {40, 80, 120}) {
        const Style style{columns, colour, unicode};
        const std::vector<double> ys(500, 1.5);
        for (const std::string& picture :
             {heat_map(style, ramp(7, 300), {.row_label = "query"}), heat_map(style, ramp(5, 5), {.numbers = true}),
              bars(style, {{"a label", 3}, {"another", -1e-9}}), curve(style, ys), values(style, ramp(40, 90)),
              wrap(style, std::string(30, 'x') + " " + std::string(30, 'y') + " and some words after them")}) {
          for (const std::string& line : lines_of(picture)) EXPECT_LE(width(line), columns) << line;
        }
      }
    }
  }
}

TEST(Drawing, AHeatMapIsAsHighAsItMayBe) {
  for (const int most : {1, 5, 12}) {
    const std::vector<std::string> lines = lines_of(heat_map({}, ramp(12, 12), {.most_rows = most}));
    EXPECT_LE(int(lines.size()), most + 1);  // and the line about the scale
    EXPECT_EQ(lines.back().find("mean of") == std::string::npos, most == 12) << lines.back();
  }
}

TEST(Drawing, ColourOnlyAddsColour) {
  const Style plain{}, coloured{.colour = true};
  EXPECT_EQ(without_colour(paint(coloured, Tone::good, "solved")), "solved");
  EXPECT_EQ(paint(plain, Tone::good, "solved"), "solved");
  EXPECT_EQ(without_colour(bars(coloured, {{"a", 1}, {"b", -2}})), bars(plain, {{"a", 1}, {"b", -2}}));
  EXPECT_EQ(without_colour(table(coloured, {"op", "n"}, {{"x", "1"}})), table(plain, {"op", "n"}, {{"x", "1"}}));
  EXPECT_EQ(heat_map(plain, ramp(3, 3)).find('\x1b'), std::string::npos);
}

TEST(Drawing, AsciiAloneWhereUnicodeIsNotKnown) {
  const Style ascii{.unicode = false};
  for (const std::string& picture : {heat_map(ascii, ramp(4, 4)), bars(ascii, {{"a", 1}}), curve(ascii, {1, 2, 3})})
    for (const char c : picture) EXPECT_GE(c, 0) << picture;
}

TEST(Drawing, AHeatMapRunsFromItsLeastToItsLargestValue) {
  const std::vector<std::string> lines = lines_of(heat_map({.unicode = false}, ramp(2, 2)));
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].substr(0, 2), "  ");
  EXPECT_EQ(lines[1].substr(2, 2), "@@");
  EXPECT_EQ(lines[2], "0 .. 3");
  // Equal cells, a NaN, nothing at all: still a picture.
  EXPECT_EQ(lines_of(heat_map({}, Tensor::full({2, 2}, 1))).size(), 3u);
  Tensor holes = ramp(1, 2);
  holes.data<double>()[0] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(lines_of(heat_map({}, holes))[0].substr(0, 2), "??");
  EXPECT_EQ(heat_map({}, Tensor({0, 3})), "(empty)\n");
}

TEST(Drawing, CellsThatDoNotFitAreAveraged) {
  const std::string picture = heat_map({.columns = 60, .unicode = false}, ramp(4, 40));
  EXPECT_NE(picture.find("each cell is the mean of 2 x 2"), std::string::npos) << picture;
}

TEST(Drawing, TablesAlign) {
  EXPECT_EQ(table({}, {"op", "bytes"}, {{"matmul", "12"}, {"sum", "3000"}}),
            "op      bytes\nmatmul     12\nsum      3000\n");
}

TEST(Drawing, ProseIsWrappedAndCodeIsNot) {
  EXPECT_EQ(wrap({.columns = 10}, "one two three\nfour\n\n  code stays as it is\nfive"),
            "one two\nthree four\n\n  code stays as it is\nfive\n");
}

}  // namespace
}  // namespace sinkhorn::drawing
