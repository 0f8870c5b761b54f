#include "models/fields.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "autograd/error.h"

namespace sinkhorn {
namespace {

using Integers = std::vector<std::int64_t>;
constexpr double kHighest = 2147483647;  // counts beyond this are typing errors, and products of two stay in 64 bits

bool is_whole(const Field& field) {
  return std::holds_alternative<std::int64_t*>(field.slot) ||
         std::holds_alternative<std::optional<std::int64_t>*>(field.slot) ||
         std::holds_alternative<Integers*>(field.slot);
}

std::string number_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, number).ptr;
  return std::string(buffer, end);
}

bool within(const Accepts& accepts, double number) {
  const bool low = accepts.low_open ? number > accepts.low : number >= accepts.low;
  const bool high = accepts.high_open ? number < accepts.high : number <= accepts.high;
  return low && high;  // both are false for NaN
}

[[noreturn]] void refuse(const Field& field, const Value& value, const std::string& where) {
  const auto* whole = std::get_if<std::int64_t>(&value);
  const bool beyond = whole && double(*whole) > kHighest && field.accepts.high == kHighest;
  fail<UsageError>(where, ": ", field.name, " wants ", expectation(field), beyond ? " and at most 2147483647" : "",
                   ", not ", to_text(value));
}

template <class T>
bool parse_number(std::string_view text, T& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

Value from_json_value(const nlohmann::json& json) {
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_unsigned() && json.get<std::uint64_t>() > std::uint64_t(INT64_MAX)) return json.get<double>();
  if (json.is_number_integer()) return json.get<std::int64_t>();
  if (json.is_number()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  if (json.is_array() && std::all_of(json.begin(), json.end(), [](auto& entry) { return entry.is_number_integer(); }))
    return json.get<Integers>();
  return json.dump();  // an object or a mixed list: no field accepts it, and the message shows it as text
}

/// Insertions, deletions, replacements and swaps of neighbours that lead from one word to the other.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (std::size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i)
    for (std::size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  return d[a.size()][b.size()];
}

}  // namespace

Accepts anything() { return {-INFINITY, INFINITY}; }
Accepts at_least(double low) { return {low, kHighest}; }
Accepts above(double low) { return {low, kHighest, true}; }
Accepts from_below(double low, double high) { return {low, high, false, true}; }
Accepts between(double low, double high) { return {low, high}; }
Accepts above_to(double low, double high) { return {low, high, true}; }
Accepts one_of(std::vector<std::string> choices) { return {0, 0, false, false, std::move(choices)}; }

