#include "notebooks/kit/page.h"

#include <fstream>
#include <sstream>
#include <vector>

#include "autograd/error.h"

namespace sinkhorn::lessons {
namespace {

std::vector<std::string> lines_of(const std::filesystem::path& file) {
  std::ifstream in(file);
  if (!in) fail<DataError>("lesson: cannot read ", file.string(), ", which the text quotes");
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::string trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t"), end = text.find_last_not_of(" \t");
  return begin == std::string_view::npos ? std::string() : std::string(text.substr(begin, end - begin + 1));
}

// Two spaces before each line; what is longer than `columns` goes on below, further in.
std::string indented(const std::string& lines, int columns) {
  std::istringstream in(lines);
  std::string result;
  for (std::string line; std::getline(in, line);) {
    line = "  " + line;
    const std::string further(std::min(line.find_first_not_of(' '), line.size()) + 4, ' ');
    while (int(line.size()) > columns) {
      const std::size_t space = line.rfind(' ', std::size_t(columns));
      if (space == std::string::npos || space <= further.size()) break;
      result += line.substr(0, space) + "\n";
      line = further + line.substr(space + 1);
    }
    result += line + "\n";
  }
  return result;
}

}  // namespace

std::string quote(const std::filesystem::path& file, std::string_view anchor) {
  const std::vector<std::string> lines = lines_of(file);
  std::size_t first = lines.size();
  int found = 0;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::size_t at = lines[i].find(anchor);
    if (at == std::string::npos || (at > 0 && lines[i][at - 1] == '"')) continue;  // a quotation is no place to quote
    if (found++ == 0) first = i;
  }
  if (found != 1) {
    fail<DataError>("lesson: the text quotes \"", std::string(anchor), "\" from ", file.string(), ", which ", found,
                    " lines hold; it must be one");
  }
  const std::size_t margin = lines[first].find_first_not_of(' ');
  std::string result;
  int depth = 0;
  for (std::size_t i = first; i < lines.size(); ++i) {
    const std::string& line = lines[i];
    result += line.substr(std::min(margin, std::min(line.find_first_not_of(' '), line.size()))) + "\n";
    const std::string code = trimmed(line.substr(0, line.find("//")));
    for (const char c : code) depth += (c == '{' || c == '(') - (c == '}' || c == ')');
    if (depth <= 0 && !code.empty() && (code.back() == ';' || code.back() == '}')) break;
  }
  return result;
}

std::string with_quotes(std::string_view text, const std::filesystem::path& root, int columns) {
  std::istringstream in{std::string(text)};
  std::string result;
  for (std::string line; std::getline(in, line);) {
    const std::string inner = trimmed(line);
    if (inner.size() < 4 || inner.substr(0, 2) != "{{" || inner.substr(inner.size() - 2) != "}}") {
      result += line + "\n";
      continue;
    }
    const std::string reference = inner.substr(2, inner.size() - 4);
    const std::size_t colon = reference.find(": ");
    if (colon == std::string::npos) fail<DataError>("lesson: a quotation is {{FILE: ANCHOR}}, not ", inner);
    result +=
        indented(quote(root / trimmed(reference.substr(0, colon)), trimmed(reference.substr(colon + 2))), columns);
  }
  return result;
}

void Page::step(std::string_view title) {
  finish();
  step_.title = title;
}

void Page::finish() {
  if (step_.title.empty() && step_.body.empty()) return;
  const Step done = std::exchange(step_, {});
  if (!seen_(done)) throw Left{};
}

void Page::gap() {
  if (!step_.body.empty()) step_.body += "\n";
}

void Page::text(std::string_view prose) {
  gap();
  step_.body += drawing::wrap(style_, prose);
}

void Page::picture(std::string_view lines) {
  gap();
  step_.body += lines;
  if (!step_.body.empty() && step_.body.back() != '\n') step_.body += "\n";
}

void Page::values(std::string_view name, const Tensor& tensor, int digits) {
  picture(drawing::paint(style_, drawing::Tone::strong, name) + " " +
          drawing::paint(style_, drawing::Tone::quiet, text_of(tensor.shape())) + "\n" +
          drawing::values(style_, tensor, digits));
}

void Page::code(std::string_view file, std::string_view anchor) {
  picture(drawing::paint(style_, drawing::Tone::quiet, file) + "\n" +
          indented(quote(root_ / file, anchor), style_.columns));
}

}  // namespace sinkhorn::lessons
