#include "tools/utf8.h"

#include <cstdio>

namespace sinkhorn {
namespace {
constexpr char32_t kReplacement = 0xFFFD;
}

CodePoint first_code_point(std::string_view text) {
  if (text.empty()) return {};
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const int length = lead >= 0xC2 && lead < 0xE0   ? 2
                     : lead >= 0xE0 && lead < 0xF0 ? 3
                     : lead >= 0xF0 && lead < 0xF5 ? 4
                                                   : 0;
  if (length == 0) return {};
  // The second byte's range rules out overlong forms, surrogates and values past U+10FFFF.
  const unsigned low = lead == 0xE0   ? 0xA0
                       : lead == 0xF0 ? 0x90
                                      : 0x80,
                 high = lead == 0xED   ? 0x9F
                        : lead == 0xF4 ? 0x8F
                                       : 0xBF;
  char32_t value = lead & (0x7Fu >> length);
  for (int i = 1; i < length; ++i) {
    if (std::size_t(i) == text.size()) return {0, 0, true};
    const unsigned next = byte(std::size_t(i));
    if (next < (i == 1 ? low : 0x80u) || next > (i == 1 ? high : 0xBFu)) return {};
    value = value << 6 | (next & 0x3F);
  }
  return {value, length};
}

void append_utf8(std::string& text, char32_t c) {
  if (c < 0x80) {
    text += char(c);
  } else if (c < 0x800) {
    text += {char(0xC0 | c >> 6), char(0x80 | (c & 0x3F))};
  } else if (c < 0x10000) {
    text += {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 0x3F)), char(0x80 | (c & 0x3F))};
  } else {
    text +=
        {char(0xF0 | c >> 18), char(0x80 | (c >> 12 & 0x3F)), char(0x80 | (c >> 6 & 0x3F)), char(0x80 | (c & 0x3F))};
  }
}

std::optional<std::size_t> first_invalid_byte(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const int length = first_code_point(text.substr(at)).length;
    if (length == 0) return at;
    at += std::size_t(length);
  }
  return std::nullopt;
}

std::string describe_code_point(char32_t c) {
  char number[16];
  std::snprintf(number, sizeof number, "U+%04X", unsigned(c));
  if (c < 0x20 || (c >= 0x7F && c < 0xA0)) return number;
  std::string text = "'";
  append_utf8(text, c);
  return text + "' (" + number + ")";
}

std::string Utf8Stream::push(std::string_view bytes) {
  waiting_ += bytes;
  std::string text;
  std::size_t at = 0;
  while (at < waiting_.size()) {
    const CodePoint c = first_code_point(std::string_view(waiting_).substr(at));
    if (c.cut_short) break;
    append_utf8(text, c.length ? c.value : kReplacement);
    at += std::size_t(c.length ? c.length : 1);
  }
  waiting_.erase(0, at);
  return text;
}

std::string Utf8Stream::finish() {
  std::string text;
  if (!waiting_.empty()) append_utf8(text, kReplacement);
  waiting_.clear();
  return text;
}

}  // namespace sinkhorn
