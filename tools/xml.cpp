#include "tools/xml.h"

#include "tools/utf8.h"

namespace sinkhorn {

std::string escaped_for_xml(const std::string& text) {
  Utf8Stream valid;
  const std::string repaired = valid.push(text) + valid.finish();
  std::string result;
  for (const char c : repaired) {
    if (c == '&')
      result += "&amp;";
    else if (c == '<')
      result += "&lt;";
    else if (c == '>')
      result += "&gt;";
    else if (c == '"')
      result += "&quot;";
    else
      result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return result;
}

}  // namespace sinkhorn
