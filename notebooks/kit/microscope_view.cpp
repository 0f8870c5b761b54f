#include "notebooks/kit/microscope_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace sinkhorn::drawing {
namespace {

Style inside(Style style) {
  style.columns -= 2;
  return style;
}

std::string prose(const Style& style, const std::string& text) { return indented(wrap(inside(style), text)); }

std::string cause(const Style& style, const Finding& finding, bool is_first) {
  const std::string label = is_first ? "likely cause  " : "fits as well  ";
  std::string result =
      "  " + label + paint(style, is_first ? Tone::accent : Tone::plain, title_of(finding.cause)) + "\n";
  return result + prose(style, finding.evidence);
}

std::string index_text(const std::vector<std::int64_t>& index) { return fmt::format("[{}]", fmt::join(index, ",")); }

std::string elements(const Style& style, const WrongGradient& gradient) {
  std::vector<std::vector<std::string>> rows;
  rows.reserve(gradient.worst.size());
  for (const ComparedElement& element : gradient.worst) {
    const std::string ratio = element.numeric != 0 ? number(element.analytic / element.numeric) : "";
    rows.push_back({index_text(element.index), number(element.analytic, 6), number(element.numeric, 6), ratio,
                    number(element.error, 2)});
  }
  std::string result = indented(table(inside(style), {"index", "analytic", "numeric", "ratio", "error"}, rows));
  if (gradient.wrong > std::int64_t(rows.size()))
    result +=
        paint(style, Tone::quiet, fmt::format("  ... and {} more", gradient.wrong - std::int64_t(rows.size()))) + "\n";
  return result;
}

// Says something only where some elements are right or no cause is known.
bool is_map_useful(const WrongGradient& gradient) {
  return gradient.error && gradient.shape.rank() >= 2 && gradient.shape.count() > 1 &&
         (gradient.wrong < gradient.shape.count() || !gradient.is_explained());
}

std::string wrong_gradient(const Style& style, const WrongGradient& gradient) {
  std::string head = fmt::format("{} {}: ", gradient.name, text_of(gradient.shape));
  if (gradient.error)
    head += fmt::format("{} of {} elements of the gradient {} wrong", gradient.wrong, gradient.shape.count(),
                        gradient.wrong == 1 ? "is" : "are");
  else
    head += "its gradient is " + text_of(gradient.analytic.shape());
  std::string result = prose(style, head);
  result = paint(style, Tone::bad, result.substr(0, result.size() - 1)) + "\n";
  for (std::size_t i = 0; i < std::min<std::size_t>(gradient.findings.size(), 3); ++i)
    result += cause(style, gradient.findings[i], i == 0);
  if (!gradient.is_explained()) result += "  likely cause  none of those that were tried fits these numbers\n";
  for (const std::string& note : gradient.notes) result += prose(style, note);
  result += "\n";
  if (!gradient.error) {
    const Style narrow = inside(style);
    result += "  analytic\n" + indented(values(narrow, gradient.analytic, 4, 6)) + "  numeric\n" +
              indented(values(narrow, gradient.numeric, 4, 6));
    return result;
  }
  result += elements(style, gradient);
  if (is_map_useful(gradient)) {
    const Tensor cut = gradient.error.clone();
    for (double& x : cut.span<double>()) x = std::min(x, 1.0);
    const Tensor matrix = cut.reshape({-1, gradient.shape[-1]});
    const int last = gradient.shape.rank() - 1;
    result += "\n  the relative error of each element; the darkest is 1 or more\n" +
              indented(heat_map(inside(style), matrix,
                                {.low = 0,
                                 .high = 1,
                                 .row_label = last == 1 ? "axis 0" : fmt::format("axes 0 to {}", last - 1),
                                 .column_label = fmt::format("axis {}", last)}));
  }
  return result;
}

}  // namespace

std::string microscope_view(const Style& style, const Diagnosis& diagnosis) {
  if (diagnosis.is_fine()) return paint(style, Tone::good, "Every gradient agrees with its numeric one.") + "\n";
  std::string result;
  for (std::size_t i = 0; i < diagnosis.findings.size(); ++i) result += cause(style, diagnosis.findings[i], i == 0);
  for (const WrongGradient& gradient : diagnosis.wrong)
    result += (result.empty() ? "" : "\n") + wrong_gradient(style, gradient);
  if (!diagnosis.right.empty())
    result += "\n" + prose(style, fmt::format("Right: {}.", fmt::join(diagnosis.right, ", ")));
  return result;
}

}  // namespace sinkhorn::drawing
