// Ids of table rows: checking them, and grouping what belongs to one row.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "autograd/error.h"

namespace sinkhorn::cpu {

/// Throws an Error, beginning with the op's name, for an id outside 0 .. rows-1.
inline void check_ids(std::string_view op, std::int64_t rows, std::int64_t count, const std::int32_t* ids) {
  for (std::int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= rows) fail(op, ": id ", ids[i], " is outside a table of ", rows, " rows");
}

/// The positions of a list of ids, sorted by id and among equal ids by position.
struct Segments {
  std::vector<std::int64_t> begins;  // id v has places[begins[v]] .. places[begins[v + 1] - 1]
  std::vector<std::int64_t> places;
};

/// By counting; every id is in 0 .. rows-1.
inline Segments segments_of(std::int64_t rows, std::int64_t count, const std::int32_t* ids) {
  Segments s{std::vector<std::int64_t>(std::size_t(rows + 1)), std::vector<std::int64_t>(std::size_t(count))};
  for (std::int64_t i = 0; i < count; ++i) ++s.begins[ids[i] + 1];
  for (std::int64_t v = 0; v < rows; ++v) s.begins[v + 1] += s.begins[v];
  std::vector<std::int64_t> next(s.begins.begin(), s.begins.end() - 1);
  for (std::int64_t i = 0; i < count; ++i) s.places[next[ids[i]]++] = i;
  return s;
}

}  // namespace sinkhorn::cpu
