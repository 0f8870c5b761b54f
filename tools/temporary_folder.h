// A folder for files that nobody keeps.
#pragma once
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "autograd/error.h"

namespace sinkhorn {

/// A new empty folder, removed with all it holds at the end of its scope. A DataError if none can be made.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::error_code error;
    std::string name = (std::filesystem::temp_directory_path(error) / "sinkhorn-XXXXXX").string();
    if (error || !mkdtemp(name.data()))
      fail<DataError>("no folder for temporary files: ", error ? error.message() : std::strerror(errno),
                      "; set TMPDIR to one that can be written");
    path = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;

  std::filesystem::path path;
};

}  // namespace sinkhorn
