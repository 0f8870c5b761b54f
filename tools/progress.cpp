#include "tools/progress.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "notebooks/kit/drawing.h"

namespace sinkhorn {

std::string duration(double seconds) {
  const auto whole = std::int64_t(std::llround(std::fmin(std::fmax(seconds, 0), 1e12)));
  if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string grouped(std::int64_t number) {
  std::string digits = std::to_string(number);
  for (std::int64_t at = std::int64_t(digits.size()) - 3; at > (number < 0 ? 1 : 0); at -= 3)
    digits.insert(std::size_t(at), ",");
  return digits;
}

std::string progress_line(const StepReport& r, double seconds_left, int columns) {
  struct Part {
    int rank;  // the highest goes first when space is short
    std::string text;
  };
  std::vector<Part> parts = {
      {0, fmt::format("step {}/{}", r.step, r.steps)},
      {1, fmt::format("loss {:.3f}", r.loss)},
      {3, fmt::format("{:.2f} bits/char", r.bits_per_character)},
      {5, fmt::format("norm {:.2f}", r.gradient_norm)},
      {6, fmt::format("lr {:.1e}", r.learning_rate)},
      {7, fmt::format("{:.0f} ms", r.milliseconds)},
      {4, grouped(std::llround(r.tokens_per_second)) + " tok/s"},
  };
  if (seconds_left >= 0) parts.push_back({2, "ETA " + duration(seconds_left)});
  for (int highest = 8; highest >= 0; --highest) {
    std::string line;
    for (const Part& part : parts)
      if (part.rank < highest || part.rank == 0) line += (line.empty() ? "" : " | ") + part.text;
    if (int(line.size()) <= columns || highest == 0) return line.substr(0, std::size_t(std::max(columns, 0)));
  }
  return {};
}

Progress::Progress(std::ostream& out, int columns, std::int64_t every, std::int64_t done)
    : out_(out), columns_(columns), every_(every), done_(done) {}

void Progress::report(const StepReport& report) {
  const auto now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double left = seconds / double(report.step - done_) * double(report.steps - report.step);
  if (columns_ == 0) {
    if (report.step % every_ == 0 || report.step == report.steps || report.step == done_ + 1)
      out_ << progress_line(report, left, 1000) << std::endl;
    return;
  }
  if (report.step < report.steps && now - drawn_ < std::chrono::milliseconds(100)) return;
  drawn_ = now;
  if (const int columns = drawing::terminal_columns(); columns > 0) columns_ = columns;  // it may have been resized
  std::string line = progress_line(report, left, columns_ - 1);
  const std::size_t width = line.size();
  if (width < width_) line.append(std::min(width_, std::size_t(columns_ - 1)) - std::min(width, width_), ' ');
  width_ = width;
  out_ << '\r' << line << std::flush;
}

void Progress::say(const std::string& line) {
  clear();
  out_ << line << std::endl;
}

void Progress::clear() {
  if (width_ > 0) out_ << '\r' << std::string(width_, ' ') << '\r' << std::flush;
  width_ = 0;
}

}  // namespace sinkhorn