std::string to_text(const Value& value) {
  if (std::holds_alternative<bool>(value)) return std::get<bool>(value) ? "true" : "false";
  if (auto* whole = std::get_if<std::int64_t>(&value)) return std::to_string(*whole);
  if (auto* number = std::get_if<double>(&value)) {
    const std::string text = number_text(*number);
    return text.find_first_of(".ein") == std::string::npos ? text + ".0" : text;
  }
  if (auto* text = std::get_if<std::string>(&value)) {
    // Invalid UTF-8 (from a shell) is replaced: a message must not fail for what it reports. TOML, unlike JSON, has DEL
    // escaped too.
    std::string quoted = nlohmann::json(*text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    for (std::size_t at; (at = quoted.find('\x7f')) != std::string::npos;) quoted.replace(at, 1, "\\u007f");
    return quoted;
  }
  if (auto* list = std::get_if<Integers>(&value)) return nlohmann::json(*list).dump();
  return "none";
}

std::string expectation(const Field& field) {
  const Accepts& accepts = field.accepts;
  if (std::holds_alternative<bool*>(field.slot)) return "true or false";
  if (std::holds_alternative<std::string*>(field.slot)) {
    if (accepts.choices.empty()) return "text";
    std::string text = "one of ";
    for (std::size_t i = 0; i < accepts.choices.size(); ++i) text += (i ? ", " : "") + accepts.choices[i];
    return text;
  }
  std::string text = std::holds_alternative<Integers*>(field.slot) ? "whole numbers"
                     : is_whole(field)                             ? "a whole number"
                                                                   : "a number";
  const bool has_low = accepts.low > -INFINITY, has_high = accepts.high < kHighest;
  if (has_low)
    text += (accepts.low_open ? " above " : has_high ? " from " : " of at least ") + number_text(accepts.low);
  if (has_high)
    text += (accepts.high_open              ? " and below "
             : has_low && !accepts.low_open ? " to "
                                            : " up to ") +
            number_text(accepts.high);
  return text;
}

void assign(const Field& field, const Value& value, const std::string& where) {
  auto whole = [&](std::int64_t number) {
    if (!within(field.accepts, double(number))) refuse(field, value, where);
    return number;
  };
  if (auto* slot = std::get_if<std::optional<std::int64_t>*>(&field.slot)) {
    if (std::holds_alternative<std::monostate>(value)) return (*slot)->reset();
    if (!std::holds_alternative<std::int64_t>(value)) refuse(field, value, where);
    **slot = whole(std::get<std::int64_t>(value));
    return;
  }
  if (std::holds_alternative<std::monostate>(value)) return;
  if (auto* slot = std::get_if<bool*>(&field.slot); slot && std::holds_alternative<bool>(value)) {
    **slot = std::get<bool>(value);
  } else if (auto* slot = std::get_if<std::int64_t*>(&field.slot);
             slot && std::holds_alternative<std::int64_t>(value)) {
    **slot = whole(std::get<std::int64_t>(value));
  } else if (auto* slot = std::get_if<double*>(&field.slot);
             slot && (std::holds_alternative<double>(value) || std::holds_alternative<std::int64_t>(value))) {
    const double number =
        std::holds_alternative<double>(value) ? std::get<double>(value) : double(std::get<std::int64_t>(value));
    if (!within(field.accepts, number)) refuse(field, value, where);
    **slot = number;
  } else if (auto* slot = std::get_if<std::string*>(&field.slot); slot && std::holds_alternative<std::string>(value)) {
    const auto& choices = field.accepts.choices;
    const auto& text = std::get<std::string>(value);
    if (!choices.empty() && std::find(choices.begin(), choices.end(), text) == choices.end())
      refuse(field, value, where);
    **slot = text;
  } else if (auto* slot = std::get_if<Integers*>(&field.slot); slot && std::holds_alternative<Integers>(value)) {
    for (const auto number : std::get<Integers>(value)) whole(number);
    **slot = std::get<Integers>(value);
  } else {
    refuse(field, value, where);
  }
}

Value value_of(const Field& field) {
  return std::visit(
      [](auto* slot) -> Value {
        if constexpr (std::is_same_v<decltype(slot), std::optional<std::int64_t>*>)
          return *slot ? Value(**slot) : Value();
        else
          return *slot;
      },
      field.slot);
}

Value parse_value(const Field& field, std::string_view text, const std::string& where) {
  Value typed = std::string(text);
  if (std::holds_alternative<std::string*>(field.slot)) return typed;
  if (std::holds_alternative<std::optional<std::int64_t>*>(field.slot) && text == "none") return {};
  if (std::holds_alternative<bool*>(field.slot)) {
    if (text == "true" || text == "on" || text == "1") return true;
    if (text == "false" || text == "off" || text == "0") return false;
  } else if (std::holds_alternative<double*>(field.slot)) {
    double number = 0;
    if (parse_number(text, number)) return number;
  } else if (std::holds_alternative<Integers*>(field.slot)) {
    Integers list;
    bool good = true;
    while (good && !text.empty()) {
      const std::size_t comma = std::min(text.find(','), text.size());
      good = parse_number(text.substr(0, comma), list.emplace_back());
      text.remove_prefix(std::min(comma + 1, text.size()));
    }
    if (good) return list;
  } else {
    std::int64_t number = 0;
    if (parse_number(text, number)) return number;
  }
  refuse(field, typed, where);
}

void check_ranges(const Fields& fields, const std::string& where) {
  for (const auto& field : fields) assign(field, value_of(field), where);
}

const Field* find_field(const Fields& fields, std::string_view name) {
  const auto found = std::find_if(fields.begin(), fields.end(), [&](auto& field) { return field.name == name; });
  return found == fields.end() ? nullptr : &*found;
}

std::string nearest(std::string_view name, const std::vector<std::string>& names) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, std::max<std::size_t>(name.size(), 1) / 3) + 1;
  for (const auto& candidate : names) {
    // A part of a long name ("window" for "window_size") is near too, but never nearer than a typing error.
    const bool part =
        name.size() >= 4 && (candidate.find(name) != std::string::npos || name.find(candidate) != std::string::npos);
    const std::size_t distance = std::min(edit_distance(name, candidate), part ? std::size_t(2) : std::size_t(1000));
    if (distance < best_distance && distance < std::max(name.size(), candidate.size()))
      best = candidate, best_distance = distance;
  }
  return best;
}

std::string unknown_option(std::string_view name, const Fields& fields) {
  std::vector<std::string> names;
  for (const auto& field : fields) names.push_back(field.name);
  const std::string near = nearest(name, names);
  return "unknown option " + to_text(std::string(name)) +
         (near.empty() ? std::string() : "; did you mean \"" + near + "\"?");
}

std::string fields_to_json(const Fields& fields) {
  std::string text = "{";
  for (const auto& field : fields) {
    const Value value = value_of(field);
    text += (text.size() > 1 ? ", \"" : "\"") + field.name +
            "\": " + (std::holds_alternative<std::monostate>(value) ? "null" : to_text(value));
  }
  return text + "}";
}

void fields_from_json(const Fields& fields, std::string_view json, const std::string& where,
                      const std::vector<std::string>& beside) {
  const auto object = nlohmann::json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) fail<DataError>(where, ": expected a JSON object of options");
  try {
    for (const auto& [name, entry] : object.items()) {
      if (std::find(beside.begin(), beside.end(), name) != beside.end()) continue;
      const Field* field = find_field(fields, name);
      if (!field) fail<UsageError>(where, ": ", unknown_option(name, fields));
      if (!entry.is_null()) assign(*field, from_json_value(entry), where);
    }
  } catch (const UsageError& error) {
    throw DataError(error.what());
  }
}

std::string differences(const Fields& here, const Fields& there, const std::string& here_name,
                        const std::string& there_name) {
  std::string lines;
  for (std::size_t i = 0; i < here.size(); ++i) {
    const std::string a = to_text(value_of(here[i])), b = to_text(value_of(there[i]));
    if (a != b)
      lines += (lines.empty() ? "" : "\n") + here[i].name + ": " + a + " " + here_name + ", " + b + " " + there_name;
  }
  return lines;
}

}  // namespace sinkhorn
