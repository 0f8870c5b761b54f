// The folder of a training run: one process at a time, checkpoints that outlive crashes, the newest good one found
// again.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "models/durable_file.h"
#include "models/safetensors.h"

namespace sinkhorn {

/// A checkpoint that was read and matches its digests.
struct Checkpoint {
  std::int64_t step = 0;
  std::filesystem::path path;
  safetensors::File file;
};

/// The newest good checkpoint, if there is one, and one line for each newer one that had to be passed over.
struct NewestCheckpoint {
  std::optional<Checkpoint> checkpoint;
  std::vector<std::string> skipped;
};

/// Looks through the step-NNNNNN.safetensors in `folder`, from the newest down. Takes no lock and changes nothing, so
/// it serves commands that only read, also beside a running training. Throws DataError where the folder cannot be
/// listed.
NewestCheckpoint newest_checkpoint(const std::filesystem::path& folder, FileSystem& files = system_files());

/// Reads a checkpoint and verifies its digests. Throws DataError.
safetensors::File read_checkpoint(const std::filesystem::path& path, FileSystem& files = system_files());

/// Exclusive use of a run's folder, from construction to destruction.
class RunFolder {
 public:
  /// Creates the folder if it is missing, locks it, and removes the temporaries of saves that were cut short. Throws
  /// DataError where that cannot be done: not a folder, not writable, or in use, naming the process.
  explicit RunFolder(std::filesystem::path folder, FileSystem& files = system_files());

  /// Writes step-NNNNNN.safetensors with `metadata`, "step" and digests. Once it returns, no crash or power loss loses
  /// it. Then older checkpoints are removed, but for the newest `kept - 1` that are not known to be damaged; those of
  /// later steps are left alone. Throws DataError, and then every earlier checkpoint is still there.
  void save(std::int64_t step, safetensors::Metadata metadata, std::span<const safetensors::Item> items);
  /// Writes best.safetensors in the same way; after a failure it is the former one or the new one, whole.
  void save_best(std::int64_t step, safetensors::Metadata metadata, std::span<const safetensors::Item> items);

  /// As newest_checkpoint(path()). What it skips does not count as a checkpoint kept.
  NewestCheckpoint newest();

  const std::filesystem::path& path() const { return folder_; }
  static std::string step_name(std::int64_t step);  ///< step-000600.safetensors
  static constexpr const char* best_name = "best.safetensors";
  static constexpr const char* lock_name = ".lock";
  int kept = 2;  ///< step checkpoints that a save leaves; at least 2

 private:
  void write(const std::string& name, std::int64_t step, safetensors::Metadata metadata,
             std::span<const safetensors::Item> items);
  void prune(std::int64_t saved);

  std::filesystem::path folder_;
  FileSystem& files_;
  OpenFile lock_;
  std::set<std::int64_t> damaged_;
};

}  // namespace sinkhorn
