// What ordinary compressors make of a text: the figure that a language model should beat.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sinkhorn {

struct CompressedSize {
  std::string program;
  double bits;  // of the compressed text
};

/// The size of `text` under bzip2 and xz at their strongest; a program that is not there is left out.
std::vector<CompressedSize> compressed_sizes(std::string_view text);

/// Bytes that `program -9` makes of `text`; nothing if the program cannot be run or fails.
std::optional<std::int64_t> compressed_bytes(const std::string& program, std::string_view text);

}  // namespace sinkhorn
