// Where tests find reference files that live beside the repository, and folders of their own to write in.
#pragma once
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "autograd/error.h"
#include "build_info.h"
#include "tools/temporary_folder.h"

namespace sinkhorn::testing {

/// The folder of reference files: $SINKHORN_SHARED, else `shared` beside the repository. Tests skip where it is absent.
inline std::optional<std::filesystem::path> shared_folder() {
  const char* given = std::getenv("SINKHORN_SHARED");
  const std::filesystem::path folder =
      given != nullptr ? given : std::filesystem::path(build_info::source_dir).parent_path() / "shared";
  if (!std::filesystem::is_directory(folder)) return std::nullopt;
  return folder;
}

/// True where the long versions of the tests are asked for.
inline bool long_tests() { return std::getenv("SINKHORN_LONG_TESTS") != nullptr; }

using sinkhorn::TemporaryFolder;

}  // namespace sinkhorn::testing
