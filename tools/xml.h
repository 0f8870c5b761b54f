// Text in SVG and HTML files.
#pragma once
#include <string>

namespace sinkhorn {

/// The text without markup, and without the control characters and bad UTF-8 that XML does not allow.
std::string escaped_for_xml(const std::string& text);

}  // namespace sinkhorn
