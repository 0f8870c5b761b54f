// `sinkhorn import` and `sinkhorn export`: weights of the published PyTorch package, in and out.
#pragma once
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>

namespace sinkhorn {

struct ImportOptions {
  std::string file;    // safetensors
  std::string config;  // TOML whose table [model] says what the file's model is
  std::string out;     // folder of the checkpoint
  std::string vocabulary, symbols;
  std::optional<std::string> prefix;  // as find_prefix() has it
  std::int64_t seed = 1;              // of what the file lacks
};

/// Makes a checkpoint of a published model's weights, and prints what became of every tensor and which corrected
/// defects change what the model computes. Returns the exit code. Throws UsageError for wrong options, DataError for a
/// file that does not fit them; then nothing is written.
int import_weights(const ImportOptions& options, std::ostream& out);

struct ExportOptions {
  std::string checkpoint, out;
  std::string prefix;  // put before every name
};

/// Writes a checkpoint's weights under the package's names. Returns the exit code; errors are thrown, and then nothing
/// is written.
int export_weights(const ExportOptions& options, std::ostream& out);

}  // namespace sinkhorn
