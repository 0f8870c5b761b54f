// Whole files in memory, with one clear line for everything that can be wrong with a path.
#pragma once
#include <string>

namespace sinkhorn {

/// The bytes of a file, unpacked if it is gzip; "-" is standard input. Throws DataError, beginning with `what`, if it
/// is missing, a folder, unreadable, damaged or too large for memory.
std::string read_file(const std::string& path, const std::string& what);

}  // namespace sinkhorn
