// Options as data: a table of named, bounded fields from which reading, checking, printing and documentation are
// derived.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace sinkhorn {

/// An option's value on its way in or out. The empty alternative is "not set".
using Value = std::variant<std::monostate, bool, std::int64_t, double, std::string, std::vector<std::int64_t>>;

/// Where an option lives; the alternative is its type.
using Slot =
    std::variant<bool*, std::int64_t*, double*, std::string*, std::optional<std::int64_t>*, std::vector<std::int64_t>*>;

/// What an option accepts: an interval for numbers (and for each entry of a list), a choice of words for text.
struct Accepts {
  double low = 0, high = 2147483647;
  bool low_open = false, high_open = false;
  std::vector<std::string> choices = {};
};
Accepts anything();
Accepts at_least(double low);
Accepts above(double low);
Accepts from_below(double low, double high);  // [low, high)
Accepts between(double low, double high);     // [low, high]
Accepts above_to(double low, double high);    // (low, high]
Accepts one_of(std::vector<std::string> choices);

/// One option of a configuration struct: the pointer leads into the struct the table was made from.
struct Field {
  std::string name;
  Slot slot;
  Accepts accepts;
  std::string help;
};
using Fields = std::vector<Field>;

/// Stores a value. Throws UsageError, beginning with `where`, if its type or size is wrong; "not set" restores nothing
/// but an optional's emptiness, and is ignored by every other field.
void assign(const Field& field, const Value& value, const std::string& where);
Value value_of(const Field& field);
/// Reads what a user typed after a flag. Throws UsageError, beginning with `where`.
Value parse_value(const Field& field, std::string_view text, const std::string& where);
/// The value as TOML (and, but for "none", as JSON) writes it; numbers read back to the same bits.
std::string to_text(const Value& value);
/// "whole number, at least 1", for help and error messages.
std::string expectation(const Field& field);

/// Throws UsageError naming the first field whose present value is not accepted.
void check_ranges(const Fields& fields, const std::string& where);
const Field* find_field(const Fields& fields, std::string_view name);
/// The names within a few typing errors of `name`, nearest first; empty if none is near.
std::string nearest(std::string_view name, const std::vector<std::string>& names);
/// ": unknown option "dmi"; did you mean "dim"?" for any list of names.
std::string unknown_option(std::string_view name, const Fields& fields);

/// One JSON object with every field; "not set" is null.
std::string fields_to_json(const Fields& fields);
/// Reads such an object; a missing or null entry leaves the field as it is. Names in `beside` are someone else's.
/// Throws DataError, beginning with `where`, for anything that is not an object of known fields with accepted values.
void fields_from_json(const Fields& fields, std::string_view json, const std::string& where,
                      const std::vector<std::string>& beside = {});
/// One line per field that differs, "dim: 128 here, 256 there"; the tables must come from the same struct.
std::string differences(const Fields& here, const Fields& there, const std::string& here_name,
                        const std::string& there_name);

}  // namespace sinkhorn
